"""Log-likelihoods and greedy text of a LLaMA, in batches of static shape.

A request is padded to a bucket and a batch to a constant size, so a function
compiles once per bucket and never per edit. Padding is masked and carries its
own positions: a batched answer equals the answer of one request alone. What
requests begin with in common is computed once. On a mesh (see `sharding`) a
batch is of as many rows on each group of devices as it is on one device.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.engines import prefix, scoring
from me_jax.engines.forward import Forward
from me_jax.engines.functions import Functions
from me_jax.engines.lower_layers import Activations
from me_jax.engines.stream import DeviceFunctions, Stream
from me_jax.models.config import ModelConfig
from me_jax.typing import (
  EditorInterventions,
  GenerateRequest,
  GenerateResult,
  ModelState,
  ScoreRequest,
  ScoreResult,
  Site,
  Tokenizer,
)

BUCKETS = (
  *range(16, 128, 16),
  *range(128, 256, 32),
  *range(256, 512, 64),
  *range(512, 1024, 128),
  *range(1024, 2048, 256),
  2048,
  4096,
)
# Slots that only attention sees, which costs less: fewer shapes to compile.
_COARSE = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_QUERIES = (4, *BUCKETS)
_ANSWERS = (16, 128, 512, 2048, 4096)

# Indices of requests, and the arrays of `scoring.stack`.
_Stacked = tuple[Sequence[int], tuple[np.ndarray, ...]]


def bucket(length: int, buckets: Sequence[int] = BUCKETS) -> int:
  """The smallest bucket that holds `length`.

  Raises:
    ValueError: None does.
  """
  for size in sorted(buckets):
    if length <= size:
      return size
  raise ValueError(
    f'A sequence of {length} tokens exceeds the longest bucket, '
    f'{max(buckets)}. Truncate the prompt first.'
  )


class LlamaPredictor:
  """Answers `ScoreRequest`s and `GenerateRequest`s; see `typing.Predictor`."""

  def __init__(
    self,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int | None = None,
    cache_tokens: int = 16_384,
    max_batch: int = 32,
    refill: bool = True,
    activations: Activations | None = None,
    interventions: Callable[[Any], EditorInterventions] | None = None,
    shown: Callable[[Any], Any] | None = None,
    whole_prompts: bool = False,
    on_trace: Callable[[str], None] = lambda name: None,
  ):
    """Binds a model's shape; the weights come with each call.

    Args:
      config: The model's shape.
      tokenizer: Only to decode what is generated.
      batch_tokens: Padded tokens put through the model at once, at most; None
        for 1,024 on a processor, whose caches hold no more, else 4,096. This
        and the next two for each group of devices along 'data'.
      cache_tokens: Tokens whose keys and values are held while decoding, at
        most.
      max_batch: Requests in one batch, at most.
      refill: See `Stream`.
      activations: Where what lies below the first edited layer is kept for
        texts that are scored again; None computes it each time.
      interventions: From the editor's state to functions at sites; see
        `Editor`.
      shown: From the editor's state to what the functions read of it; None
        for all. See `Editor`.
      whole_prompts: The functions need all of a prompt at once: what requests
        share is computed for each.
      on_trace: Called with 'score', 'tap', 'prefix', 'prefill', 'insert',
        'grow', 'keep' or 'decode' at each compile.
    """
    self._tokenizer = tokenizer
    on_processor = jax.default_backend() == 'cpu'
    self._batch_tokens = batch_tokens or (1024 if on_processor else 4096)
    self._cache_tokens = cache_tokens
    self._max_batch = max_batch
    self._refill = refill
    self._whole_prompts = whole_prompts
    self._shown = shown
    self._functions = functools.cache(
      lambda mesh: Functions(
        Forward(config, interventions),
        mesh=mesh,
        activations=activations,
        on_trace=on_trace,
      )
    )

  def score(
    self, state: ModelState, requests: Sequence[ScoreRequest]
  ) -> Iterator[tuple[int, ScoreResult]]:
    """Log-probabilities of every request's continuations."""
    state = self._read(state)
    mesh = sharding.mesh_of(state.params)
    requests = self._unshared(requests)
    rows = [scoring.pack(r) for r in requests]
    for ids, batches in self._stacked(requests, rows, mesh):
      score = self._score_behind(state, ids)
      for batch, arrays in batches:
        packed = [rows[i] for i in batch]
        logprobs, greedy = trees.to_host(score(packed, *arrays))
        for row, i in enumerate(batch):
          yield i, scoring.unpack(requests[i], logprobs[row], greedy[row])

  def tap(
    self,
    state: ModelState,
    site: Site,
    requests: Sequence[ScoreRequest],
    slots: Sequence[Sequence[int]],
  ) -> Iterator[tuple[int, np.ndarray]]:
    """What stands at a site, float32 [len(slots[i]), X] of request i.

    Args:
      state: The model.
      site: See `models.sites`.
      requests: Texts, as they are scored.
      slots: Of each, the tokens that are looked at: places in the whole row,
        the `scoring.Packed` of a request that shares nothing; at least one.
    """
    state = self._read(state)
    mesh = sharding.mesh_of(state.params)
    requests = [
      # A token that is shared is in no row.
      dataclasses.replace(r, shared=0) if min(at) < r.shared else r
      for r, at in zip(self._unshared(requests), slots, strict=True)
    ]
    rows = [
      scoring.pack(r)._replace(
        slots=[slot - r.shared for slot in at], targets=[0] * len(at)
      )
      for r, at in zip(requests, slots, strict=True)
    ]
    tap = self._functions(mesh).tap
    for ids, batches in self._stacked(requests, rows, mesh):
      common = self._common(state, ids)
      for batch, (*arrays, _) in batches:
        content = trees.to_host(tap(state, common, *arrays, site=site))
        for row, i in enumerate(batch):
          yield i, content[row, : len(slots[i])]

  def generate(
    self,
    state: ModelState,
    requests: Sequence[GenerateRequest],
    *,
    skip: Collection[int] = (),
  ) -> Iterator[tuple[int, GenerateResult]]:
    """Greedy continuations, each until its end token, limit or decision.

    Args:
      state: The model.
      requests: What is asked.
      skip: Indices of requests that need no answer any more. They count where
        the shapes of arrays are chosen, so the others' answers are what they
        would be without it; but the last few rows of a batch go on in a smaller
        one, and which those are depends on it. On a processor that changes no
        bit, elsewhere near ties may fall another way.

    Raises:
      ValueError: A request has no prompt token of its own, or is too long.
    """
    state = self._read(state)
    mesh = sharding.mesh_of(state.params)
    functions = self._functions(mesh)
    requests = self._unshared(requests)
    for r in requests:
      if len(r.prompt) <= r.shared:
        raise ValueError(
          'A GenerateRequest needs a prompt of at least one token that is not '
          f'shared, got {len(r.prompt)} tokens, {r.shared} of them shared.'
        )
    eos = np.int32(self.eos_id)
    shape = lambda i: (
      bucket(len(requests[i].prompt) - requests[i].shared, _COARSE),
      bucket(requests[i].max_new_tokens, _ANSWERS),
    )
    shared = lambda r: r.prompt[: r.shared]
    for ids, members in _by_prefix(requests, shared):
      if all(i in skip for i in members):
        continue
      common = self._common(state, ids)
      device = DeviceFunctions(
        prefill=lambda *args, common=common: functions.prefill(
          state, common, *args, eos
        ),
        insert=functions.insert,
        decode=lambda rows, steps, common=common: functions.decode(
          state, common, rows, np.int32(steps), eos
        ),
        grow=lambda rows, new: functions.grow(rows, new=new),
        keep=functions.keep,
        empty_rows=functions.empty_rows,
      )
      for (slots, new), indices in _by_shape(members, shape):
        rows = max(1, min(self._max_batch, self._cache_tokens // (slots + new)))
        batch = _padded(len(indices), rows, mesh)
        stream = Stream(
          device=device,
          tokenizer=self._tokenizer,
          batch=batch,
          slots=slots,
          new=new,
          data_size=sharding.data_size(mesh),
          prefill_shape=functools.partial(self._prefill_shape, batch, mesh),
          refill=self._refill,
        )
        yield from stream([(i, requests[i]) for i in indices if i not in skip])

  @property
  def eos_id(self) -> int:
    """The token that ends a generation."""
    return self._tokenizer.eos_id

  def _read(self, state: ModelState) -> ModelState:
    """The state, with as much of the editor's as its functions read."""
    if self._shown is None:
      return state
    return state._replace(editor=self._shown(state.editor))

  def _unshared(self, requests: Sequence[Any]) -> Sequence[Any]:
    """The requests, sharing nothing if the editor needs whole prompts."""
    if not self._whole_prompts:
      return requests
    return [dataclasses.replace(r, shared=0) for r in requests]

  def _stacked(
    self,
    requests: Sequence[ScoreRequest],
    rows: Sequence[scoring.Packed],
    mesh: Mesh | None,
  ) -> Iterator[tuple[tuple[int, ...], Iterator[_Stacked]]]:
    """By shared prefix, what is computed together."""
    size = lambda i: (len(rows[i].ids), len(rows[i].slots))

    def stacked(batch: Sequence[int]) -> _Stacked:
      packed = [rows[i] for i in batch]
      length = bucket(max(len(row.ids) for row in packed))
      queries = bucket(max(len(row.slots) for row in packed), _QUERIES)
      full = _padded(len(batch), self._rows(length), mesh)
      return batch, scoring.stack(packed, full, length, queries)

    for ids, members in _by_prefix(requests, lambda r: r.context[: r.shared]):
      yield ids, map(stacked, self._batches(members, size, mesh))

  def _score_behind(
    self, state: ModelState, ids: tuple[int, ...]
  ) -> Callable[..., tuple[jax.Array, jax.Array]]:
    functions = self._functions(sharding.mesh_of(state.params))
    if functions.scorer:
      length = bucket(len(ids))
      return functions.scorer.behind(
        state, ids, length, bucket(length, _COARSE)
      )
    common = self._common(state, ids)
    return lambda rows, *arrays: functions.score(state, common, *arrays)

  def _common(
    self, state: ModelState, ids: tuple[int, ...]
  ) -> prefix.Prefix | None:
    if not ids:
      return None
    length = bucket(len(ids))
    return self._functions(sharding.mesh_of(state.params)).prefix(
      state, *prefix.padded(ids, length), slots=bucket(length, _COARSE)
    )

  def _prefill_shape(
    self, batch: int, mesh: Mesh | None, length: int
  ) -> tuple[int, int]:
    """As many prompts at once as rows are waited for, a quarter of them."""
    slots, groups = bucket(length), sharding.data_size(mesh)
    own = batch // groups
    return groups * min(max(1, own // 4), self._rows(slots)), slots

  def _rows(self, length: int) -> int:
    """Of a batch, on each group of devices."""
    return max(1, min(self._max_batch, self._batch_tokens // length))

  def _batches(
    self,
    indices: Sequence[int],
    size: Callable[[int], tuple[int, int]],
    mesh: Mesh | None,
  ) -> Iterator[Sequence[int]]:
    """Indices of requests that are computed together: longest first, so that
    neighbours need little padding, and running out of memory happens at once
    or never."""
    waiting = sorted(indices, key=lambda i: (size(i), -i), reverse=True)
    while waiting:
      count = self._rows(bucket(size(waiting[0])[0])) * sharding.data_size(mesh)
      yield waiting[:count]
      waiting = waiting[count:]


def _padded(rows: int, full: int, mesh: Mesh | None) -> int:
  """Rows of a batch with padding: the full size, or one of a few smaller, so
  that a few requests cost little and compile seldom. `full` and those are of
  each group of devices."""
  groups = sharding.data_size(mesh)
  sizes = (n for n in (1, 4, 8, 16) if rows <= n * groups and n < full)
  return next(sizes, full) * groups


def _by_prefix(
  requests: Sequence[Any], shared: Callable[[Any], tuple[int, ...]]
) -> list[tuple[tuple[int, ...], list[int]]]:
  """Indices of requests with the same prefix, in order of appearance."""
  groups: dict[tuple[int, ...], list[int]] = {}
  for i, request in enumerate(requests):
    groups.setdefault(shared(request), []).append(i)
  return list(groups.items())


def _by_shape(
  indices: Sequence[int], shape: Callable[[int], tuple[int, int]]
) -> list[tuple[tuple[int, int], list[int]]]:
  """Indices of requests that share a shape, longest first."""
  groups: dict[tuple[int, int], list[int]] = {}
  for i in indices:
    groups.setdefault(shape(i), []).append(i)
  return sorted(groups.items(), reverse=True)
