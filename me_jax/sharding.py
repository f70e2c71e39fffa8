"""Where the parts of a model lie on many devices.

A mesh has two axes. Along 'model' the weights are cut: heads of the attention
and the inner width of the MLP, so that a layer adds up over devices twice.
Along 'data' lie copies of the weights, and the rows of a batch are dealt.

Nobody is told the mesh: parameters know where they lie (`mesh_of`), and what is
computed from them follows.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from me_jax import trees
from me_jax.models.config import ModelConfig
from me_jax.typing import ParamPath, Params

DATA, MODEL = 'data', 'model'

# Path, and which axis is cut along 'model'.
_RULES: tuple[tuple[str, int | None], ...] = (
  ('embed_tokens/embedding', 0),
  (r'layers/\d+/self_attn/[qkv]_proj/kernel', 1),
  (r'layers/\d+/self_attn/o_proj/kernel', 0),
  (r'layers/\d+/mlp/(gate|up)_proj/kernel', 1),
  (r'layers/\d+/mlp/down_proj/kernel', 0),
  ('lm_head/kernel', 1),
  (r'(layers/\d+/\w+|norm)/scale', None),
)


def make_mesh(
  data: int, model: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of so many devices along each axis.

  Args:
    data: Copies of the weights.
    model: Parts of each copy.
    devices: Those to use; None for all there are.

  Raises:
    ValueError: There are not just `data * model` devices.
  """
  devices = jax.devices() if devices is None else devices
  if data < 1 or model < 1 or data * model != len(devices):
    count = len(devices)
    ways = [f'{count // n}x{n}' for n in range(1, count + 1) if count % n == 0]
    raise ValueError(
      f'A mesh of {data}x{model} (data x model) does not fit {count} devices. '
      f'Take one of {", ".join(ways) or "no mesh: there is no device"}.'
    )
  shape, axes, types = (data, model), (DATA, MODEL), (AxisType.Auto,) * 2
  try:
    return jax.make_mesh(shape, axes, types, devices=devices)
  except NotImplementedError:
    # No axes of the torus make up the mesh, as of 4x4x4 chips none make 8x8. To
    # split one JAX must be asked; for v5e it does so by itself.
    split = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
    return Mesh(split, axes, types)


def parse_mesh(text: str) -> tuple[int, int]:
  """'4x2' as (4, 2).

  Raises:
    ValueError: It is something else.
  """
  match = re.fullmatch(r'(\d+)x(\d+)', text)
  if not match:
    raise ValueError(
      f'A mesh is written DATAxMODEL, e.g. 4x2 for four copies of the weights '
      f'in two parts each; got {text!r}.'
    )
  return int(match[1]), int(match[2])


def param_shardings(
  config: ModelConfig, paths: Sequence[ParamPath], mesh: Mesh
) -> dict[ParamPath, NamedSharding]:
  """How each parameter is cut. One whose parts do not fit the mesh stays whole:
  heads and tokens of the vocabulary are never cut inside.

  Raises:
    KeyError: No rule is for a path.
  """
  found = {}
  for path in paths:
    rule = next((r for r in _RULES if re.fullmatch(r[0], path)), None)
    if rule is None:
      raise KeyError(f'No rule says how {path} is cut over devices.')
    axis = rule[1]
    is_cut = axis is not None and _can_be_cut(config, path, mesh.shape[MODEL])
    cut = (None,) * axis + (MODEL,) if is_cut else ()
    found[path] = NamedSharding(mesh, P(*cut))
  return found


def uncut(
  config: ModelConfig, paths: Sequence[ParamPath], mesh: Mesh
) -> list[str]:
  """Kinds of kernels and tables that stay whole on every device of a mesh that
  cuts the weights, without the number of their layer."""
  if mesh.shape[MODEL] == 1:
    return []
  whole = [
    re.sub(r'layers/\d+/|/kernel$|/embedding$', '', path)
    for path, sharding in param_shardings(config, paths, mesh).items()
    if sharding.spec == P() and not path.endswith('/scale')
  ]
  return sorted(set(whole))


