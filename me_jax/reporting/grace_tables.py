"""The paper's Tables 6 and 7: GRACE by radius and by layer."""

from collections.abc import Callable, Sequence
from typing import Any

from me_jax.reporting import labels, paper
from me_jax.reporting.measured_run import EDIT_TASK, MeasuredRun
from me_jax.reporting.significance import LEGEND, Changes
from me_jax.reporting.study import Study
from me_jax.reporting.table import Line, Table, cell

_FACTS = {
  'sequential_reliability': 'reliability',
  'sequential_generalization': 'generalization',
}
_KEPT = {'num_keys': 'keys', 'radius_median': 'median radius'}
_PAPER_TASKS = ('mmlu', 'commonsenseqa', 'tydiqa', 'mbpp')


def by_radius(study: Study, changes: Changes) -> Table | None:
  """Table 6."""
  runs = grace_runs(study)
  runs.sort(key=lambda run: (run.layers, run.method['eps']))
  if not runs:
    return None
  return _table(
    study,
    changes,
    runs,
    name='table6',
    title='GRACE by radius ε (Table 6)',
    published=lambda run: (
      paper.numbers()['grace_eps']['eps'].get(f'{run.method["eps"]:g}')
      if run.layers == (paper.numbers()['grace_eps']['layer'],)
      else None
    ),
  )


def by_layer(study: Study, changes: Changes) -> Table | None:
  """Table 7; None unless there are two layers."""
  runs = grace_runs(study)
  if len({run.layers for run in runs}) < 2:
    return None
  runs.sort(key=lambda run: (run.method['eps'], run.layers))
  return _table(
    study,
    changes,
    runs,
    name='table7',
    title='GRACE by edited layer (Table 7)',
    published=lambda run: (
      paper.numbers()['grace_layer']['layers'].get(str(run.layers[0]))
      if run.method['eps'] == paper.numbers()['grace_layer']['eps']
      else None
    ),
  )


def paper_tables(study: Study) -> list[Table]:
  """The paper's Tables 6 and 7, for reports of other models."""
  runs = grace_runs(study)
  if not runs or all(map(paper.has_model, runs)):
    return []
  numbers = paper.numbers()
  eps, layer = numbers['grace_eps'], numbers['grace_layer']
  columns = [*_PAPER_TASKS, 'reliability', 'generalization']
  tables = [
    (
      'table6_paper',
      'Table 6',
      f'GRACE at layer {eps["layer"]}',
      {f'ε = {k}': v for k, v in eps['eps'].items()},
      columns,
    ),
    (
      'table7_paper',
      'Table 7',
      f'GRACE with ε = {layer["eps"]}',
      {f'layer {k}': v for k, v in layer['layers'].items()},
      columns[:4],
    ),
  ]
  return [
    paper.apart(
      name,
      table,
      f'{about}, after 100 edits',
      ('setting',),
      list(map(labels.task_name, names)),
      [
        Line((setting,), [paper.cell(there, n) for n in names], is_paper=True)
        for setting, there in lines.items()
      ],
    )
    for name, table, about, lines, names in tables
  ]


def grace_runs(study: Study) -> list[MeasuredRun]:
  """Runs of GRACE whose settings are known and that are past an edit."""
  return [
    run
    for run in study.runs
    if run.method['name'] == 'grace'
    and len(run.layers) == 1
    and 'eps' in run.method
    and run.edits()[-1:] > [0]
  ]


def _table(
  study: Study,
  changes: Changes,
  runs: Sequence[MeasuredRun],
  *,
  name: str,
  title: str,
  published: Callable[[MeasuredRun], dict[str, Any] | None],
) -> Table:
  """A line per run, after the last edit that was measured."""
  there = lambda task, metric: any(r.edits(task, metric) for r in runs)
  tasks = [t for t in study.tasks if any(t in r.headlines for r in runs)]
  facts = [f for f in _FACTS if there(EDIT_TASK, f)]
  kept = [k for k in _KEPT if there(EDIT_TASK, k)]
  triggered = [t for t in tasks if there(t, 'trigger_rate')]
  lines = []
  for run in runs:
    n = run.edits()[-1]
    setting = (str(run.layers[0]), f'{run.method["eps"]:g}', str(n))
    cells = [
      cell(
        study.score(run, t, n),
        mark=changes.mark(run, n, t),
        p=changes.p(run, n, t),
        digits=labels.task_digits(t),
      )
      for t in tasks
    ]
    cells += [
      cell(
        run.row(EDIT_TASK, f, n),
        mark=changes.mark(run, n, f),
        p=changes.p(run, n, f),
      )
      for f in facts
    ]
    cells += [
      cell(run.row(EDIT_TASK, k, n), digits=0 if k == 'num_keys' else 2)
      for k in kept
    ]
    cells += [cell(run.row(t, 'trigger_rate', n)) for t in triggered]
    lines.append(Line((study.labels[run], *setting), cells))
    if paper.has_model(run) and n == 100 and (found := published(run)):
      names = [*tasks, *(_FACTS[f] for f in facts)]
      of_paper = [paper.cell(found, name) for name in names]
      of_paper += [None] * (len(kept) + len(triggered))
      head = f'paper ({paper.numbers()["model"]})'
      lines.append(Line((head, *setting), of_paper, is_paper=True))
  queries: dict[str, list[str]] = {}
  for run in runs:
    query = run.method.get('query', 'not said')
    asked = f'{query}, in benchmarks {run.method.get("task_query") or query}'
    queries.setdefault(asked, []).append(study.labels[run])
  told = [f'{asked} ({"; ".join(names)})' for asked, names in queries.items()]
  return Table(
    name=name,
    title=title,
    heads=('run', 'layer', 'ε', 'edits'),
    columns=[
      *map(labels.task_name, tasks),
      *(_FACTS[f] for f in facts),
      *(_KEPT[k] for k in kept),
      *(f'acts in {labels.task_name(t)}' for t in triggered),
    ],
    lines=lines,
    notes=[
      'Reliability and generalization after all edits. Keys: entries of the '
      'codebook. Acts in: items, in per cent, in which some position was as '
      'near to a key as its radius. Which positions ask the codebook moves '
      f'these numbers: {"; ".join(told)}.',
      LEGEND,
    ],
  )
