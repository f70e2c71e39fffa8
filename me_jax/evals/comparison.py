"""Two model states on the same items of a task: what changed, and could it be
chance?

Works on score records alone: neither the model nor the data is needed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from me_jax.evals import paired
from me_jax.evals.shared_items import LOSSES, SharedItems, shared_items
from me_jax.evals.task import Record

LEVEL = 0.05

# Their headline is the mean of the groups' means, also that of a variant with
# a longer name, as mmlu_cloze or bbh@4096.
_MACRO_TASKS = ('mmlu', 'bbh', 'tydiqa')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """One task on two states; only the items that both have count.

  Attributes:
    task: Its name.
    metric: The headline.
    n: Number of items.
    before: Score of the first state: in per cent, or in nats for a loss;
      infinite if the loss of an item is not finite.
    after: Score of the second.
    difference: `after` less `before`; None if both are infinite.
    low: Lower end of its 95 % interval; None without a finite difference.
    high: Upper end.
    broken: Items that went from right to wrong; None if an item's score is
      not just right or wrong.
    repaired: Items that went from wrong to right.
    p: Two-sided: of McNemar's exact test on right and wrong, else of the
      paired bootstrap; of the exact sign test if a loss is not finite.
    nonfinite_before: Answers of the first state with a non-finite number.
    nonfinite_after: Answers of the second.
    only_before: Items left out because the second state has none of them.
    only_after: Items left out because the first has none.
    p_holm: `p` adjusted for the tasks compared together; None before `holm`.
  """

  task: str
  metric: str
  n: int
  before: float
  after: float
  difference: float | None
  low: float | None
  high: float | None
  broken: int | None
  repaired: int | None
  p: float
  nonfinite_before: int
  nonfinite_after: int
  only_before: int
  only_after: int
  p_holm: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip:
  """An item that only one of two states has right.

  Attributes:
    doc_id: The item.
    target: The right answer.
    before: What was read off the first state's answer.
    after: And off the second's.
  """

  doc_id: str
  target: Any
  before: Any
  after: Any


def compare(
  before: Sequence[Record],
  after: Sequence[Record],
  task: str,
  *,
  seed: int = 0,
) -> Comparison:
  """The second state against the first, on the items that both answered.

  The score is the mean over the items, or for MMLU, BBH and TyDiQA, as their
  protocol has it, over the groups' means. McNemar's test is about the items,
  however their groups are weighted.

  Args:
    before: Score records of the first state.
    after: Score records of the second.
    task: What they are of.
    seed: Of the bootstrap.

  Raises:
    ValueError: No item is shared, an item was asked or is marked differently,
      or a record is malformed; names the task and, where it is one, the item.
  """
  shared = shared_items(before, after, task)
  members = _members(shared, task)
  scale = 1 if shared.metric in LOSSES else 100
  score = lambda values: (
    scale * float(np.mean([values[m].mean() for m in members]))
    if np.isfinite(values).all()
    else math.inf
  )
  first, second = score(shared.before), score(shared.after)
  low = high = broken = repaired = None
  if math.isinf(first) or math.isinf(second):
    difference = None if first == second else second - first
    p = paired.sign_test(shared.before, shared.after)
  else:
    changes = shared.after - shared.before
    found = paired.bootstrap([changes[m] for m in members], seed=seed)
    difference, p = scale * found.value, found.p
    low, high = scale * found.low, scale * found.high
  if shared.is_right_or_wrong:
    broken, repaired = len(shared.broken), len(shared.repaired)
    p = paired.mcnemar(broken, repaired)
  return Comparison(
    task=task,
    metric=shared.metric,
    n=len(shared.pairs),
    before=first,
    after=second,
    difference=difference,
    low=low,
    high=high,
    broken=broken,
    repaired=repaired,
    p=p,
    nonfinite_before=sum(a['nonfinite'] for a, _ in shared.pairs),
    nonfinite_after=sum(b['nonfinite'] for _, b in shared.pairs),
    only_before=len(before) - len(shared.pairs),
    only_after=len(after) - len(shared.pairs),
  )


def flips(
  before: Sequence[Record], after: Sequence[Record], task: str
) -> tuple[list[Flip], list[Flip]]:
  """Items from right to wrong, and from wrong to right; none of either if an
  item's score is not just right or wrong.

  Raises:
    ValueError: As `compare`.
  """
  shared = shared_items(before, after, task)
  if not shared.is_right_or_wrong:
    return [], []
  return _flips(shared, shared.broken), _flips(shared, shared.repaired)


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
  """The same with `p_holm`: what was compared is all tasks of one pair of
  states."""
  adjusted = paired.holm([c.p for c in comparisons])
  return [
    dataclasses.replace(c, p_holm=p)
    for c, p in zip(comparisons, adjusted, strict=True)
  ]


def table(comparisons: Sequence[Comparison]) -> str:
  """Markdown: one line per task, then what was left out or not finite."""
  heads = ['task', 'metric', 'n', 'before', 'after', 'difference (95 %)']
  heads += ['right to wrong', 'wrong to right', 'p', 'p (Holm)']
  lines = [heads, ['---', '---', *['--:'] * (len(heads) - 2)]]
  for c in comparisons:
    direction = ', lower is better' if c.metric in LOSSES else ''
    interval = ''
    if c.low is not None and c.high is not None:
      interval = f' ({_signed(c.low, c)} to {_signed(c.high, c)})'
    lines.append(
      [
        c.task,
        f'{c.metric}{direction}',
        str(c.n),
        _number(c.before, c),
        _number(c.after, c),
        f'{_signed(c.difference, c)}{interval}',
        '' if c.broken is None else str(c.broken),
        '' if c.repaired is None else str(c.repaired),
        _p(c.p),
        '' if c.p_holm is None else _p(c.p_holm),
      ]
    )
  return _markdown(lines, [note for c in comparisons for note in _notes(c)])


def against_unedited(
  scores_by_step: Mapping[int, Mapping[str, Sequence[Record]]],
) -> str:
  """Markdown: differences to edit step 0, one line per later step, with the p
  of Holm over the line; '' if no later step shares a task with step 0.

  Args:
    scores_by_step: Score records by task, by edit step.

  Raises:
    ValueError: As `compare`.
  """
  unedited = scores_by_step.get(0, {})
  rows = {}
  for step in sorted(scores_by_step.keys() - {0}):
    edited = scores_by_step[step]
    rows[step] = holm(
      [compare(unedited[t], edited[t], t) for t in unedited if t in edited]
    )
  compared = {c.task: c for row in rows.values() for c in row}
  tasks = [task for task in unedited if task in compared]
  if not tasks:
    return ''
  lines = [['edit step', *tasks], ['--:'] * (1 + len(tasks))]
  notes = [
    'After less before; in brackets p of the paired test, adjusted over the '
    f'line (Holm); * below {LEVEL}.'
  ]
  for step, row in rows.items():
    cells = {
      c.task: f'{_signed(c.difference, c)} ({_p(c.p_holm)})'
      f'{"*" if c.p_holm < LEVEL else ""}'
      for c in row
    }
    lines.append([str(step), *(cells.get(task, '') for task in tasks)])
    notes += [f'Step {step}, {note}' for c in row for note in _notes(c)]
  return _markdown(lines, notes)


def _members(shared: SharedItems, task: str) -> list[np.ndarray]:
  """Indices of the items of each group, or of all if none are averaged."""
  base = task.partition('@')[0]
  if not any(base == t or base.startswith(f'{t}_') for t in _MACRO_TASKS):
    return [np.arange(len(shared.pairs))]
  groups: dict[str, list[int]] = {}
  for index, (record, _) in enumerate(shared.pairs):
    groups.setdefault(record['group'], []).append(index)
  if missing := sorted(shared.groups - groups.keys()):
    raise ValueError(
      f'{task}: a mean over groups, and the two states share no item of '
      f'{", ".join(missing)}. Take the same limit and seed for both.'
    )
  return [np.array(groups[name]) for name in sorted(groups)]


def _flips(shared: SharedItems, indices: np.ndarray) -> list[Flip]:
  return [
    Flip(
      doc_id=a['doc_id'],
      target=a.get('target'),
      before=_prediction(a),
      after=_prediction(b),
    )
    for a, b in (shared.pairs[i] for i in indices)
  ]


def _prediction(record: Record) -> Any:
  """The first reading; None where answers are not read but only scored."""
  return next(iter(record.get('filtered_resps', {}).values()), None)


def _notes(c: Comparison) -> list[str]:
  notes = []
  if c.nonfinite_before or c.nonfinite_after:
    notes.append(
      f'{c.task}: answers with a non-finite number: {c.nonfinite_before} '
      f'before, {c.nonfinite_after} after.'
    )
  if c.only_before or c.only_after:
    notes.append(
      f'{c.task}: items left out: {c.only_before} only before, '
      f'{c.only_after} only after.'
    )
  return notes


def _markdown(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
  text = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
  return text + ''.join(f'\n{note}\n' for note in notes)


def _number(value: float, c: Comparison) -> str:
  # No minus before what is rounded to zero.
  return f'{value:z.{3 if c.metric in LOSSES else 1}f}'


def _signed(value: float | None, c: Comparison) -> str:
  if value is None:
    return 'undefined'
  number = _number(value, c)
  return number if value < 0 or float(number) == 0 else f'+{number}'


def _p(p: float) -> str:
  return '<0.001' if p < 0.001 else f'{p:.3f}'
