"""What enters the first edited layer, kept for texts that are asked again.

An edit changes nothing below its layer. What a text looks like there is
computed for the first model state and read from memory for all later ones.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from me_jax import trees
from me_jax.engines import prefix as prefix_lib
from me_jax.engines import scoring
from me_jax.engines.forward import Forward
from me_jax.engines.prefix import Prefix
from me_jax.engines.scoring import Packed
from me_jax.typing import ModelState, Params


class Activations:
  """Residual streams by text, in host memory, of one set of weights.

  They belong to the very arrays below the layer: a state that has others there
  finds nothing, so what is found is never that of another model.

  Attributes:
    layer: Nothing below it is ever edited.
    has_room: The last text that came still fitted in.
  """

  def __init__(self, layer: int, max_bytes: int):
    """Holds nothing yet.

    Args:
      layer: Nothing below it is ever edited.
      max_bytes: What is beyond is computed each time.
    """
    self.layer = layer
    self.has_room = max_bytes > 0
    self._max_bytes = max_bytes
    self._weights: list[jax.Array] = []
    self._kept: dict[bytes, np.ndarray] = {}
    self._bytes = 0

  def of(self, params: Params) -> 'Activations':
    """This store, emptied if it belongs to other weights."""
    below = {str(i): params['layers'][str(i)] for i in range(self.layer)}
    leaves = trees.flatten({'embed_tokens': params['embed_tokens'], **below})
    weights = list(leaves.values())
    if len(weights) != len(self._weights) or not all(
      a is b for a, b in zip(weights, self._weights, strict=True)
    ):
      self._weights, self._kept, self._bytes = weights, {}, 0
      self.has_room = self._max_bytes > 0
    return self

  def get(self, key: bytes) -> np.ndarray | None:
    """The residual stream [T, D] of a text; None if it is not kept."""
    return self._kept.get(key)

  def keep(self, key: bytes, x: np.ndarray) -> None:
    """Keeps a text, if there is room."""
    if key in self._kept:
      return
    self.has_room = self._bytes + x.nbytes <= self._max_bytes
    if self.has_room:
      self._kept[key] = x.copy()
      self._bytes += x.nbytes


class Scorer:
  """`scoring.score` in two halves, of which the lower one runs once a text."""

  def __init__(
    self,
    forward: Forward,
    activations: Activations,
    jitted: Callable[..., Callable],
  ):
    """Binds a model's shape.

    Args:
      forward: All layers.
      activations: Where the lower half is kept.
      jitted: Compiles a function, as `jax.jit`, told which of its arguments
        have `rows` first.
    """
    layer = activations.layer
    # An editor that is at work below the layer is an error, found in tracing.
    lower = forward._replace(editor_interventions=None, stop=layer)
    upper = forward._replace(start=layer)

    def score_lower(state, prefix, ids, *arrays):
      x = lower.embed(state, ids)
      return scoring.score_layers(lower, state, prefix, x, *arrays).x

    def score_upper(state, prefix, x, slots, targets, *arrays):
      x = scoring.score_layers(upper, state, prefix, x, *arrays).x
      return scoring.read_scores(upper, state, x, slots, targets)

    def prefix_lower(state, ids, length, slots):
      x = lower.embed(state, ids)
      return prefix_lib.prefix_layers(lower, state, x, length, slots)

    def prefix_upper(state, x, length, slots):
      return prefix_lib.prefix_layers(upper, state, x, length, slots)[1]

    self._activations = activations
    rows = slice(2, None)
    self._score_lower = jitted(score_lower, rows=rows)
    self._score_upper = jitted(score_upper, rows=rows)
    self._prefix_lower = jitted(prefix_lower, static_argnames=('slots',))
    self._prefix_upper = jitted(prefix_upper, static_argnames=('slots',))

  def behind(
    self, state: ModelState, ids: tuple[int, ...], tokens: int, slots: int
  ) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A function from rows and their arrays to `scoring.score`.

    Args:
      state: The model.
      ids: What all rows begin with.
      tokens: T, to which it is padded in the layers.
      slots: P, to which it is padded in attention.
    """
    store = self._activations.of(state.params)
    compute_lower = functools.cache(
      lambda: self._prefix_lower(
        state, *prefix_lib.padded(ids, tokens), slots=slots
      )
    )

    def lower() -> Prefix | None:
      return compute_lower()[1] if ids else None

    @functools.cache
    def upper() -> Prefix | None:
      if not ids:
        return None
      x = store.get(_key(ids, ()))
      if x is None:
        x = trees.to_host(compute_lower()[0])[0, : len(ids)]
        store.keep(_key(ids, ()), x)
      padded = np.zeros((1, tokens, x.shape[1]), x.dtype)
      padded[0, : len(ids)] = x
      return self._prefix_upper(state, padded, np.int32(len(ids)), slots=slots)

    def score(rows: Sequence[Packed], lengths, tokens, *arrays):
      positions, branches, kinds, at, targets = arrays
      packed = lengths, positions, branches, kinds
      keys = [_key(ids, row) for row in rows]
      kept = [store.get(key) for key in keys]
      if all(x is not None for x in kept):
        x = np.zeros((*tokens.shape, kept[0].shape[1]), kept[0].dtype)
        for i, row in enumerate(kept):
          x[i, : len(row)] = row
      else:
        x = self._score_lower(state, lower(), tokens, *packed)
        if store.has_room:
          on_host = trees.to_host(x)
          for i, key in enumerate(keys):
            store.keep(key, on_host[i, : lengths[i]])
      return self._score_upper(state, upper(), x, at, targets, *packed)

    return score


def _key(prefix: Sequence[int], row: Packed | tuple[()]) -> bytes:
  """What tells texts apart that are packed in a row behind a prefix."""
  digest = hashlib.sha256()
  for part in (prefix, *row[:3]):  # ids, positions, branches
    array = np.asarray(part, np.int64)
    digest.update(array.size.to_bytes(8, 'little') + array.tobytes())
  return digest.digest()
