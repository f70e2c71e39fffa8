"""Where the parts of a model lie on many devices.

A mesh has two axes. Along 'model' the weights are cut: heads of the attention
and the inner width of the MLP, so that a layer adds up over devices twice.
Along 'data' lie copies of the weights, and the rows of a batch are dealt.

Nobody is told the mesh: parameters know where they lie (`mesh_of`), and what is
computed from them follows.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from me_jax import trees
from me_jax.models.config import ModelConfig
from me_jax.typing import ParamPath, Params

DATA, MODEL = 'data', 'model'

# Path, which axis is cut along 'model', and into how many parts at most: what
# is not told apart inside (a head, a token's row) stays on one device.
_RULES: tuple[
  tuple[str, int, Callable[[ModelConfig], int]],
  ...,
] = (
  ('embed_tokens/embedding', 0, lambda c: c.vocab_size),
  (r'layers/\d+/self_attn/q_proj/kernel', 1, lambda c: c.num_heads),
  (r'layers/\d+/self_attn/[kv]_proj/kernel', 1, lambda c: c.num_kv_heads),
  (r'layers/\d+/self_attn/o_proj/kernel', 0, lambda c: c.num_heads),
  (r'layers/\d+/mlp/(gate|up)_proj/kernel', 1, lambda c: c.mlp_dim),
  (r'layers/\d+/mlp/down_proj/kernel', 0, lambda c: c.mlp_dim),
  ('lm_head/kernel', 1, lambda c: c.vocab_size),
  (r'(layers/\d+/\w+|norm)/scale', 0, lambda c: 1),
)


def make_mesh(
  data: int, model: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of so many devices along each axis.

  Args:
    data: Copies of the weights.
    model: Parts of each copy.
    devices: Which; None for all there are.

  Raises:
    ValueError: There are not just `data * model` devices.
  """
  devices = jax.devices() if devices is None else devices
  if data < 1 or model < 1 or data * model != len(devices):
    ways = [
      f'{len(devices) // n}x{n}'
      for n in range(1, len(devices) + 1)
      if len(devices) % n == 0
    ]
    raise ValueError(
      f'A mesh of {data}x{model} (data x model) needs {data * model} devices, '
      f'there are {len(devices)}. Take one of {", ".join(ways)}.'
    )
  return jax.make_mesh(
    (data, model), (DATA, MODEL), (AxisType.Auto,) * 2, devices=devices
  )


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
  """How each parameter is cut. One whose parts do not fit the mesh stays whole.

  Raises:
    KeyError: No rule is for a path.
  """
  parts = mesh.shape[MODEL]
  found = {}
  for path in paths:
    axis, most = next(
      (
        (axis, count(config))
        for pattern, axis, count in _RULES
        if re.fullmatch(pattern, path)
      ),
      (None, None),
    )
    if axis is None:
      raise KeyError(f'No rule says how {path} is cut over devices.')
    cut = (None,) * axis + (MODEL,) if most % parts == 0 else ()
    found[path] = NamedSharding(mesh, P(*cut))
  return found


def shard(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
  """The parameters, laid out on a mesh."""
  leaves = trees.flatten(params)
  shardings = param_shardings(config, tuple(leaves), mesh)
  return trees.unflatten(
    {path: jax.device_put(leaves[path], shardings[path]) for path in leaves}
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


def mesh_of(params: Mapping[str, Any]) -> Mesh | None:
  """The mesh that parameters lie on; None for a single device."""
  for leaf in jax.tree.leaves(params):
    sharding = getattr(leaf, 'sharding', None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (
      DATA,
      MODEL,
    ):
      return sharding.mesh
  return None


def laid_out_as(old: jax.Array, new: jax.Array) -> jax.Array:
  """`new`, where `old` lies on a mesh as it does; inside a compiled function,
  where that is not known, as it is."""
  if isinstance(old, jax.core.Tracer) or mesh_of({'': old}) is None:
    return new
  return jax.device_put(new, old.sharding)


def data_size(mesh: Mesh | None) -> int:
  """Over how many groups of devices rows are dealt."""
  return mesh.shape[DATA] if mesh else 1


def over_data(mesh: Mesh) -> NamedSharding:
  """Of arrays whose first axis is dealt."""
  return NamedSharding(mesh, P(DATA))


def of_cache(config: ModelConfig, mesh: Mesh) -> NamedSharding:
  """Of keys and values [B, K, ...]: rows dealt, heads cut as their kernels."""
  is_cut = config.num_kv_heads % mesh.shape[MODEL] == 0
  return NamedSharding(mesh, P(DATA, MODEL) if is_cut else P(DATA))


def deal(tree: Any, mesh: Mesh | None) -> Any:
  """Arrays whose first axis is dealt where it can be in equal parts, else each
  device has all of it; as they are without a mesh."""
  if mesh is None:
    return tree
  whole, dealt = NamedSharding(mesh, P()), over_data(mesh)
  fits = lambda x: x.ndim and x.shape[0] % mesh.shape[DATA] == 0
  return jax.tree.map(
    lambda x: jax.device_put(x, dealt if fits(x) else whole), tree
  )


def each_its_rows(
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


def round_up(count: int, mesh: Mesh | None) -> int:
  """The next number of rows that can be dealt in equal parts."""
  size = data_size(mesh)
  return math.ceil(count / size) * size
