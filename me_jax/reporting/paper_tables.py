"""The paper's Tables 1 and 2: our numbers in its layout, its numbers beside or,
where the model is another, apart."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from me_jax.evals import registry
from me_jax.reporting import labels, paper
from me_jax.reporting.measured_run import (
  EDIT_TASK,
  UNEDITED,
  MeasuredRun,
)
from me_jax.reporting.significance import FACT_SCORES, LEGEND, Changes
from me_jax.reporting.study import Study
from me_jax.reporting.table import INTERVAL, Cell, Line, Table, cell
from me_jax.results import Row

_PERCENT = 'Accuracies in per cent; perplexities: lower is better.'
_FACT_COLUMNS = {
  'sequential_reliability': 'sequential reliability',
  'sequential_generalization': 'sequential generalization',
  'individual_reliability': 'individual reliability',
  'individual_generalization': 'individual generalization',
  'unedited_reliability': 'unedited reliability',
  'unedited_generalization': 'unedited generalization',
}


def benchmarks(study: Study, changes: Changes) -> Table | None:
  """Table 1: general ability by method and number of edits."""
  tasks = study.tasks
  if not tasks:
    return None
  states = _unedited(study) + [
    _State(study.labels[run], run, n, found)
    for run in study.runs
    for n in run.edits()
    if n and (found := _scores(study, run, n))
  ]
  means = [_average({t: r.value for t, r in s.scores.items()}) for s in states]
  columns = [*tasks, *(['avg'] if any(m is not None for m in means) else [])]
  lines = []
  for state, mean in zip(states, means, strict=True):
    _, run, n, scores = state
    cells: list[Cell | None] = [
      cell(
        scores.get(t),
        mark=changes.mark(run, n, t),
        p=changes.p(run, n, t),
        digits=labels.task_digits(t),
      )
      for t in tasks
    ]
    if 'avg' in columns:
      cells.append(None if mean is None else Cell(mean))
    lines.append(Line((state.label, str(n)), cells))
    method = run.method['name'] if n else UNEDITED
    there = paper.numbers()['benchmarks'].get(method, {}).get(str(n))
    if there and (paper.is_table_1(run) if n else paper.has_model(run)):
      lines.append(paper.line(method, str(n), there, columns))
  return Table(
    name='table1',
    title='General ability by method and number of edits (Table 1)',
    heads=('run', 'edits'),
    columns=['Avg.' if c == 'avg' else labels.task_name(c) for c in columns],
    lines=lines,
    notes=[f'{_PERCENT} {INTERVAL}', LEGEND, *_mean_notes(tasks, means)],
  )


def paper_benchmarks(study: Study) -> Table | None:
  """The paper's Table 1, for reports of other models."""
  if not study.tasks or all(map(paper.has_model, study.all_runs)):
    return None
  published = paper.numbers()
  columns = [*registry.BENCHMARKS, 'avg']
  lines = [
    paper.line(method, n, there, columns, apart=True)
    for method, by_edits in published['benchmarks'].items()
    for n, there in by_edits.items()
  ]
  return paper.apart(
    'table1_paper',
    'Table 1',
    'general ability',
    ('method', 'edits'),
    [*map(labels.task_name, registry.BENCHMARKS), 'Avg.'],
    lines,
  )


def facts(study: Study, changes: Changes) -> Table | None:
  """Table 2: the facts after all edits and each after its own."""
  lines = []
  for run in study.runs:
    for n in run.edits(EDIT_TASK, 'sequential_reliability'):
      cells = [
        cell(
          run.row(EDIT_TASK, name, n),
          mark=changes.mark(run, n, name),
          p=changes.p(run, n, name),
        )
        for name in _FACT_COLUMNS
      ]
      lines.append(Line((study.labels[run], str(n)), cells))
      there = paper.numbers()['facts'].get(run.method['name'], {}).get(str(n))
      if there and paper.is_table_1(run):
        lines.append(
          paper.line(run.method['name'], str(n), there, _FACT_COLUMNS)
        )
  if not lines:
    return None
  return Table(
    name='table2',
    title='The facts by method and number of edits (Table 2)',
    heads=('run', 'edits'),
    columns=list(_FACT_COLUMNS.values()),
    lines=lines,
    notes=[
      'Target tokens said right, in per cent, each given those before it. '
      'Reliability: asked as edited; generalization: in other words. '
      'Sequential: all facts so far, after the last edit; individual: each '
      'fact right after its own edit; unedited: the same facts before any '
      f'edit, which is what comes for free. {INTERVAL}',
      LEGEND,
    ],
  )


def paper_facts(study: Study) -> Table | None:
  """The paper's Table 2, for reports of other models."""
  if not study.runs or all(map(paper.has_model, study.runs)):
    return None
  lines = [
    paper.line(method, n, there, FACT_SCORES, apart=True)
    for method, by_edits in paper.numbers()['facts'].items()
    for n, there in by_edits.items()
  ]
  columns = [_FACT_COLUMNS[name] for name in FACT_SCORES]
  return paper.apart(
    'table2_paper', 'Table 2', 'the facts', ('method', 'edits'), columns, lines
  )


class _State(NamedTuple):
  """A measured state of a model: a line of Table 1."""

  label: str
  run: MeasuredRun
  num_edits: int
  scores: dict[str, Row]


def _unedited(study: Study) -> list[_State]:
  """One state per model as it is, or several where its runs measured it on
  different items."""
  found: list[tuple[list[MeasuredRun], dict[str, Row]]] = []
  for run in study.all_runs:
    rows = {
      task: row
      for task, metric in run.headlines.items()
      if (row := run.row(task, metric, 0))
    }
    for runs, there in found:
      if runs[0].weights == run.weights and _agree(rows, there):
        runs.append(run)
        there |= rows
        break
    else:
      found.append(([run], rows))
  found = [(runs, rows) for runs, rows in found if rows]
  names = [f'unedited {runs[0].model}' for runs, _ in found]
  labels_of = lambda runs: ' and '.join(study.labels[run] for run in runs)
  return [
    _State(
      name if names.count(name) == 1 else f'{name}, items of {labels_of(runs)}',
      runs[0],
      0,
      rows,
    )
    for name, (runs, rows) in zip(names, found, strict=True)
  ]


def _agree(one: Mapping[str, Row], other: Mapping[str, Row]) -> bool:
  """Whether what both measured came out the same, on as many items."""
  return all(
    (one[t].value, one[t].n) == (other[t].value, other[t].n)
    for t in one.keys() & other.keys()
  )


def _scores(study: Study, run: MeasuredRun, num_edits: int) -> dict[str, Row]:
  found = {task: study.score(run, task, num_edits) for task in study.tasks}
  return {task: row for task, row in found.items() if row}


def _average(scores: Mapping[str, float]) -> float | None:
  """The mean of the paper's eight; None if one is missing."""
  if not all(task in scores for task in registry.BENCHMARKS):
    return None
  return float(np.mean([scores[task] for task in registry.BENCHMARKS]))


def _mean_notes(
  tasks: Sequence[str], means: Sequence[float | None]
) -> list[str]:
  if all(mean is not None for mean in means):
    return []
  missing = [t for t in registry.BENCHMARKS if t not in tasks]
  lacks = ', '.join(map(labels.task_name, missing))
  return [
    'Avg., the mean of the eight benchmarks, is given where all were measured'
    + (f'; not measured: {lacks}.' if missing else '.')
  ]
