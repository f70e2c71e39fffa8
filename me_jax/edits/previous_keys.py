"""Keys of earlier batches, which later ones are to leave in place."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_FIRST_CAPACITY = 16


class PreviousKeys(NamedTuple):
  """A pytree whose shapes change only when it doubles.

  Attributes:
    keys: By layer, as a string; columns from `count` on are zero.
    count: How many columns are keys.
  """

  keys: dict[str, Float[Array, 'F capacity']]
  count: Int[Array, '']


def none(layers: Sequence[int], width: int) -> PreviousKeys:
  """No keys yet, of width F, for `layers`."""
  return PreviousKeys(
    {str(i): jnp.zeros((width, _FIRST_CAPACITY), jnp.float32) for i in layers},
    jnp.zeros((), jnp.int32),
  )


def columns(
  previous: PreviousKeys, layer: int
) -> Float[np.ndarray, 'F capacity']:
  """The keys at `layer`, float64, on the host.

  Columns of zeros come along: they change no solution, and what is compiled for
  them serves until the capacity doubles.
  """
  return np.asarray(previous.keys[str(layer)], np.float64)


def add(
  previous: PreviousKeys, new: Mapping[int, Float[np.ndarray, 'F N']]
) -> PreviousKeys:
  """The same with a batch of new keys behind them."""
  count = int(previous.count)
  (size,) = {keys.shape[1] for keys in new.values()}
  joined = {}
  for layer, keys in new.items():
    old = np.asarray(previous.keys[str(layer)])
    capacity = old.shape[1]
    while capacity < count + size:
      capacity *= 2
    grown = np.zeros((len(old), capacity), np.float32)
    grown[:, :count] = old[:, :count]
    grown[:, count : count + size] = keys
    joined[str(layer)] = jnp.asarray(grown)
  return PreviousKeys(joined, jnp.asarray(count + size, jnp.int32))
