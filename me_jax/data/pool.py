"""From the records of a data set to edit requests, with what was dropped."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from me_jax.data.request import EditRequest, LocalityPrompt, slotted

TARGETS = ('alt', 'true')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """One record, whatever file format it came in.

  Attributes:
    case_id: Unique within its data set.
    subject: What the fact is about, as the file spells it.
    question: The full prompt.
    slot: Where in `question` the subject starts; None if it is not there.
    alt: The counterfactual answer, maybe empty.
    true_answers: Those known, maybe none.
    rephrase_prompts: The question in other words.
    locality_prompts: Unrelated prompts with their answers.
  """

  case_id: str
  subject: str
  question: str
  slot: int | None
  alt: str
  true_answers: tuple[str, ...]
  rephrase_prompts: tuple[str, ...]
  locality_prompts: tuple[LocalityPrompt, ...]


class FactPool(Sequence[EditRequest]):
  """The usable requests of a data set.

  Attributes:
    requests: In the order of the file.
    counts: `records`; `dropped_...`, why some are not in `requests`; and, of
      those that are, `target_already_true` (an edit that may change nothing)
      and `subject_repeated_in_question` (the last occurrence is the slot).
  """

  def __init__(
    self, requests: Sequence[EditRequest], counts: dict[str, int] | None = None
  ):
    self.requests = tuple(requests)
    self.counts = dict(counts or {'records': len(self.requests)})

  @overload
  def __getitem__(self, index: int) -> EditRequest: ...

  @overload
  def __getitem__(self, index: slice) -> tuple[EditRequest, ...]: ...

  def __getitem__(self, index):
    return self.requests[index]

  def __len__(self) -> int:
    return len(self.requests)

  def __iter__(self) -> Iterator[EditRequest]:
    return iter(self.requests)


def find_subject(question: str, subject: str) -> int | None:
  """Where the last occurrence of `subject` starts, blanks at its ends aside;
  None if there is none."""
  start = question.rfind(subject.strip())
  return None if start < 0 else start


def collect(records: Iterable[Record], *, target: str) -> FactPool:
  """The requests that `records` give, and the counts of those that give none.

  Args:
    records: Of one data set.
    target: 'alt' writes the counterfactual answer, 'true' the first of the
      true ones.

  Raises:
    ValueError: `target` is neither, or a record has an empty subject.
  """
  if target not in TARGETS:
    raise ValueError(f'target must be one of {TARGETS}, got {target!r}.')
  requests = []
  counts = collections.Counter(
    records=0,
    dropped_subject_not_in_question=0,
    dropped_empty_target=0,
    dropped_no_true_answer=0,
    target_already_true=0,
    subject_repeated_in_question=0,
  )
  for record in records:
    counts['records'] += 1
    truths = [a for answer in record.true_answers if (a := answer.strip())]
    if record.slot is None:
      counts['dropped_subject_not_in_question'] += 1
      continue
    if target == 'true' and not truths:
      counts['dropped_no_true_answer'] += 1
      continue
    answer = truths[0] if target == 'true' else record.alt.strip()
    if not answer:
      counts['dropped_empty_target'] += 1
      continue
    subject = record.subject.strip()
    end = record.slot + len(subject)
    request = EditRequest(
      case_id=record.case_id,
      subject=subject,
      prompt=slotted(record.question[: record.slot], record.question[end:]),
      target_new=answer,
      ground_truth=truths[0] if truths else '',
      rephrase_prompts=record.rephrase_prompts,
      locality_prompts=record.locality_prompts,
    )
    counts['target_already_true'] += answer in truths
    counts['subject_repeated_in_question'] += request.subject_occurrences > 1
    requests.append(request)
  return FactPool(requests, dict(counts))
