"""Log-likelihoods: one row a request, its context computed once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.engines.forward import Forward
from me_jax.engines.padding import pad_mask
from me_jax.engines.prefix import Prefix, arguments
from me_jax.models import llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import (
  CONTEXT_END,
  LAST,
  OTHER,
  PROMPT_END,
  ModelState,
  ScoreRequest,
  ScoreResult,
  Site,
)

_LOGIT_ROWS = 256  # positions whose V logits are held at once


class Packed(NamedTuple):
  """A context and its continuations in one row, a tree of depth one.

  Of the context only what is not shared with other requests.
  Each continuation (branch 1, 2, ...) sees the context (branch 0) and itself.
  Its last token predicts nothing, so it is not fed. `slots` say where the
  token `targets[j]` is predicted, `kinds` what each token is, see
  `typing.Fed`. The only continuation of a context ends with it, in what is
  fed, if it is one token; of several none does, for the context is no
  continuation's own.
  """

  ids: list[int]
  positions: list[int]
  branches: list[int]
  kinds: list[int]
  slots: list[int]
  targets: list[int]


def pack(request: ScoreRequest) -> Packed:
  """The row of a request.

  Raises:
    ValueError: The context or a continuation is empty, or all of the context
      or a part to be scored is shared.
  """
  context = list(request.context)
  if not context or not all(request.continuations):
    raise ValueError(
      'A ScoreRequest needs a context and continuations of at least one token '
      f'each, got {len(context)} and '
      f'{[len(c) for c in request.continuations]}.'
    )
  n, shared = len(context), request.shared
  if shared >= n or (shared and request.score_context):
    raise ValueError(
      f'A ScoreRequest may share less than its {n} tokens of context, and '
      f'none if it scores them; got shared={shared}, '
      f'score_context={request.score_context}.'
    )
  own = n - shared
  ends = [len(c) for c in request.continuations] == [1]
  row = Packed(
    context[shared:],
    list(range(shared, n)),
    [0] * own,
    [OTHER] * (own - 1) + [PROMPT_END if ends else CONTEXT_END],
    [],
    [],
  )
  if request.score_context:
    row.slots.extend(range(n - 1))
    row.targets.extend(context[1:])
  for branch, tokens in enumerate(request.continuations, start=1):
    first, fed = len(row.ids), len(tokens) - 1
    row.ids.extend(tokens[:-1])
    row.positions.extend(range(n, n + fed))
    row.branches.extend([branch] * fed)
    row.kinds.extend([*[OTHER] * (fed - 1), LAST] if fed else [])
    row.slots.extend([own - 1, *range(first, first + fed)])
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
    context_length=len(request.context),
  )


def stack(
  rows: Sequence[Packed], size: int, length: int, queries: int
) -> tuple[np.ndarray, ...]:
  """The arrays of `score`: lengths [size], then those of `Packed` as int32
  [size, length] or [size, queries], padded with the first token of the row
  (see `padding`), kinds with OTHER, slots and targets with zeros."""
  lengths = np.zeros(size, np.int32)
  lengths[: len(rows)] = [len(row.ids) for row in rows]
  widths = Packed(length, length, length, length, queries, queries)
  arrays = []
  for name, width in widths._asdict().items():
    array = np.zeros((size, width), np.int32)
    for i, row in enumerate(rows):
      values = getattr(row, name)
      if name in ('ids', 'positions', 'branches'):
        array[i] = values[0]
      array[i, : len(values)] = values
    arrays.append(array)
  return lengths, *arrays


def score(
  forward: Forward,
  state: ModelState,
  prefix: Prefix | None,
  lengths: jax.Array,
  ids: jax.Array,
  positions: jax.Array,
  branches: jax.Array,
  kinds: jax.Array,
  slots: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`token_logprobs` of stacked rows, all of which follow `prefix`; arrays
  [B, T] and [B, Q] as in `Packed`, lengths [B]."""
  x = forward.embed(state, ids)
  x = score_layers(
    forward, state, prefix, x, lengths, positions, branches, kinds
  ).x
  return read_scores(forward, state, x, slots, targets)


def tap(
  forward: Forward,
  state: ModelState,
  prefix: Prefix | None,
  lengths: jax.Array,
  ids: jax.Array,
  positions: jax.Array,
  branches: jax.Array,
  kinds: jax.Array,
  slots: jax.Array,
  site: Site,
) -> jax.Array:
  """float32 [B, Q, X]: what stands at a site in the slots of stacked rows. No
  layer above is run."""
  forward = forward._replace(stop=sites.layer_of(site) + 1)
  x = forward.embed(state, ids)
  content = score_layers(
    forward, state, prefix, x, lengths, positions, branches, kinds, taps=(site,)
  ).taps[site]
  content = jnp.take_along_axis(content, slots[..., None], axis=1)
  return content.astype(jnp.float32)


def score_layers(
  forward: Forward,
  state: ModelState,
  prefix: Prefix | None,
  x: jax.Array,
  lengths: jax.Array,
  positions: jax.Array,
  branches: jax.Array,
  kinds: jax.Array,
  taps: tuple[Site, ...] = (),
) -> llama.LayersOutput:
  """Stacked rows [B, T, D] through the layers of `forward`."""
  order = jnp.arange(x.shape[1])
  real = order < lengths[:, None]
  mask = (order[None, :] <= order[:, None])[None] & (
    (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
  )
  return forward(
    state,
    x,
    kinds=kinds,
    positions=positions,
    mask=pad_mask(mask, real),
    taps=taps,
    **arguments(prefix),
  )


def read_scores(
  forward: Forward,
  state: ModelState,
  x: jax.Array,
  slots: jax.Array,
  targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`token_logprobs` at the slots of rows that left the last layer."""
  x = jnp.take_along_axis(x, slots[..., None], axis=1)
  return token_logprobs(forward.config, state.params, x, targets)


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
