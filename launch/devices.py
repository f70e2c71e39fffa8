"""How devices share the work: the flag, and the mesh it asks for."""

import jax
from absl import flags
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.models.language_model import LanguageModel

_MESH = flags.DEFINE_string(
  'mesh',
  '',
  'How devices share the work, DATAxMODEL: 4x2 is four copies of the weights '
  'in two parts each. Default: a copy on each device.',
)


def mesh() -> Mesh | None:
  """The mesh of all devices; None for one device.

  Raises:
    ValueError: It is not written so, or there are not as many devices.
  """
  count = jax.device_count()
  shape = sharding.parse_mesh(_MESH.value) if _MESH.value else (count, 1)
  if shape == (1, 1) and count == 1:
    return None
  return sharding.make_mesh(*shape)


def describe(model: LanguageModel, mesh: Mesh | None) -> str:
  """E.g. '1 x cpu', or '8 x TPU v5e, 4 copies of the weights in 2 parts'; and
  what stays whole, for it takes memory and time."""
  kind = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  if mesh is None:
    return kind
  data, parts = mesh.shape[sharding.DATA], mesh.shape[sharding.MODEL]
  text = f'{kind}, {data} copies of the weights'
  if parts == 1:
    return text
  text += f' in {parts} parts'
  paths = tuple(trees.flatten(model.params))
  if whole := sharding.uncut(model.config, paths, mesh):
    text += f'; whole, as {parts} does not divide them: {", ".join(whole)}'
  return text
