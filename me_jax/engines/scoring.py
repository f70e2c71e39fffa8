"""Log-likelihoods: one row a request, its context computed once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.engines.forward import Forward
from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import ModelState, ScoreRequest, ScoreResult

_LOGIT_ROWS = 256  # positions whose V logits are held at once


class Packed(NamedTuple):
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


def pack(request: ScoreRequest) -> Packed:
  """The row of a request.

  Raises:
    ValueError: The context or a continuation is empty.
  """
  context = list(request.context)
  if not context or not all(request.continuations):
    raise ValueError(
      'A ScoreRequest needs a context and continuations of at least one token '
      f'each, got {len(context)} and '
      f'{[len(c) for c in request.continuations]}.'
    )
  n = len(context)
  row = Packed(context, list(range(n)), [0] * n, [], [])
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


def unpack(
  request: ScoreRequest, logprobs: np.ndarray, greedy: np.ndarray
) -> ScoreResult:
  """The answer to a request from its row's log-probabilities and arg-maxes,
  both in the order of `pack(request).targets`."""
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


def stack(rows: list[list[int]], size: int, width: int) -> np.ndarray:
  """int32 [size, width], zeros where there is nothing."""
  out = np.zeros((size, width), np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out


def score_batch(
  forward: Forward,
  state: ModelState,
  lengths: jax.Array,
  ids: jax.Array,
  positions: jax.Array,
  branches: jax.Array,
  slots: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`token_logprobs` of stacked rows; arrays [B, T] and [B, Q] as in
  `Packed`, lengths [B]."""
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
