"""Keys of earlier batches, which later ones are to leave in place.

They are kept as C⁻¹ K, so that no later step solves for them again. Stored in
float32 like the edits, whose factors are sums of them. Checkpoints hold a state
whole: all earlier keys are written again with each step, and what they take on
the disk grows with the square of the number of steps.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from me_jax.edits.memit_solve import Solution, Solved

_FIRST_CAPACITY = 16


class PreviousKeys(NamedTuple):
  """A pytree whose shapes change only when it doubles.

  Attributes:
    keys: C⁻¹ K by layer, as a string; columns from `count` on are zero.
    grams: Kᵀ C⁻¹ K by layer, zero there, too.
    count: How many columns are keys.
  """

  keys: dict[str, Float[Array, 'F capacity']]
  grams: dict[str, Float[Array, 'capacity capacity']]
  count: Int[Array, '']


def none(layers: Sequence[int], width: int) -> PreviousKeys:
  """No keys yet, of width F, for `layers`."""
  zeros = lambda rows: {
    str(i): jnp.zeros((rows, _FIRST_CAPACITY), jnp.float32) for i in layers
  }
  return PreviousKeys(
    zeros(width), zeros(_FIRST_CAPACITY), jnp.zeros((), jnp.int32)
  )


def solved(previous: PreviousKeys, layer: int) -> Solved:
  """What is kept of the keys at `layer`, on the host.

  Columns of zeros come along: they change no solution.
  """
  keys, grams = previous.keys[str(layer)], previous.grams[str(layer)]
  return Solved(np.asarray(keys, np.float64), np.asarray(grams, np.float64))


def add(previous: PreviousKeys, new: Mapping[int, Solution]) -> PreviousKeys:
  """The same with a batch of new keys behind them.

  Args:
    previous: What was given to `memit_solve.solve`, as `solved` says.
    new: What came back, by layer.
  """
  count = int(previous.count)
  (size,) = {solution.keys.shape[1] for solution in new.values()}
  keys, grams = {}, {}
  for layer, solution in new.items():
    old = np.asarray(previous.keys[str(layer)])
    capacity = old.shape[1]
    # In the solution's system new keys come after all of the old capacity.
    used = [*range(count), *range(capacity, capacity + size)]
    while capacity < len(used):
      capacity *= 2
    both = np.concatenate([old[:, :count], solution.keys], axis=1)
    gram = solution.gram[np.ix_(used, used)]
    keys[str(layer)] = _padded(both, len(old), capacity)
    grams[str(layer)] = _padded(gram, capacity, capacity)
  return PreviousKeys(keys, grams, jnp.asarray(count + size, jnp.int32))


def _padded(array: np.ndarray, rows: int, columns: int) -> jnp.ndarray:
  """float32 [rows, columns], zero beyond `array`."""
  out = np.zeros((rows, columns), np.float32)
  out[: array.shape[0], : array.shape[1]] = array
  return jnp.asarray(out)
