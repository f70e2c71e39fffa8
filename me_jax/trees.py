"""Parameter trees by path name: `layers/5/mlp/down_proj/kernel`."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from me_jax import slabs
from me_jax.typing import ParamPath, Params


def flatten(params: Params) -> dict[ParamPath, Any]:
  """All leaves by path, sorted by path."""
  leaves = {}

  def walk(node: Any, prefix: str) -> None:
    for key, child in node.items():
      path = f'{prefix}{key}'
      if isinstance(child, Mapping):
        walk(child, f'{path}/')
      else:
        leaves[path] = child

  walk(params, '')
  return dict(sorted(leaves.items()))


def unflatten(leaves: Mapping[ParamPath, Any]) -> Params:
  """The nested tree of `leaves`; the inverse of `flatten`."""
  params: Params = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return params


def get(params: Params, path: ParamPath) -> Any:
  """The leaf at `path`.

  Raises:
    KeyError: There is none; names the nearest paths.
  """
  node: Any = params
  for key in path.split('/'):
    if not isinstance(node, Mapping) or key not in node:
      raise KeyError(_no_such_path(params, path))
    node = node[key]
  if isinstance(node, Mapping):
    raise KeyError(_no_such_path(params, path))
  return node


def set_leaf(params: Params, path: ParamPath, leaf: Any) -> Params:
  """A tree with `leaf` at `path`; every other leaf is shared with `params`.

  Raises:
    KeyError: `params` has no leaf at `path`.
  """
  get(params, path)

  def replace(node: Params, keys: list[str]) -> Params:
    key, *rest = keys
    return {**node, key: replace(node[key], rest) if rest else leaf}

  return replace(params, path.split('/'))


def to_host(tree: Any) -> Any:
  """A pytree with NumPy arrays in the place of JAX's.

  Of many processes each may hold but parts of an array: they are put together,
  and so all processes must ask.
  """
  return jax.device_get(jax.tree.map(_within_reach, tree))


def fingerprint(params: Params) -> str:
  """SHA-256 over every path, shape, dtype and byte: equal weights, equal
  print, whatever file they came from. See `models.fingerprint` for a model's,
  which also says how they are used."""
  digest = hashlib.sha256()
  for path, leaf in flatten(params).items():
    # A number counts as one of one row, as in prints that are stored.
    digest.update(f'{path}:{leaf.shape or (1,)}:{leaf.dtype}:'.encode())
    for part in _in_order(leaf):
      digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def checksum(tree: Any) -> str:
  """16 hex digits over the bits of all arrays, summed where they are.

  Weights that differ have another one, but for one chance in 2**64 a changed
  array; it takes a pass over the memory of the device, where `fingerprint`
  takes all to the host.
  """
  sums = [
    (leaf.shape, str(leaf.dtype), _bit_sums(leaf))
    for leaf in jax.tree.leaves(tree)
  ]
  digest = hashlib.sha256()
  for shape, dtype, found in to_host(sums):
    digest.update(f'{shape}:{dtype}:{found.tolist()}'.encode())
  return digest.hexdigest()[:16]


def _in_order(leaf: Any) -> Iterable[np.ndarray]:
  """All of an array on the host, of many processes a part at a time."""
  if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
    return [to_host(leaf)]
  if not leaf.is_fully_addressable:
    return slabs.slabs(leaf)
  # An array in parts keeps what it was put together to as long as it lives.
  return [to_host(jnp.copy(leaf))]


def _within_reach(leaf: Any) -> Any:
  """An array of which this process holds all."""
  if not isinstance(leaf, jax.Array):
    return leaf
  if leaf.is_fully_addressable or leaf.is_fully_replicated:
    return leaf
  return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, P()))


@jax.jit
def _bit_sums(leaf: Array) -> Array:
  """uint32 [2], of the bits and of the bits by place, modulo 2**32."""
  if leaf.dtype == bool:
    leaf = leaf.astype(jnp.uint8)
  width = leaf.dtype.itemsize
  unsigned = jnp.dtype(f'uint{8 * min(width, 4)}')
  # Eight bytes become two numbers.
  bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
  bits = bits.reshape(-1)
  place = jax.lax.iota(jnp.uint32, bits.size)
  by_place = bits * (2 * place + 1) * jnp.uint32(2654435761)
  return jnp.stack([bits.sum(dtype=jnp.uint32), by_place.sum(dtype=jnp.uint32)])


def _no_such_path(params: Params, path: ParamPath) -> str:
  near = difflib.get_close_matches(path, flatten(params), n=3, cutoff=0.5)
  return f'No parameter {path!r}. Nearest: {", ".join(near) or "none"}.'
