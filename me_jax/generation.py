"""Log-likelihoods and greedy text of a LLaMA, in batches of static shape.

A request is padded to a bucket and a batch to a constant size, so a function
compiles once per bucket and never per edit. Padding is masked and carries its
own positions: a batched answer equals the answer of one request alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import llama
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
_LOGIT_ROWS = 256  # positions whose V logits are held at once
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
    forward = _Forward(config, interventions)

    def traced(name, fn):
      def wrapped(*args):
        on_trace(name)
        return fn(forward, *args)

      return wrapped

    self._score_batch = jax.jit(traced('score', _score_batch))
    self._prefill = jax.jit(traced('prefill', _prefill), static_argnums=(3, 4))
    self._decode = jax.jit(traced('decode', _decode), donate_argnums=(1,))

  def score(
    self, state: ModelState, requests: Sequence[ScoreRequest]
  ) -> Iterator[tuple[int, ScoreResult]]:
    """Log-probabilities of every request's continuations."""
    rows = [_pack(r) for r in requests]
    shape = lambda i: (
      bucket(len(rows[i].ids)),
      bucket(len(rows[i].slots)),
    )
    for batch, (length, queries) in self._batches(len(rows), shape):
      size = self._padded(len(batch), length)
      arrays = [
        _stack([getattr(rows[i], name) for i in batch], size, width)
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
        yield i, _unpack(requests[i], logprobs[row], greedy[row])

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
    decided: set[int] = set()
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
          decided.add(row)
          stopped[row] = _DECIDED
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
          stop_reason=_STOP_REASONS[int(stopped[row])],
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


class _Forward(NamedTuple):
  """The model's layers with the editor's interventions in place."""

  config: ModelConfig
  editor_interventions: Callable[[Any], Interventions] | None

  def __call__(self, state: ModelState, ids, **kwargs) -> llama.LayersOutput:
    functions = (
      self.editor_interventions(state.editor)
      if self.editor_interventions
      else None
    )
    x = llama.embed(self.config, state.params, ids)
    return llama.run_layers(
      self.config, state.params, x, interventions=functions, **kwargs
    )


class _Packed(NamedTuple):
  """A context and its continuations in one row, a tree of depth one.

  Each continuation (branch 1, 2, ...) sees the context (branch 0) and itself.
  Its last token predicts nothing, so it is not fed. `slots` say where the
  token `targets[j]` is predicted.
  """

  ids: list[int]
  positions: list[int]
  branches: list[int]
  slots: list[int]
  targets: list[int]


def _pack(request: ScoreRequest) -> _Packed:
  context = list(request.context)
  if not context or not all(request.continuations):
    raise ValueError(
      'A ScoreRequest needs a context and continuations of at least one token '
      f'each, got {len(context)} and '
      f'{[len(c) for c in request.continuations]}.'
    )
  n = len(context)
  row = _Packed(context, list(range(n)), [0] * n, [], [])
  if request.score_context:
    row.slots.extend(range(n - 1))
    row.targets.extend(context[1:])
  for branch, tokens in enumerate(request.continuations, start=1):
    first, fed = len(row.ids), len(tokens) - 1
    row.ids.extend(tokens[:-1])
    row.positions.extend(range(n, n + fed))
    row.branches.extend([branch] * fed)
    row.slots.extend([n - 1, *range(first, first + fed)])
    row.targets.extend(tokens)
  return row


def _unpack(
  request: ScoreRequest, logprobs: np.ndarray, greedy: np.ndarray
) -> ScoreResult:
  at = len(request.context) - 1 if request.score_context else 0
  context_logprobs = logprobs[:at] if request.score_context else None
  pieces = []
  for tokens in request.continuations:
    pieces.append(slice(at, at + len(tokens)))
    at += len(tokens)
  return ScoreResult(
    logprobs=tuple(logprobs[p] for p in pieces),
    greedy=tuple(greedy[p] for p in pieces),
    context_logprobs=context_logprobs,
  )


def _stack(rows: list[list[int]], size: int, width: int) -> np.ndarray:
  out = np.zeros((size, width), np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out


def _score_batch(
  forward, state, lengths, ids, positions, branches, slots, targets
):
  config = forward.config
  order = jnp.arange(ids.shape[1])
  real = order < lengths[:, None]
  mask = (
    real[:, None, :]
    & (order[None, :] <= order[:, None])[None]
    & (
      (branches[:, None, :] == 0)
      | (branches[:, None, :] == branches[:, :, None])
    )
  )
  x = forward(state, ids, positions=positions, mask=mask).x
  x = jnp.take_along_axis(x, slots[..., None], axis=1)
  return token_logprobs(config, state.params, x, targets)


def token_logprobs(
  config: ModelConfig, params, x: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target and the arg-max token.

  Works through the positions in pieces: all logits at once would be V times
  as large as the targets.

  Args:
    config: The model's shape.
    params: The model's weights.
    x: Residual stream after all layers, [B, Q, D].
    targets: Token ids [B, Q].

  Returns:
    float32 [B, Q] and int32 [B, Q].
  """

  def piece(inputs):
    x, targets = inputs
    logits = llama.logits(config, params, x)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return (
      chosen - jax.nn.logsumexp(logits, axis=-1),
      jnp.argmax(logits, axis=-1).astype(jnp.int32),
    )

  rows = targets.size
  pieces = -(-rows // _LOGIT_ROWS)
  size = -(-rows // pieces)
  pad = pieces * size - rows
  flat = lambda a: jnp.pad(
    a.reshape(rows, *a.shape[2:]), ((0, pad), *((0, 0),) * (a.ndim - 2))
  ).reshape(pieces, size, *a.shape[2:])
  logprobs, greedy = jax.lax.map(piece, (flat(x), flat(targets)))
  unflat = lambda a: a.reshape(-1)[:rows].reshape(targets.shape)
  return unflat(logprobs), unflat(greedy)


class _Loop(NamedTuple):
  """State of greedy decoding; B rows, S slots of which the prompt fills some.

  `next_token` was chosen but not yet fed; it counts only if its row goes on.
  """

  step: jax.Array  # [] tokens chosen so far
  tokens: jax.Array  # [B, new]
  count: jax.Array  # [B] tokens that belong to the answer
  stop: jax.Array  # [B] index into _STOP_REASONS, 0 while running
  limits: jax.Array  # [B]
  positions: jax.Array  # [B] of the next token
  valid: jax.Array  # [B, S]
  key_positions: jax.Array  # [B, S]
  prompt_slots: jax.Array  # []
  eos: jax.Array  # []
  cache: llama.Cache


_STOP_REASONS = ('', 'eos', 'length', 'nonfinite', 'decided')
_RUNNING, _EOS, _LENGTH, _NONFINITE, _DECIDED = range(5)


def _prefill(forward, state, prompt, limits, new, eos) -> _Loop:
  ids, valid = prompt
  config = forward.config
  batch, length = ids.shape
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  pad = ((0, 0), (0, new))
  valid, key_positions = jnp.pad(valid, pad), jnp.pad(positions, pad)
  output = forward(
    state,
    ids,
    positions=positions,
    mask=llama.causal_mask(positions, key_positions, valid),
    cache=llama.empty_cache(config, batch, length + new),
    cache_index=0,
  )
  loop = _Loop(
    step=jnp.zeros((), jnp.int32),
    tokens=jnp.zeros((batch, new), jnp.int32),
    count=jnp.zeros(batch, jnp.int32),
    stop=jnp.where(limits > 0, _RUNNING, _LENGTH).astype(jnp.int32),
    limits=limits,
    positions=positions[:, -1] + 1,
    valid=valid,
    key_positions=key_positions,
    prompt_slots=jnp.asarray(length, jnp.int32),
    eos=jnp.asarray(eos, jnp.int32),
    cache=output.cache,
  )
  return _choose(loop, llama.logits(config, state.params, output.x[:, -1]))


def _choose(loop: _Loop, logits: jax.Array) -> _Loop:
  """Appends the arg-max token of each running row, or stops the row."""
  token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  running = loop.stop == _RUNNING
  finite = jnp.isfinite(logits).all(axis=-1)
  ended = jnp.where(~finite, _NONFINITE, jnp.where(token == loop.eos, _EOS, 0))
  takes = running & (ended == _RUNNING)
  count = loop.count + takes
  stop = jnp.where(
    running,
    jnp.where(
      ended != _RUNNING, ended, jnp.where(count >= loop.limits, _LENGTH, 0)
    ),
    loop.stop,
  ).astype(jnp.int32)
  return loop._replace(
    step=loop.step + 1,
    tokens=loop.tokens.at[:, loop.step].set(jnp.where(takes, token, 0)),
    count=count,
    stop=stop,
  )


def _decode(forward, state, loop: _Loop, until) -> _Loop:
  """Chooses tokens until each row has `until` of them or stopped."""
  config = forward.config

  def step(loop: _Loop) -> _Loop:
    slot = loop.prompt_slots + loop.step - 1
    positions = loop.positions[:, None]
    fed = loop.tokens[:, loop.step - 1, None]
    valid = loop.valid.at[:, slot].set(True)
    key_positions = loop.key_positions.at[:, slot].set(loop.positions)
    output = forward(
      state,
      fed,
      positions=positions,
      mask=llama.causal_mask(positions, key_positions, valid),
      cache=loop.cache,
      cache_index=slot,
    )
    loop = loop._replace(
      valid=valid,
      key_positions=key_positions,
      positions=loop.positions + 1,
      cache=output.cache,
    )
    return _choose(loop, llama.logits(config, state.params, output.x[:, -1]))

  goes_on = lambda loop: (loop.step < until) & (loop.stop == _RUNNING).any()
  return jax.lax.while_loop(goes_on, step, loop)
