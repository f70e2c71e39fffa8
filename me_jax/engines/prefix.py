"""The keys and values of tokens that many prompts begin with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.engines.forward import Forward
from me_jax.engines.padding import pad_mask
from me_jax.models import cache as cache_lib
from me_jax.typing import OTHER, ModelState


class Prefix(NamedTuple):
  """P slots, of which the first `length` are filled. A pytree.

  Attributes:
    cache: Keys [K, H, P] and values [K, P, H] per layer.
    length: int32 [].
  """

  cache: cache_lib.Cache
  length: jax.Array


def arguments(prefix: Prefix | None) -> dict[str, Any]:
  """What `llama.run_layers` takes of a prefix."""
  if prefix is None:
    return {}
  return {'prefix': prefix.cache, 'prefix_length': prefix.length}


def padded(ids: tuple[int, ...], tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Arguments of `prefix`: ids int32 [1, T] and their number."""
  row = np.full((1, tokens), ids[0], np.int32)
  row[0, : len(ids)] = ids
  return row, np.asarray(len(ids), np.int32)


def prefix(
  forward: Forward,
  state: ModelState,
  ids: jax.Array,
  length: jax.Array,
  slots: int,
) -> Prefix:
  """The prefix of `padded` ids under a model state, in so many slots."""
  x = forward.embed(state, ids)
  return prefix_layers(forward, state, x, length, slots)[1]


def prefix_layers(
  forward: Forward,
  state: ModelState,
  x: jax.Array,
  length: jax.Array,
  slots: int,
) -> tuple[jax.Array, Prefix]:
  """The prefix in the layers of `forward`, from what enters them, [1, T, D],
  and what leaves them."""
  order = jnp.arange(x.shape[1])[None]
  real = order < length
  output = forward(
    state,
    x,
    kinds=OTHER,  # at least one token of each prompt is not shared
    positions=jnp.where(real, order, 0),
    mask=pad_mask(order[:, None, :] <= order[:, :, None], real),
  )
  cache = {name: (k[0], v[0]) for name, (k, v) in output.cache.items()}
  # Empty slots are free to attention, nearly, and not to the layers.
  return output.x, Prefix(
    cache_lib.add_slots(cache, slots - x.shape[1]), length
  )
