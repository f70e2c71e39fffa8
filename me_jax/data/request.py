"""One fact to write into a model, and the prompts that test it."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

_SLOT = '{}'
# A pair of braces in the text itself gets one more backslash inside, so that
# `{}` is the slot and nothing else, and the way back is unique.
_PAIR = re.compile(r'\{(\\*)\}')
_ESCAPED_PAIR = re.compile(r'\{\\(\\*)\}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalityPrompt:
  """A prompt whose answer an edit should leave alone.

  Attributes:
    prompt: The text, e.g. a question about something else.
    answer: Its true answer.
  """

  prompt: str
  answer: str

  def __post_init__(self):
    _strip(self, 'prompt', 'answer')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditRequest:
  r"""One fact to write: after `text`, the model should say `target_new`.

  Blanks at both ends of every text are removed.

  Attributes:
    case_id: Unique within its data set.
    subject: What the fact is about.
    prompt: The text with exactly one `{}` in the place of the subject. Single
      braces stand for themselves; a pair that belongs to the text is written
      `{\}` (see `slotted`). Nothing in it is ever a format field.
    target_new: The answer to write.
    ground_truth: The true answer; empty where it is not known.
    rephrase_prompts: The same question in other words.
    locality_prompts: Unrelated prompts with their answers.

  Raises:
    ValueError: `subject` or `target_new` is empty, or `prompt` has not exactly
      one slot; names the case and the field.
  """

  case_id: str
  subject: str
  prompt: str
  target_new: str
  ground_truth: str = ''
  rephrase_prompts: tuple[str, ...] = ()
  locality_prompts: tuple[LocalityPrompt, ...] = ()

  def __post_init__(self):
    _strip(self, 'subject', 'prompt', 'target_new', 'ground_truth')
    rephrases = tuple(p.strip() for p in self.rephrase_prompts)
    object.__setattr__(self, 'rephrase_prompts', rephrases)
    for name in ('subject', 'target_new'):
      if not getattr(self, name):
        raise ValueError(
          f'Case {self.case_id!r}: {name} is empty; give a text or drop the '
          'record.'
        )
    slots = self.prompt.count(_SLOT)
    if slots != 1:
      raise ValueError(
        f'Case {self.case_id!r}: prompt must hold exactly one {{}} in the '
        f'place of the subject, found {slots} in {self.prompt!r}. Braces that '
        'belong to the text are written {\\}; from_question does that.'
      )

  @classmethod
  def from_question(
    cls,
    question: str,
    subject: str,
    *,
    case_id: str,
    target_new: str,
    ground_truth: str = '',
    rephrase_prompts: Iterable[str] = (),
    locality_prompts: Iterable[LocalityPrompt] = (),
  ) -> 'EditRequest':
    """The request whose slot is the last occurrence of `subject`.

    `subject_occurrences` of the result tells whether there were others.

    Raises:
      ValueError: `subject` is not in `question`, or a field is empty.
    """
    subject = subject.strip()
    start = question.rfind(subject)
    if start < 0:
      raise ValueError(
        f'Case {case_id!r}: the subject {subject!r} is not in the question '
        f'{question!r}. Give the subject as the question spells it, or drop '
        'the record.'
      )
    return cls(
      case_id=case_id,
      subject=subject,
      prompt=slotted(question[:start], question[start + len(subject) :]),
      target_new=target_new,
      ground_truth=ground_truth,
      rephrase_prompts=tuple(rephrase_prompts),
      locality_prompts=tuple(locality_prompts),
    )

  @property
  def prefix(self) -> str:
    """The text before the subject."""
    return _literal(self.prompt.partition(_SLOT)[0])

  @property
  def suffix(self) -> str:
    """The text after the subject."""
    return _literal(self.prompt.partition(_SLOT)[2])

  @property
  def text(self) -> str:
    """The prompt with the subject in its place."""
    return self.prefix + self.subject + self.suffix

  @property
  def subject_occurrences(self) -> int:
    """How often `text` holds the subject; 1 for an unambiguous slot."""
    return self.text.count(self.subject)

  def to_json(self) -> dict[str, Any]:
    """A dict of JSON values; the inverse of `from_json`."""
    record = dataclasses.asdict(self)
    record['rephrase_prompts'] = list(record['rephrase_prompts'])
    record['locality_prompts'] = list(record['locality_prompts'])
    return record

  @classmethod
  def from_json(cls, record: Mapping[str, Any]) -> 'EditRequest':
    """The request of a dict that `to_json` made.

    Raises:
      ValueError: A field is missing, unknown or not valid; names the case.
    """
    case = record.get('case_id', '?')
    known = {f.name for f in dataclasses.fields(cls)}
    if known != set(record):
      raise ValueError(
        f'Case {case!r}: expected the fields {sorted(known)}, got '
        f'{sorted(record)}.'
      )
    return cls(
      **{
        **record,
        'rephrase_prompts': tuple(record['rephrase_prompts']),
        'locality_prompts': tuple(
          LocalityPrompt(**p) for p in record['locality_prompts']
        ),
      }
    )


def slotted(prefix: str, suffix: str) -> str:
  """The `prompt` whose slot stands between two texts, taken literally."""
  return f'{_escaped(prefix)}{_SLOT}{_escaped(suffix)}'


def _escaped(text: str) -> str:
  return _PAIR.sub(lambda match: f'{{\\{match[1]}}}', text)


def _literal(text: str) -> str:
  return _ESCAPED_PAIR.sub(lambda match: f'{{{match[1]}}}', text)


def _strip(instance: Any, *names: str) -> None:
  for name in names:
    # The only way to normalise a field of a frozen dataclass.
    object.__setattr__(instance, name, getattr(instance, name).strip())
