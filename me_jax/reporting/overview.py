"""What tells several runs apart, in sentences made from the numbers."""

import collections
import math
from collections.abc import Iterator, Sequence

from me_jax.reporting import labels
from me_jax.reporting.measured_run import EDIT_TASK, MeasuredRun
from me_jax.reporting.significance import Changes
from me_jax.reporting.study import Study
from me_jax.reporting.table import number

_OF_FACTS = {
  'sequential_reliability': 'Asked as they were written, the facts are',
  'sequential_generalization': 'In other words they are',
}


def overview(study: Study, changes: Changes) -> Iterator[str]:
  """The runs after the number of edits at which most of them end; nothing
  where that is one run."""
  last = {run: n[-1] for run in study.runs if (n := run.edits()) and n[-1]}
  if not last:
    return
  edits = collections.Counter(last.values()).most_common(1)[0][0]
  runs = [run for run, n in last.items() if n == edits]
  if len(runs) < 2:
    return
  yield (
    f'{len(runs)} of {len(study.runs)} runs are measured after {edits} edits, '
    'the state that is compared here.'
  )
  for metric, opening in _OF_FACTS.items():
    found = [
      (row.value, study.labels[run])
      for run in runs
      if (row := run.row(EDIT_TASK, metric, edits))
    ]
    if len(found) > 1:
      yield f'{opening} there most with {_extremes(found, " %")}.'
  yield from _of_text(study, runs, edits)
  harmed = []
  for run in runs:
    tested = [
      c
      for task, c in changes.tasks.get((run, edits), {}).items()
      if not labels.is_perplexity(task)
    ]
    fell = [
      c for c in tested if changes.mark(run, edits, c.task) and c.difference < 0
    ]
    if tested:
      harmed.append(f'{study.labels[run]}: {len(fell)} of {len(tested)}')
  if harmed:
    yield (
      f'Benchmarks that fell by more than chance explains. {"; ".join(harmed)}.'
    )


def _of_text(
  study: Study, runs: Sequence[MeasuredRun], edits: int
) -> Iterator[str]:
  for task in filter(labels.is_perplexity, study.tasks):
    ratios = [
      (after.value / before.value, study.labels[run])
      for run in runs
      if (after := study.score(run, task, edits))
      and (before := study.unedited(run, task))
      and math.isfinite(before.value)
      and not math.isnan(after.value)
    ]
    if len(ratios) > 1:
      yield (
        f'{labels.task_name(task)} grew most with '
        f'{_extremes(ratios, " times", 2)}.'
      )


def _extremes(
  found: Sequence[tuple[float, str]], unit: str, digits: int = 1
) -> str:
  """'A (98.1 %) and least with B (72.2 %)'; how many where several tie."""
  high, low = max(v for v, _ in found), min(v for v, _ in found)

  def told(value: float) -> str:
    names = [name for v, name in found if v == value]
    who = f'{len(names)} runs' if len(names) > 2 else ' and '.join(names)
    return f'{who} ({number(value, digits)}{unit})'

  if high == low:
    return f'{told(high)}, all alike'
  return f'{told(high)} and least with {told(low)}'
