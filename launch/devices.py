"""How devices share the work: the flag, and the mesh it asks for."""

import jax
from absl import flags
from jax.sharding import Mesh

from me_jax import processes, sharding, trees
from me_jax.models.language_model import LanguageModel

_MESH = flags.DEFINE_string(
  'mesh',
  '',
  'How devices share the work, DATAxMODEL: 4x2 is four copies of the weights '
  'in two parts each, 1x1 the first device alone. Default: a copy on each.',
)


def from_flag() -> Mesh | None:
  """The mesh of all devices, of all processes; None for one device.

  Raises:
    ValueError: It is not written so, or there are not as many devices.
    RuntimeError: There are other processes, which were not joined.
  """
  count = jax.device_count()
  is_one = jax.process_count() == 1
  if not is_one and not processes.are_many():
    raise RuntimeError(
      f'This is one of {jax.process_count()} processes, which launch.run, '
      'launch.evaluate, launch.second_moment and launch.train_mend join with '
      '--distributed.'
    )
  shape = sharding.parse_mesh(_MESH.value) if _MESH.value else (count, 1)
  if is_one and shape == (1, 1):
    return None
  mesh = sharding.make_mesh(*shape)
  if not is_one:
    processes.meet(mesh)
  return mesh


def describe(model: LanguageModel, mesh: Mesh | None) -> str:
  """E.g. '1 x cpu', or '8 x TPU v5e as 4x2'; and what stays whole, for it takes
  memory and time."""
  kind = jax.devices()[0].device_kind
  if mesh is None:
    return f'1 x {kind}'
  data, parts = mesh.shape[sharding.DATA], mesh.shape[sharding.MODEL]
  text = f'{mesh.size} x {kind} as {data}x{parts}'
  if processes.are_many():
    text += f' in {jax.process_count()} processes'
  paths = tuple(trees.flatten(model.params))
  if whole := sharding.uncut(model.config, paths, mesh):
    text += f', of which each holds all of {", ".join(whole)}'
  return text
