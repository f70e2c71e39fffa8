"""The paper's Tables 1 to 3: our numbers in its layout, its numbers beside or,
where the model is another, apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
from me_jax.reporting.table import Cell, Line, Table, cell
from me_jax.results import Row

_INTERVAL = 'In brackets the 95 % interval; n is the number of items.'
_PERCENT = 'Accuracies in per cent; perplexities: lower is better.'
_PAPER_EDITS = (0, 1, 10, 20, 100)
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
      lines.append(_paper_line(method, str(n), there, columns))
  return Table(
    name='table1',
    title='General ability by method and number of edits (Table 1)',
    heads=('run', 'edits'),
    columns=['Avg.' if c == 'avg' else labels.task_name(c) for c in columns],
    lines=lines,
    notes=[f'{_PERCENT} {_INTERVAL}', LEGEND, *_mean_notes(tasks, means)],
  )


def paper_benchmarks(study: Study) -> Table | None:
  """The paper's Table 1, for reports of other models."""
  if not study.tasks or all(map(paper.has_model, study.all_runs)):
    return None
  published = paper.numbers()
  columns = [*registry.BENCHMARKS, 'avg']
  lines = [
    _paper_line(method, n, there, columns)
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
        cell(run.row(EDIT_TASK, name, n), mark=changes.mark(run, n, name))
        for name in _FACT_COLUMNS
      ]
      lines.append(Line((study.labels[run], str(n)), cells))
      there = paper.numbers()['facts'].get(run.method['name'], {}).get(str(n))
      if there and paper.is_table_1(run):
        lines.append(
          _paper_line(run.method['name'], str(n), there, _FACT_COLUMNS)
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
      f'edit, which is what comes for free. {_INTERVAL}',
      LEGEND,
    ],
  )


def paper_facts(study: Study) -> Table | None:
  """The paper's Table 2, for reports of other models."""
  if not study.runs or all(map(paper.has_model, study.runs)):
    return None
  lines = [
    _paper_line(method, n, there, FACT_SCORES)
    for method, by_edits in paper.numbers()['facts'].items()
    for n, there in by_edits.items()
  ]
  columns = [_FACT_COLUMNS[name] for name in FACT_SCORES]
  return paper.apart(
    'table2_paper', 'Table 2', 'the facts', ('method', 'edits'), columns, lines
  )


def adjusted_perplexity(study: Study) -> Table | None:
  """Table 3: what a judge thinks of the text, by layer and edits."""
  runs = [r for r in study.runs if r.edits('adjusted_ppl', 'adj_mean')]
  if not runs:
    return None
  edits = sorted({n for r in runs for n in r.edits('adjusted_ppl', 'adj_mean')})
  published = paper.numbers()
  lines = []
  for run in runs:
    found = [run.row('adjusted_ppl', 'adj_mean', n) for n in edits]
    lines.append(
      Line((study.labels[run],), [cell(row, digits=2) for row in found])
    )
    layer = str(run.layers[0]) if len(run.layers) == 1 else ''
    there = published['adjusted_perplexity'].get(layer)
    if there and paper.has_model(run) and run.method['name'] == 'rome':
      cells = [_paper_cell(there, str(n), 2) for n in edits]
      lines.append(
        Line((_paper_name('rome') + f', layer {layer}',), cells, True)
      )
  judges = dict.fromkeys(map(scorer, runs))
  return Table(
    name='table3',
    title='Adjusted perplexity by layer and number of edits (Table 3)',
    heads=('run',),
    columns=[f'{n} edits' for n in edits],
    lines=lines,
    notes=[
      f'Judged by {", ".join(judges)}; lower is better. The perplexity of the '
      'first 20 tokens of an answer times e^(1 − ρ), ρ the share of its '
      'n-grams that are distinct; the mean over the answers that are long '
      "enough. '/': none is. Numbers with different n are of different "
      f'answers; no test is made. {_INTERVAL}'
    ],
  )


def paper_adjusted_perplexity(study: Study) -> Table | None:
  """The paper's Table 3, for reports of other models."""
  runs = [r for r in study.runs if r.edits('adjusted_ppl', 'adj_mean')]
  if not runs or all(map(paper.has_model, runs)):
    return None
  by_layer = paper.numbers()['adjusted_perplexity']
  edits = list(next(iter(by_layer.values())))
  lines = [
    Line((f'ROME, layer {layer}',), [_paper_cell(v, n, 2) for n in edits], True)
    for layer, v in by_layer.items()
  ]
  return paper.apart(
    'table3_paper',
    'Table 3',
    f'adjusted perplexity, judged by {paper.numbers()["scorer"]}',
    ('run',),
    [f'{n} edits' for n in edits],
    lines,
  )


def scorer(run: MeasuredRun) -> str:
  """The model that judged the run's text."""
  settings = run.config.get('adjusted_ppl') or {}
  return (settings.get('scorer') or {}).get('name') or 'a model not named'


class _State(NamedTuple):
  """A measured state of a model: a line of Table 1."""

  label: str
  run: MeasuredRun
  num_edits: int
  scores: dict[str, Row]


def _unedited(study: Study) -> list[_State]:
  """One state per model as it is, or several where its runs measured it on
  different items."""
  found: list[tuple[MeasuredRun, dict[str, Row]]] = []
  for run in study.all_runs:
    rows = {
      task: row
      for task, metric in run.headlines.items()
      if (row := run.row(task, metric, 0))
    }
    for other, there in found:
      if other.weights == run.weights and _agree(rows, there):
        there |= rows
        break
    else:
      if rows:
        found.append((run, rows))
  names = [f'unedited {run.model}' for run, _ in found]
  return [
    _State(
      name
      if names.count(name) == 1
      else f'{name}, items of {study.labels[run]}',
      run,
      0,
      rows,
    )
    for name, (run, rows) in zip(names, found, strict=True)
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


def _paper_name(method: str) -> str:
  shown = labels.method_name({'name': method})
  return f'paper ({paper.numbers()["model"]}): {shown}'


def _paper_cell(there: Mapping[str, Any], name: str, digits: int = 1):
  if name not in there:
    return None
  value = there[name]
  return '/' if value is None else Cell(float(value), digits=digits)


def _paper_line(
  method: str, num_edits: str, there: Mapping[str, Any], columns
) -> Line:
  cells = [_paper_cell(there, name) for name in columns]
  return Line((_paper_name(method), num_edits), cells, is_paper=True)
