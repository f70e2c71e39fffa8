"""Tables beside the paper's: differences, chance, weights, attention."""

from collections.abc import Callable, Sequence

from me_jax.evals.chance import chance
from me_jax.evals.shared_items import LOSSES
from me_jax.reporting import labels
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.significance import LEGEND, Changes
from me_jax.reporting.study import Study
from me_jax.reporting.table import Cell, Line, Table, cell

_DRIFT = {
  'pearson_r': ('Pearson R', 6),
  'one_minus_r': ('1 − R', 6),
  'rel_fro': ('relative change', 4),
  'sigma1_ratio': ('σ₁ ratio', 4),
  'max_abs': ('largest entry', 4),
}
_SALIENCY = {
  'crossover_layer': ('crossover layer', 0),
  'late_pq_share': ('S_pq, last half', 3),
  'label_accuracy': ('label accuracy', 1),
}


def differences(study: Study, changes: Changes) -> Table | None:
  """How far each state is from the unedited model on the same items."""
  found = {state: by for state, by in changes.tasks.items() if by}
  tasks = [t for t in study.tasks if any(t in by for by in found.values())]
  if not tasks:
    return None
  lines = []
  for (run, n), by_task in found.items():
    cells = []
    for task in tasks:
      c = by_task.get(task)
      if c is None or c.difference is None:
        cells.append('both ∞' if c else None)
        continue
      digits = 3 if c.metric in LOSSES else 1
      mark = changes.mark(run, n, task)
      cells.append(
        Cell(
          c.difference,
          c.low,
          c.high,
          c.n,
          mark,
          c.p_holm,
          digits,
          is_change=True,
        )
      )
    lines.append(Line((study.labels[run], str(n)), cells))
  is_loss = {
    c.task: c.metric in LOSSES for by in found.values() for c in by.values()
  }
  return Table(
    name='differences',
    title='Change against the unedited model, same items',
    heads=('run', 'edits'),
    columns=[
      f'{labels.task_name(t)}, nats' if is_loss[t] else labels.task_name(t)
      for t in tasks
    ],
    lines=lines,
    notes=[
      'After less before: percentage points, or nats per token where said '
      '(there more is worse). With each its 95 % interval of a paired '
      'bootstrap; n: items that both answered.',
      LEGEND,
      *changes.notes,
    ],
  )


def chance_levels(study: Study) -> Table | None:
  """What guessing would score."""
  lines = [
    Line((labels.task_name(t),), [Cell(found.level), found.reason])
    for t in study.tasks
    if (found := chance(t))
  ]
  if not lines:
    return None
  return Table(
    name='chance',
    title='What guessing scores',
    heads=('benchmark',),
    columns=['per cent', 'why'],
    lines=lines,
    notes=['BBH mixes tasks with options and with free text: no one level.']
    if any(t.startswith('bbh') for t in study.tasks)
    else [],
  )


def weight_drift(study: Study) -> Table | None:
  """How far the edited matrices are from where they were."""
  lines = []
  for run in study.runs:
    for n in run.edits('weight_drift'):
      for path in matrices(run):
        found = [run.row('weight_drift', f'{m}/{path}', n) for m in _DRIFT]
        cells = [
          cell(row, digits=digits)
          for row, (_, digits) in zip(found, _DRIFT.values(), strict=True)
        ]
        if any(cells):
          lines.append(Line((study.labels[run], path, str(n)), cells))
  if not lines:
    return None
  return Table(
    name='weight_drift',
    title='Edited matrices against the unedited ones',
    heads=('run', 'matrix', 'edits'),
    columns=[name for name, _ in _DRIFT.values()],
    lines=lines,
    notes=[
      'R: correlation of all entries, blind to a rescaling. Relative change: '
      '‖W − W₀‖ / ‖W₀‖ (Frobenius). σ₁ ratio: largest singular value over that '
      'before. Largest entry: of |W|. n: entries of the matrix.'
    ],
  )


def matrices(run: MeasuredRun) -> list[str]:
  """The matrices whose drift was measured."""
  return list(
    dict.fromkeys(m.partition('/')[2] for m in run.metrics('weight_drift'))
  )


def saliency(study: Study) -> Table | None:
  """A summary of Figure 8."""
  return by_edits(
    study,
    'saliency',
    _SALIENCY,
    title='Information flow in context, in short',
    note='Crossover: the first layer from which the flow from label words to '
    'the answer (S_pq) leads; none where the cell is empty. Label accuracy on '
    'SST-2 in per cent.',
  )


def by_edits(
  study: Study,
  task: str,
  columns: dict[str, tuple[str, int]],
  *,
  title: str,
  note: str,
  name: str = '',
) -> Table | None:
  """A line per run and number of edits, a column per metric that is there."""
  lines = [
    Line(
      (study.labels[run], str(n)),
      [cell(run.row(task, m, n), digits=d) for m, (_, d) in columns.items()],
    )
    for run in study.runs
    for n in run.edits(task)
  ]
  there = [any(l.cells[i] for l in lines) for i in range(len(columns))]
  keep: Callable[[Sequence], list] = lambda values: [
    v for v, t in zip(values, there, strict=True) if t
  ]
  if not lines:
    return None
  return Table(
    name=name or task,
    title=title,
    heads=('run', 'edits'),
    columns=keep([heading for heading, _ in columns.values()]),
    lines=[Line(l.heads, keep(l.cells)) for l in lines],
    notes=[note],
  )
