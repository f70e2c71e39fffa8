"""TyDiQA (Clark et al. 2020), answers from a given passage, zero-shot.

Prompts and marks are those of OpenCompass 0.2.0 (`tydiqa_gen_978d2a`): its
eleven languages are the nine of the official GoldP development split and
Japanese and Thai, of files that it distributes itself. `tydiqa_goldp` asks the
nine official ones in the same way; its mean is another number.

Base and chat models read the same plain text.
"""

import collections
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn
from me_jax.evals.task import Item, TaskContext
from me_jax.evals.tydiqa_data import (
  COUNTS,
  OFFICIAL,
  read_goldp_items,
  read_items,
)
from me_jax.evals.tydiqa_languages import LANGUAGES

# Written without blanks between words.
_UNSPACED = ('japanese', 'thai')


def tydiqa(
  context: TaskContext, counts: Mapping[tuple[str, ...], int] = COUNTS
) -> GenerationTask:
  """OpenCompass's questions in eleven languages.

  Args:
    context: Where the data are, and so on.
    counts: How many questions there must be in one or several languages; its
      languages are those that are read.
  """
  asked = {name for names in counts for name in names}
  return _task(
    'tydiqa',
    'tydiqa_gen_978d2a',
    context,
    docs=lambda: read_items(context.sources, counts),
    languages=tuple(name for name in LANGUAGES if name in asked),
  )


def tydiqa_goldp(context: TaskContext) -> GenerationTask:
  """The official questions in nine languages, or a hundred of each."""
  return _task(
    'tydiqa_goldp',
    'tydiqa_goldp_v1.1',
    context,
    docs=lambda: read_goldp_items(context.sources),
    languages=OFFICIAL,
  )


def _task(
  name: str,
  version: str,
  context: TaskContext,
  *,
  docs: Callable[[], list[Item]],
  languages: tuple[str, ...],
) -> GenerationTask:
  return GenerationTask(
    name=name,
    version=version,
    context=context,
    docs=docs,
    doc_to_turns=question,
    doc_to_target=lambda item: ' | '.join(item.fields['answers']),
    max_gen_toks=100,
    # A full stop or comma would do for 'oc', but 'clean' reads on.
    stop_when=lambda item: lambda text: '\n' in text,
    readings=(
      Reading(name='oc', filter=lambda item, text: first_line(text), mark=mark),
      Reading(
        name='clean',
        filter=lambda item, text: first_line(text),
        mark=clean_mark,
      ),
    ),
    macro_over=languages,
  )


def question(item: Item) -> list[Turn]:
  """The passage and the question, in the language's own words."""
  words = LANGUAGES[item.group]
  return [
    Turn(
      'TEXT',
      f'{words.instruction}\n\n{words.passage}{item.fields["passage"]}\n'
      f'{words.question} {item.fields["question"]}\n{words.answer} ',
    )
  ]


def first_line(text: str) -> str:
  """The first line in lower case; empty if the text begins with a newline."""
  return text.partition('\n')[0].lower()


def mark(item: Item, prediction: str) -> dict[str, float]:
  """OpenCompass's marks; answers are *not* put in lower case, and a full stop
  or comma ends both sides."""
  normal = lambda text: normalise(text, '[\n.,]')
  return _best(normal(prediction), map(normal, _answers(item)), str.split)


def clean_mark(item: Item, prediction: str) -> dict[str, float]:
  """Both sides in lower case and whole lines; F1 of characters in languages
  that write no blanks between words."""
  normal = lambda text: normalise(text.lower(), '\n')
  split = _characters if item.group in _UNSPACED else str.split
  return _best(normal(prediction), map(normal, _answers(item)), split)


def normalise(text: str, end: str) -> str:
  """What is compared: `text` up to the first match of `end`, without marks
  (vowel signs of Indic scripts and Thai among them) and English articles,
  blanks collapsed."""
  text = re.split(end, text, maxsplit=1)[0]
  text = re.sub(r'[^\w\s]', '', text)
  text = re.sub(r'\b(a|an|the)\b', '', text, flags=re.IGNORECASE)
  return ' '.join(text.split())


def f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
  """Harmonic mean of precision and recall of tokens, 0 to 1."""
  common = collections.Counter(prediction) & collections.Counter(answer)
  overlap = sum(common.values())
  if not overlap:
    return 0.0
  precision, recall = overlap / len(prediction), overlap / len(answer)
  return 2 * precision * recall / (precision + recall)


def _answers(item: Item) -> list[str]:
  return item.fields['answers']


def _characters(text: str) -> list[str]:
  return [c for c in text if not c.isspace()]


def _best(
  prediction: str,
  answers: Iterable[str],
  split: Callable[[str], list[str]],
) -> dict[str, float]:
  """Each mark against the answer that is best for it."""
  answers = list(answers)
  return {
    'f1': max(f1(split(prediction), split(answer)) for answer in answers),
    'exact_match': float(prediction in answers),
  }
