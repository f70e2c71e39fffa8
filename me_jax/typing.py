"""Types that cross package borders.

Dimension letters: B batch, T query tokens, S cached tokens, D embed, F MLP
hidden, N heads, K key-value heads, H head size, V vocabulary, R edit rank.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

DTYPES = ('float32', 'bfloat16')  # that a model may compute in
Params = dict[str, Any]  # nested; leaves are arrays
ParamPath = str  # 'layers/5/mlp/down_proj/kernel'
Site = str  # 'layers/5/mlp/key'
Taps = dict[Site, jax.Array]
# fn(output of the site, what the site was computed from) -> new output
Interventions = Mapping[Site, Callable[[jax.Array, jax.Array], jax.Array]]

# What a token is to whoever puts it through the model. Of a scored continuation
# the last token is never fed, for it predicts nothing. Padding is OTHER, as is
# the rest of a prompt and of a continuation.
OTHER = 0
CONTEXT_END = 1  # the last token of a context whose continuations are scored
PROMPT_END = 2  # the last token of a prompt, with which a pass ends, too
NEW = 3  # a generated token, fed alone
LAST = 4  # the last token of a scored continuation that is fed


class Fed(NamedTuple):
  """Tokens as they are put through the model together. A pytree.

  Attributes:
    kinds: int32 [B, T], OTHER, CONTEXT_END, PROMPT_END, NEW or LAST.
    positions: int32 [B, T], the place of each in its text; padding has that
      of a real token.
  """

  kinds: jax.Array
  positions: jax.Array


# The same for an editor, whose functions are also told what is fed.
EditorInterventions = Mapping[
  Site, Callable[[jax.Array, jax.Array, Fed], jax.Array]
]


class ModelState(NamedTuple):
  """A model after some edits: all that a prediction depends on. A pytree."""

  params: Params
  editor: Any = None  # what the editing method carries along, a pytree


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRequest:
  """How likely is each continuation after one context?

  The context is computed once for all continuations.

  Attributes:
    context: Token ids, at least one, special tokens included.
    continuations: Token ids of each, none empty.
    score_context: Also return the log-probabilities of `context[1:]`.
    shared: So many first tokens of `context` are computed once for all
      requests that share them; see `prefixes.shared_lengths`.
  """

  context: tuple[int, ...]
  continuations: tuple[tuple[int, ...], ...]
  score_context: bool = False
  shared: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreResult:
  """Answers to a `ScoreRequest`, natural logarithms, float32.

  Attributes:
    logprobs: Per continuation an array [len(continuation)].
    greedy: Per continuation the arg-max token at each of its positions, under
      teacher forcing, int32 [len(continuation)]; the lowest id wins a tie.
    context_logprobs: float32 [len(context) - 1], or None if not asked for.
    context_length: Tokens of the context.
  """

  logprobs: tuple[np.ndarray, ...]
  greedy: tuple[np.ndarray, ...]
  context_logprobs: np.ndarray | None
  context_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateRequest:
  """Greedy continuation of one prompt.

  Attributes:
    prompt: Token ids, special tokens included.
    max_new_tokens: At most so many.
    decided: Called with the text so far, less the bytes of an unfinished
      character; True when no continuation can change what will be read off
      it. The answer ends with the token that makes it true.
    shared: So many first tokens of `prompt` are computed once for all
      requests that share them.
  """

  prompt: tuple[int, ...]
  max_new_tokens: int
  decided: Callable[[str], bool] | None = None
  shared: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateResult:
  """New tokens only.

  Attributes:
    tokens: int32 [n]; the end token and what follows it are not included.
    text: `tokens` decoded, special tokens skipped.
    stop_reason: 'eos', 'length', 'decided' or 'nonfinite' (a logit was NaN or
      infinite; `tokens` ends before it).
  """

  tokens: np.ndarray
  text: str
  stop_reason: str


@runtime_checkable
class Predictor(Protocol):
  """What an evaluation may ask of a model. Results come as they are ready,
  in any order, each with the index of its request; none for those to skip."""

  def score(
    self, state: ModelState, requests: Sequence[ScoreRequest]
  ) -> Iterator[tuple[int, ScoreResult]]: ...

  def generate(
    self,
    state: ModelState,
    requests: Sequence[GenerateRequest],
    *,
    skip: Collection[int] = (),
  ) -> Iterator[tuple[int, GenerateResult]]: ...


@runtime_checkable
class SitePredictor(Predictor, Protocol):
  """A predictor that also shows what stands inside the model, see
  `generation.LlamaPredictor.tap`."""

  def tap(
    self,
    state: ModelState,
    site: Site,
    requests: Sequence[ScoreRequest],
    slots: Sequence[Sequence[int]],
  ) -> Iterator[tuple[int, np.ndarray]]: ...


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back."""

  eos_id: int
  special_ids: frozenset[int]

  def encode(self, text: str) -> list[int]:
    """Ids with exactly the special tokens that this tokenizer adds."""
    ...

  def encode_with_offsets(
    self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """`encode`, and the [start, end) characters of each id; special tokens
    have an empty span."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text of `ids`, special tokens skipped."""
    ...
