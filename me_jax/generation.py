"""Log-likelihoods and greedy text of a LLaMA, in batches of static shape.

A request is padded to a bucket and a batch to a constant size, so a function
compiles once per bucket and never per edit. Padding is masked and carries its
own positions: a batched answer equals the answer of one request alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.engines import decoding, scoring
from me_jax.engines.forward import Forward
from me_jax.models.config import ModelConfig
from me_jax.typing import (
  GenerateRequest,
  GenerateResult,
  Interventions,
  ModelState,
  ScoreRequest,
  ScoreResult,
  Tokenizer,
)

BUCKETS = (
  16,
  32,
  64,
  96,
  128,
  192,
  256,
  384,
  512,
  640,
  768,
  1024,
  1280,
  1536,
  2048,
  4096,
)
_DECIDE_EVERY = 4  # decoded tokens between two looks at `decided`


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
    batch_tokens: int = 4096,
    max_batch: int = 32,
    interventions: Callable[[Any], Interventions] | None = None,
    on_trace: Callable[[str], None] = lambda name: None,
  ):
    """Binds a model's shape; the weights come with each call.

    Args:
      config: The model's shape.
      tokenizer: Only to decode what is generated.
      batch_tokens: Padded tokens in one batch, at most.
      max_batch: Requests in one batch, at most.
      interventions: From the editor's state to functions at sites.
      on_trace: Called with 'score', 'prefill' or 'decode' at each compile.
    """
    self._tokenizer = tokenizer
    self._batch_tokens = batch_tokens
    self._max_batch = max_batch
    forward = Forward(config, interventions)

    def traced(name, fn):
      def wrapped(*args):
        on_trace(name)
        return fn(forward, *args)

      return wrapped

    self._score_batch = jax.jit(traced('score', scoring.score_batch))
    self._prefill = jax.jit(
      traced('prefill', decoding.prefill), static_argnums=(3, 4)
    )
    self._decode = jax.jit(
      traced('decode', decoding.decode), donate_argnums=(1,)
    )

  def score(
    self, state: ModelState, requests: Sequence[ScoreRequest]
  ) -> Iterator[tuple[int, ScoreResult]]:
    """Log-probabilities of every request's continuations."""
    rows = [scoring.pack(r) for r in requests]
    shape = lambda i: (
      bucket(len(rows[i].ids)),
      bucket(len(rows[i].slots)),
    )
    for batch, (length, queries) in self._batches(len(rows), shape):
      size = self._padded(len(batch), length)
      arrays = [
        scoring.stack([getattr(rows[i], name) for i in batch], size, width)
        for name, width in (
          ('ids', length),
          ('positions', length),
          ('branches', length),
          ('slots', queries),
          ('targets', queries),
        )
      ]
      lengths = np.zeros(size, np.int32)
      lengths[: len(batch)] = [len(rows[i].ids) for i in batch]
      logprobs, greedy = jax.device_get(
        self._score_batch(state, lengths, *arrays)
      )
      for row, i in enumerate(batch):
        yield i, scoring.unpack(requests[i], logprobs[row], greedy[row])

  def generate(
    self, state: ModelState, requests: Sequence[GenerateRequest]
  ) -> Iterator[tuple[int, GenerateResult]]:
    """Greedy continuations, each until its end token, limit or decision."""
    if not all(r.prompt for r in requests):
      raise ValueError(
        'A GenerateRequest needs a prompt of at least one token.'
      )
    shape = lambda i: (
      bucket(len(requests[i].prompt)),
      bucket(requests[i].max_new_tokens),
    )
    for batch, (length, new) in self._batches(len(requests), shape):
      size = self._padded(len(batch), length)
      yield from self._generate_batch(
        state, [(i, requests[i]) for i in batch], size, length, new
      )

  def _generate_batch(self, state, batch, size, length, new):
    ids = np.zeros((size, length), np.int32)
    valid = np.zeros((size, length), bool)
    # A row without a request may produce nothing.
    limits = np.zeros(size, np.int32)
    for row, (_, request) in enumerate(batch):
      ids[row, length - len(request.prompt) :] = request.prompt
      valid[row, length - len(request.prompt) :] = True
      limits[row] = request.max_new_tokens
    loop = self._prefill(state, (ids, valid), limits, new, self.eos_id)
    decides = any(r.decided for _, r in batch)
    until = 1 if decides else new
    while True:
      loop = self._decode(state, loop, until)
      stopped = np.array(loop.stop)
      if not decides or until >= new:
        break
      tokens, counts = jax.device_get((loop.tokens, loop.count))
      for row, (_, request) in enumerate(batch):
        text = self._tokenizer.decode(tokens[row, : counts[row]].tolist())
        if request.decided and not stopped[row] and request.decided(text):
          stopped[row] = decoding.DECIDED
      if stopped.all():
        break
      loop = loop._replace(stop=jnp.asarray(stopped))
      until = min(until + _DECIDE_EVERY, new)
    tokens, counts = jax.device_get((loop.tokens, loop.count))
    for row, (i, _) in enumerate(batch):
      new_tokens = tokens[row, : counts[row]]
      yield (
        i,
        GenerateResult(
          tokens=new_tokens,
          text=self._tokenizer.decode(new_tokens.tolist()),
          stop_reason=decoding.STOP_REASONS[int(stopped[row])],
        ),
      )

  @property
  def eos_id(self) -> int:
    """The token that ends a generation."""
    return self._tokenizer.eos_id

  def _batch_size(self, length: int) -> int:
    return max(1, min(self._max_batch, self._batch_tokens // length))

  def _padded(self, rows: int, length: int) -> int:
    """Rows of a batch with padding: the full size, or a power of four, so
    that a few requests cost little and compile seldom."""
    full = self._batch_size(length)
    return next((n for n in (1, 4, 16) if rows <= n < full), full)

  def _batches(self, count: int, shape: Callable[[int], tuple[int, int]]):
    """Indices of requests that share a shape, longest first, with the shape.

    Longest first, so that running out of memory happens at once or never.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i in range(count):
      by_shape.setdefault(shape(i), []).append(i)
    for key in sorted(by_shape, reverse=True):
      indices, size = by_shape[key], self._batch_size(key[0])
      for first in range(0, len(indices), size):
        yield indices[first : first + size], key