def shard(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
  """The parameters, laid out on a mesh."""
  leaves = trees.flatten(params)
  shardings = param_shardings(config, tuple(leaves), mesh)
  return trees.unflatten(
    {path: _put(leaves[path], shardings[path]) for path in leaves}
  )


class Layout:
  """Lays out parameters as they are read, part by part."""

  def __init__(
    self, config: ModelConfig, paths: Sequence[ParamPath], mesh: Mesh | None
  ):
    """Binds a model.

    Args:
      config: Its shape.
      paths: Its parameters.
      mesh: Where they are to lie; None for the default device.
    """
    self._shardings = param_shardings(config, paths, mesh) if mesh else None

  def __call__(
    self,
    path: ParamPath,
    shape: tuple[int, ...],
    read: Callable[[tuple[slice, ...]], np.ndarray],
  ) -> jax.Array:
    """The parameter at `path`.

    Args:
      path: Which.
      shape: Of all of it.
      read: Gives a part; asked once for each part that devices of this process
        hold.
    """
    if self._shardings is None:
      return jnp.asarray(read((slice(None),) * len(shape)))
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
      # Copies of a part on several devices are read once.
      name = str(index)
      if name not in parts:
        parts[name] = read(index)
      return parts[name]

    return jax.make_array_from_callback(shape, self._shardings[path], part)


def mesh_of(tree: Any) -> Mesh | None:
  """The mesh that arrays lie on; None for a single device.

  Raises:
    ValueError: They lie on several devices in some other way.
  """
  for leaf in jax.tree.leaves(tree):
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None or isinstance(leaf, jax.core.Tracer):
      continue
    if isinstance(sharding, NamedSharding):
      if sharding.mesh.axis_names == (DATA, MODEL):
        return sharding.mesh
    if len(sharding.device_set) > 1:
      raise ValueError(
        f'Arrays must lie on one device or on a mesh of sharding.make_mesh, '
        f'got {sharding}. Lay the parameters out with sharding.shard.'
      )
  return None


def with_sharding_of(old: jax.Array, new: jax.Array) -> jax.Array:
  """`new`, where `old` lies on a mesh as it does."""
  return _put(new, old.sharding) if mesh_of(old) else new


def replicate(tree: Any, mesh: Mesh | None) -> Any:
  """All of the arrays on each device; as they are without a mesh."""
  return _put(tree, replicated(mesh)) if mesh else tree


def replicated(mesh: Mesh | None) -> NamedSharding | None:
  """Of arrays that each device has all of; None, for any, without a mesh."""
  return NamedSharding(mesh, P()) if mesh else None


def data_size(mesh: Mesh | None) -> int:
  """Over how many groups of devices rows are dealt."""
  return mesh.shape[DATA] if mesh else 1


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Of arrays with rows first."""
  return NamedSharding(mesh, P(DATA))


def cache_sharding(config: ModelConfig, mesh: Mesh) -> NamedSharding:
  """Of keys and values [B, K, ...]: rows dealt, heads cut as their kernels."""
  is_cut = config.num_kv_heads % mesh.shape[MODEL] == 0
  return NamedSharding(mesh, P(DATA, MODEL) if is_cut else P(DATA))


def prefix_sharding(config: ModelConfig, mesh: Mesh) -> NamedSharding:
  """Of keys and values [K, ...] that all rows have in common."""
  is_cut = config.num_kv_heads % mesh.shape[MODEL] == 0
  return NamedSharding(mesh, P(MODEL) if is_cut else P())


def shard_rows(tree: Any, mesh: Mesh | None) -> Any:
  """Arrays with rows first, dealt; as they are without a mesh.

  Raises:
    ValueError: The rows cannot be dealt in equal parts.
  """
  return _put(tree, row_sharding(mesh)) if mesh else tree


def deal_rows(tree: Any, mesh: Mesh | None) -> Any:
  """Arrays with rows first, dealt where a mesh divides their number, else all
  of them on each device; as they are without a mesh."""
  if mesh is None:
    return tree
  return jax.tree.map(lambda a: _put(a, place_of_rows(len(a), mesh)), tree)


def place_of_rows(count: int, mesh: Mesh) -> NamedSharding:
  """Of arrays with so many rows first: dealt if a mesh divides their number."""
  return replicated(mesh) if count % data_size(mesh) else row_sharding(mesh)


def data_parallel(
  fn: Callable[..., Any], mesh: Mesh, is_rows: Sequence[bool]
) -> Callable[..., Any]:
  """`fn`, run by each group of devices on its own rows: none waits for another.

  Args:
    fn: From arrays to arrays that all have rows first.
    mesh: Where.
    is_rows: For each argument whether it has rows first; else all have it.
  """
  return jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=tuple(P(DATA) if is_row else P() for is_row in is_rows),
    out_specs=P(DATA),
    axis_names={DATA},
    check_vma=False,
  )


def _put(tree: Any, sharding: NamedSharding) -> Any:
  """`jax.device_put`; of many processes each puts its parts of what all have,
  which JAX would first send around to compare."""

  def put(leaf: Any) -> jax.Array:
    if not getattr(leaf, 'is_fully_addressable', True):
      return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )

  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)
  return jax.tree.map(put, tree)


def _can_be_cut(config: ModelConfig, path: ParamPath, parts: int) -> bool:
  if '/mlp/' in path:
    return config.mlp_dim % parts == 0
  if '/self_attn/' not in path:
    return config.vocab_size % parts == 0
  heads, groups = config.num_heads, config.num_kv_heads
  if re.search('[kv]_proj', path):
    return groups % parts == 0
  # A part holds whole groups of query heads, or a part of one group.
  return heads % parts == 0 and (groups % parts == 0 or parts % groups == 0)
