"""The keys and values of tokens that many prompts begin with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.engines.forward import Forward
from me_jax.models import llama
from me_jax.typing import ModelState


class Prefix(NamedTuple):
  """P slots, of which the first `length` are filled. A pytree.

  Attributes:
    cache: Keys [K, P, H] and values [K, H, P] per layer.
    length: int32 [].
  """

  cache: llama.Cache
  length: jax.Array


def arguments(prefix: Prefix | None) -> dict[str, Any]:
  """What `llama.run_layers` takes of a prefix."""
  if prefix is None:
    return {}
  return {'prefix': prefix.cache, 'prefix_length': prefix.length}


def padded(ids: tuple[int, ...], tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Arguments of `prefix`: ids int32 [1, T] and their number."""
  row = np.zeros((1, tokens), np.int32)
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
  positions = jnp.arange(x.shape[1])[None]
  output = forward(
    state,
    x,
    positions=positions,
    mask=llama.causal_mask(positions, positions, positions < length),
  )
  cache = {name: (k[0], v[0]) for name, (k, v) in output.cache.items()}
  # Empty slots are free to attention, nearly, and not to the layers.
  return output.x, Prefix(llama.add_slots(cache, slots - x.shape[1]), length)
