"""MMLU (Hendrycks et al. 2021), 5-shot, scored by perplexity.

Prompts and scores are those of OpenCompass 0.2.0, configuration
`mmlu_ppl_ac766d`: each answer letter completes the text, and the text with
the lowest negative log-likelihood per token wins.
"""

import csv
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from me_jax.data.sources import DataSources
from me_jax.evals import hub_tables, letters, prompts, statistics
from me_jax.evals.mmlu_subjects import GROUPS, SUBJECTS
from me_jax.evals.task import Item, Metric, Sample
from me_jax.typing import ScoreRequest, ScoreResult, Tokenizer

LETTERS = 'ABCD'
_COLUMNS = ('input', *LETTERS, 'target')
_SHOTS = 5
_NEAR_TIE = 1e-4  # float32 sums over other batches may rank closer ones apart


class Mmlu:
  """See `Task`. `fields` are the columns of the data file."""

  name = 'mmlu'
  mode = 'ppl'

  def __init__(
    self,
    tokenizer: Tokenizer,
    sources: DataSources,
    *,
    subjects: Sequence[str] = SUBJECTS,
  ):
    """Binds data and tokenizer; files are read when first needed.

    Args:
      tokenizer: The model's.
      sources: Where `mmlu/dev` and `mmlu/test` are.
      subjects: Which of the 57.
    """
    self._tokenizer = tokenizer
    self._sources = sources
    self._subjects = tuple(subjects)
    self._exemplars = functools.cache(self._read_exemplars)

  def items(self) -> list[Item]:
    """One item per row of the test files; ids are `subject/row`."""
    return [
      Item(id=f'{subject}/{row}', group=subject, fields=fields)
      for subject in self._subjects
      for row, fields in enumerate(self._rows('test', subject))
    ]

  def request(self, item: Item) -> ScoreRequest:
    """The four texts as one context and what each letter adds to it.

    A text of more than 2,048 tokens loses exemplars from the last on; what
    still does not fit is cut on the left.
    """
    exemplars = self._exemplars(item.group)
    shots = len(exemplars)
    texts = []
    for letter in LETTERS:
      while True:
        text = prompt(item.group, exemplars[:shots], item.fields, letter)
        ids = self._tokenizer.encode(text)
        if len(ids) <= prompts.WINDOW or shots == 0:
          break
        shots -= 1
      texts.append(prompts.cut_left(ids, prompts.WINDOW, self._tokenizer))
    context, continuations = prompts.split_common_prefix(texts)
    return ScoreRequest(
      context=context, continuations=continuations, score_context=True
    )

  def sample(self, item: Item, result: ScoreResult) -> Sample:
    """`resps` holds the score of each letter, lower is better."""
    context = np.sum(result.context_logprobs, dtype=np.float64)
    endings = [np.sum(lp, dtype=np.float64) for lp in result.logprobs]
    # The first token counts though nothing predicts it.
    counts = [
      1 + len(result.context_logprobs) + len(lp) for lp in result.logprobs
    ]
    scores = [
      float(-(context + ending) / n)
      for ending, n in zip(endings, counts, strict=True)
    ]
    prediction = LETTERS[letters.first_smallest(scores)]
    best, second = sorted(scores)[:2]
    is_finite = bool(np.isfinite(scores).all())
    return {
      'target': item.fields['target'],
      'resps': [letters.finite_or_none(s) for s in scores],
      'letter_logprobs': [letters.finite_or_none(e) for e in endings],
      'filtered_resps': [prediction],
      'correct': prediction == item.fields['target'],
      'near_tie': is_finite and second - best < _NEAR_TIE,
      'n_tokens': counts[0],
      'nonfinite': not is_finite,
    }

  def aggregate(
    self, samples: Sequence[Sample], *, complete: bool
  ) -> list[Metric]:
    """Macro means over all subjects and over the four groups, and the rest.

    A mean over some of its subjects only is called `..._of_{n}_subjects`.

    Raises:
      ValueError: `complete`, and a subject has no sample.
    """
    by_subject: dict[str, list[bool]] = {}
    for sample in samples:
      by_subject.setdefault(sample['group'], []).append(sample['correct'])
    required = self._subjects if complete else ()
    missing = sorted(set(required) - set(by_subject))
    if missing:
      raise ValueError(
        f'No samples of {len(missing)} of {len(required)} MMLU subjects: '
        f'{", ".join(missing)}. Run them, or set a limit.'
      )
    macro = [_macro_mean('mmlu', SUBJECTS, by_subject)]
    for group, members in GROUPS.items():
      if any(subject in by_subject for subject in members):
        macro.append(_macro_mean(f'mmlu_{group}', members, by_subject))
    return [
      macro[0],
      letters.accuracy('mmlu_weighted', samples),
      *macro[1:],
      *letters.spread(samples, LETTERS),
      letters.nonfinite(samples),
      Metric(
        name='n_near_ties',
        value=float(sum(s['near_tie'] for s in samples)),
        n=len(samples),
      ),
    ]

  def _read_exemplars(self, subject: str) -> list[dict[str, str]]:
    rows = self._rows('dev', subject)
    if len(rows) < _SHOTS:
      raise ValueError(
        f'{subject}: expected {_SHOTS} exemplars in the dev file, found '
        f'{len(rows)}.'
      )
    return rows[:_SHOTS]

  def _rows(self, split: str, subject: str) -> list[dict[str, str]]:
    path = self._sources.find(
      f'mmlu/{split}/{subject}_{split}.csv', hub_tables.mmlu(subject, split)
    )
    rows = []
    with open(path, newline='', encoding='utf-8') as f:
      try:
        records = list(csv.reader(f, strict=True))
      except csv.Error as e:
        raise ValueError(
          f'{path} is not valid CSV: {e}. Fetch it again.'
        ) from e
      for number, row in enumerate(records, start=1):
        if len(row) != len(_COLUMNS) or row[-1] not in LETTERS:
          raise ValueError(
            f'{path}: record {number} should be a question, four answers and '
            f'a letter of {LETTERS}, found {row!r:.200}.'
          )
        rows.append(dict(zip(_COLUMNS, row, strict=True)))
    return rows


def prompt(
  subject: str,
  exemplars: Iterable[Mapping[str, str]],
  fields: Mapping[str, str],
  letter: str,
) -> str:
  """The text that ends with `letter` as the answer."""
  name = subject.replace('_', ' ')
  # Two spaces after "about", as in the reference.
  header = (
    'The following are multiple choice questions (with answers) about  '
    f'{name}.\n\n'
  )
  shots = [f'{_question(e)} {e["target"]}\n\n' for e in exemplars]
  return f'{header}{"".join(shots)}{_question(fields)} {letter}'


def _question(fields: Mapping[str, str]) -> str:
  options = '\n'.join(f'{letter}. {fields[letter]}' for letter in LETTERS)
  return f'{fields["input"]}\n{options}\nAnswer:'


def _macro_mean(
  name: str, members: Sequence[str], by_subject: Mapping[str, list[bool]]
) -> Metric:
  present = [by_subject[s] for s in members if s in by_subject]
  if len(present) < len(members):
    name = f'{name}_of_{len(present)}_subjects'
  value, low, high = statistics.macro_mean(
    [np.asarray(group, np.float64) for group in present]
  )
  return Metric(
    name=name,
    value=100 * value,
    n=sum(map(len, present)),
    ci_low=100 * low,
    ci_high=100 * high,
  )
