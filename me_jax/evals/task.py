"""What a measure of a model is made of."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from me_jax import files
from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources
from me_jax.typing import (
  GenerateRequest,
  GenerateResult,
  ScoreRequest,
  ScoreResult,
  Tokenizer,
)

Request = ScoreRequest | GenerateRequest
Result = ScoreResult | GenerateResult
Record = dict[str, Any]  # plain JSON, without NaN or infinity


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
class ProgramRunner(Protocol):
  """What runs a program that a model wrote; see `sandbox`."""

  def run(self, program: str, tests: Sequence[str]) -> Any:
    """An outcome with `category` and `detail`."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskContext:
  """What a task is made from.

  Attributes:
    sources: Where its data are.
    tokenizer: The model's; None where tasks are only listed: then `request` is
      out of reach.
    settings: Profile and shortcuts.
    is_chat: Dialogues are put to the model in LLaMA-2's chat markup.
    window: Tokens of a prompt with its answer, at most.
    sandbox: Runs the programs that a model wrote; None where nobody allowed
      it: then they cannot be scored.
  """

  sources: DataSources
  tokenizer: Tokenizer | None = None
  settings: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  is_chat: bool = False
  window: int = 2048
  sandbox: ProgramRunner | None = None


@runtime_checkable
class Task(Protocol):
  """A measure: which items, what is asked, and how answers are scored.

  Attributes:
    name: As in the registry.
    version: The protocol that it follows, e.g. an OpenCompass configuration.
    context: What it was made from.
    mode: 'ppl' (asks `ScoreRequest`s) or 'gen' (asks `GenerateRequest`s).
  """

  name: str
  version: str
  context: TaskContext
  mode: str

  def items(self) -> Sequence[Item]:
    """All items, in the order of the data file."""
    ...

  def request(self, item: Item) -> Request:
    """What the model is asked; the same for every model."""
    ...

  def answer(self, item: Item, result: Result) -> Record:
    """What is kept of the model's answer: all that any scoring needs.

    Fields, named as in lm-evaluation-harness where it has them: resps (what
    the model gave), n_tokens, stop_reason, nonfinite. Whoever stores the
    record adds what identifies it.
    """
    ...

  def score(self, item: Item, answer: Record) -> Record:
    """What the stored answer is worth, from it and the item alone.

    Fields: target, filtered_resps (what was read off the answer, by the name
    of the reading), metrics (by name, 0 to 1).
    """
    ...

  def is_cut_short(self, item: Item, answer: Record) -> bool:
    """Whether a stored answer ended as soon as another profile had what it
    needs, where this one might have read on; such an answer is none."""
    ...

  def aggregate(
    self, samples: Sequence[Record], *, complete: bool
  ) -> list[Metric]:
    """The task's numbers, the headline first.

    Args:
      samples: Answers with their scores (the fields of both in one record),
        in the order of `items`.
      complete: They should cover all items; a task that averages over groups
        raises ValueError if a group is missing.
    """
    ...


def prompt_hash(request: Request) -> str:
  """16 hex digits of a SHA-256 over the token ids that the model is given."""
  if isinstance(request, ScoreRequest):
    return files.short_hash([request.context, request.continuations])
  return files.short_hash(request.prompt)


def decode_settings(request: Request) -> Record:
  """What else the answer depends on, or what of it is kept."""
  if isinstance(request, ScoreRequest):
    return {'score_context': request.score_context}
  return {
    'max_gen_toks': request.max_new_tokens,
    'early_stop': request.decided is not None,
  }


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
      request = task.request(item)
      asked = [prompt_hash(request), decode_settings(request)]
      digest.update(files.canonical_json(asked).encode())
  return digest.hexdigest()[:16]
