"""Keys and values of earlier tokens, for attention to look back at."""

import functools

import jax
import jax.numpy as jnp

from me_jax.models.config import ModelConfig

# Keys [B, K, H, S] and values [B, K, S, H] of earlier tokens, by layer name;
# without B where all rows have them in common. In this order both products of
# attention are those of row-major matrices, which a processor does several
# times as fast for a single token as with either of them transposed.
KeysValues = tuple[jax.Array, jax.Array]
Cache = dict[str, KeysValues]


def empty_cache(
  config: ModelConfig, batch: int, slots: int, *, start: int = 0
) -> Cache:
  """Zeroed keys and values for layers [start, num_layers)."""
  heads, size = config.num_kv_heads, config.head_dim
  zeros = lambda *shape: jnp.zeros((batch, heads, *shape), config.dtype)
  return {
    str(i): (zeros(size, slots), zeros(slots, size))
    for i in range(start, config.num_layers)
  }


def add_slots(cache: Cache, after: int, before: int = 0) -> Cache:
  """The cache with so many empty slots after and before the others."""
  keys = lambda k: _padded(k, (before, after), k.ndim - 1)
  values = lambda v: _padded(v, (before, after), v.ndim - 2)
  return {name: (keys(k), values(v)) for name, (k, v) in cache.items()}


def num_slots(cache: Cache) -> int:
  """S, or P."""
  return next(iter(cache.values()))[0].shape[-1]


def write(
  cache: KeysValues, new: KeysValues, index: jax.Array | int
) -> KeysValues:
  """The cache of S slots with T new tokens in it: from slot `index` on, or,
  if that is [B], one token in a slot of its own in each row."""
  if jnp.ndim(index) == 0:
    put = functools.partial(
      jax.lax.dynamic_update_slice_in_dim, start_index=index
    )
    return put(cache[0], new[0], axis=3), put(cache[1], new[1], axis=2)
  rows = jnp.arange(len(index))
  return (
    cache[0].at[rows, :, :, index].set(new[0][..., 0]),
    cache[1].at[rows, :, index].set(new[1][:, :, 0]),
  )


def _padded(x: jax.Array, width: tuple[int, int], axis: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = width
  return jnp.pad(x, widths)
