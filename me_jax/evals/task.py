"""What a measure of a model is made of."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from me_jax import files
from me_jax.typing import (
  GenerateRequest,
  GenerateResult,
  ScoreRequest,
  ScoreResult,
)

Request = ScoreRequest | GenerateRequest
Result = ScoreResult | GenerateResult
Sample = dict[str, Any]  # plain JSON, without NaN or infinity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """One thing to ask a model.

  Attributes:
    id: Unique within the task.
    group: What subsets are stratified by, e.g. an MMLU subject.
    fields: Whatever the task builds its prompt and its score from.
  """

  id: str
  group: str
  fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """One number about one model.

  Attributes:
    name: Unique within the task.
    value: Accuracies and shares are in per cent; a perplexity may be infinite.
    n: Number of items behind it.
    ci_low: Lower end of the 95 % interval; None where there is none.
    ci_high: Upper end.
  """

  name: str
  value: float
  n: int
  ci_low: float | None = None
  ci_high: float | None = None


@runtime_checkable
class Task(Protocol):
  """A measure: which items, what is asked, and how answers are scored.

  Attributes:
    name: As in the registry.
    mode: 'ppl' (asks `ScoreRequest`s) or 'gen' (asks `GenerateRequest`s).
  """

  name: str
  mode: str

  def items(self) -> Sequence[Item]:
    """All items, in the order of the data file."""
    ...

  def request(self, item: Item) -> Request:
    """What the model is asked; the same for every model."""
    ...

  def sample(self, item: Item, result: Result) -> Sample:
    """The record of one answer, in plain JSON.

    Fields where they apply, named as in lm-evaluation-harness where it has
    them: target, resps (what the model gave), filtered_resps (what was read
    off it), correct, n_tokens, stop_reason, nonfinite. Whoever stores the
    record adds doc_id, group, prompt_hash and state_fingerprint.
    """
    ...

  def aggregate(
    self, samples: Sequence[Sample], *, complete: bool
  ) -> list[Metric]:
    """Scores of stored samples, the headline score first.

    Args:
      samples: As stored, in the order of `items`.
      complete: They should cover all items; a task that averages over groups
        raises ValueError if a group is missing.
    """
    ...


def prompt_hash(request: Request) -> str:
  """16 hex digits of a SHA-256 over all that the model is asked."""
  if isinstance(request, ScoreRequest):
    asked = [request.context, request.continuations, request.score_context]
  else:
    stops_early = request.decided is not None
    asked = [request.prompt, request.max_new_tokens, stops_early]
  return files.short_hash(asked)


def fingerprint(task: Task) -> str:
  """16 hex digits that stand for the task's data: every item with its answer,
  and one prompt of each group, which holds the exemplars."""
  digest = hashlib.sha256()
  groups = set()
  for item in task.items():
    content = files.canonical_json([item.id, item.group, item.fields])
    digest.update(content.encode())
    if item.group not in groups:
      groups.add(item.group)
      digest.update(prompt_hash(task.request(item)).encode())
  return digest.hexdigest()[:16]
