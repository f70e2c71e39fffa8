"""MMLU (Hendrycks et al. 2021), 5-shot, scored by perplexity.

Prompts and scores are those of OpenCompass 0.2.0, configuration
`mmlu_ppl_ac766d`: each answer letter completes the text, and the text with
the lowest negative log-likelihood per token wins.
"""

import csv
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from me_jax.data.sources import DataSources
from me_jax.evals import aggregates, hub_tables, letters, prompts
from me_jax.evals.mmlu_subjects import GROUPS, SUBJECTS
from me_jax.evals.task import Item, Metric, Record, TaskContext
from me_jax.typing import ScoreRequest, ScoreResult

LETTERS = 'ABCD'
_COLUMNS = ('input', *LETTERS, 'target')
_SHOTS = 5
_NEAR_TIE = 1e-4  # float32 sums over other batches may rank closer ones apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mmlu:
  """See `Task`. An item's fields are the columns of the data file.

  Attributes:
    name: As in the registry.
    version: The OpenCompass configuration.
    context: Tokenizer, sources, settings.
    subjects: Which of the 57.
  """

  name: str = 'mmlu'
  version: str = 'mmlu_ppl_ac766d'
  context: TaskContext
  subjects: tuple[str, ...] = SUBJECTS
  mode: str = dataclasses.field(default='ppl', init=False)

  def items(self) -> list[Item]:
    """One item per row of the test files; ids are `subject/row`."""
    return read_items(self.context.sources, self.subjects)

  def request(self, item: Item) -> ScoreRequest:
    """The four texts as one context and what each letter adds to it.

    A text of more tokens than the window loses exemplars from the last on,
    each letter's for itself; what still does not fit is cut on the left. Where
    the texts differ in the letter alone, their context weighs the same in all
    scores and need not be scored, unless `settings.one_forward` is off.
    """
    tokenizer, window = self.context.tokenizer, self.context.window
    exemplars = self._exemplars[item.group]
    texts = []
    for letter in LETTERS:
      shots = len(exemplars)
      while True:
        text = prompt(item.group, exemplars[:shots], item.fields, letter)
        ids = tokenizer.encode(text)
        if len(ids) <= window or shots == 0:
          break
        shots -= 1
      texts.append(prompts.cut_left(ids, window, tokenizer))
    context, continuations = prompts.split_common_prefix(texts)
    differ_in_letter = all(len(tokens) == 1 for tokens in continuations)
    one_forward = self.context.settings.one_forward and differ_in_letter
    return ScoreRequest(
      context=context,
      continuations=continuations,
      score_context=not one_forward,
    )

  def answer(self, item: Item, result: ScoreResult) -> Record:
    """`resps` holds the score of each letter, lower is better: nats per token
    of the whole text, or, if the context was not scored, the part of it that
    differs."""
    del item
    context = result.context_logprobs
    endings = [np.sum(lp, dtype=np.float64) for lp in result.logprobs]
    is_scored = context is not None
    total = np.sum(context, dtype=np.float64) if is_scored else 0.0
    counts = [
      # The first token counts though nothing predicts it.
      len(lp) + (1 + len(context) if is_scored else result.context_length)
      for lp in result.logprobs
    ]
    scores = [
      float(-(total + ending) / n)
      for ending, n in zip(endings, counts, strict=True)
    ]
    best, second = sorted(scores)[:2]
    is_finite = bool(np.isfinite(scores).all())
    return {
      'resps': [letters.to_json(s) for s in scores],
      'letter_logprobs': [letters.to_json(e) for e in endings],
      'near_tie': is_finite and second - best < _NEAR_TIE,
      'n_tokens': counts[0],
      'nonfinite': not is_finite,
    }

  def score(self, item: Item, answer: Record) -> Record:
    """The letter with the lowest score."""
    prediction = LETTERS[letters.first_smallest(map(float, answer['resps']))]
    target = item.fields['target']
    return {
      'target': target,
      'filtered_resps': {'oc': prediction},
      'metrics': {'accuracy': float(prediction == target)},
    }

  def is_cut_short(self, item: Item, answer: Record) -> bool:
    """Never: a likelihood is whole."""
    del item, answer
    return False

  def aggregate(
    self, samples: Sequence[Record], *, complete: bool
  ) -> list[Metric]:
    """Macro means over all subjects and over the four groups, and the rest.

    A mean over some of its subjects only is called `..._of_{n}_subjects`.

    Raises:
      ValueError: `complete`, and a subject has no sample.
    """
    required = self.subjects if complete else ()
    aggregates.check_groups(self.name, samples, required)
    present = {sample['group'] for sample in samples}
    macro = lambda name, members: aggregates.macro_mean(
      name, samples, 'accuracy', members, 'subjects'
    )
    return [
      macro('mmlu', SUBJECTS),
      aggregates.mean('mmlu_weighted', samples, 'accuracy'),
      *(
        macro(f'mmlu_{group}', members)
        for group, members in GROUPS.items()
        if present & set(members)
      ),
      *(
        aggregates.mean(
          f'accuracy_{subject}',
          [s for s in samples if s['group'] == subject],
          'accuracy',
        )
        for subject in SUBJECTS
        if subject in present
      ),
      *aggregates.spread(samples, LETTERS, 'oc'),
      aggregates.nonfinite(samples),
      Metric(
        name='n_near_ties',
        value=float(sum(s['near_tie'] for s in samples)),
        n=len(samples),
      ),
    ]

  @functools.cached_property
  def _exemplars(self) -> dict[str, list[Mapping[str, str]]]:
    found = {
      subject: _rows(self.context.sources, 'dev', subject)[:_SHOTS]
      for subject in self.subjects
    }
    for subject, rows in found.items():
      if len(rows) < _SHOTS:
        raise ValueError(
          f'{subject}: expected {_SHOTS} exemplars in the dev file, found '
          f'{len(rows)}.'
        )
    return found


def mmlu(context: TaskContext) -> Mmlu:
  """All 57 subjects, 14,042 questions."""
  return Mmlu(context=context)


def read_items(
  sources: DataSources, subjects: Sequence[str] = SUBJECTS
) -> list[Item]:
  """The questions of the test split; ids are `subject/row`.

  Raises:
    FileNotFoundError: A file is nowhere.
    ValueError: A record is malformed; names file and record.
  """
  return [
    Item(id=f'{subject}/{row}', group=subject, fields=fields)
    for subject in subjects
    for row, fields in enumerate(_rows(sources, 'test', subject))
  ]


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


def _rows(
  sources: DataSources, split: str, subject: str
) -> list[dict[str, str]]:
  path = sources.find(
    f'mmlu/{split}/{subject}_{split}.csv', hub_tables.mmlu(subject, split)
  )
  rows = []
  with open(path, newline='', encoding='utf-8') as f:
    try:
      records = list(csv.reader(f, strict=True))
    except csv.Error as e:
      raise ValueError(f'{path} is not valid CSV: {e}. Fetch it again.') from e
    for number, row in enumerate(records, start=1):
      if len(row) != len(_COLUMNS) or row[-1] not in tuple(LETTERS):
        raise ValueError(
          f'{path}: record {number} should be a question, four answers and '
          f'a letter of {LETTERS}, found {row!r:.200}.'
        )
      rows.append(dict(zip(_COLUMNS, row, strict=True)))
  return rows
