"""Figures for any run: facts, perplexity, the triangle, letters, GRACE."""

from collections.abc import Iterator

from me_jax.reporting import labels
from me_jax.reporting.curves import (
  EDITS,
  INTERVALS,
  groups,
  of_metric,
  of_scores,
  plain,
)
from me_jax.reporting.figure import Bars, Chart, Figure, HeatMap
from me_jax.reporting.measured_run import EDIT_TASK, MeasuredRun
from me_jax.reporting.study import Study

_WHEN = ('sequential', 'individual', 'unedited')
_OF_FACTS = {'reliability': 'own prompt', 'generalization': 'in other words'}
_TRIGGERED = {
  'reliability': 'own prompts',
  'generalization': 'prompts in other words',
  'locality': 'unrelated prompts',
}


def figures(study: Study) -> Iterator[Figure | None]:
  """All of this file."""
  yield from facts(study)
  yield from perplexity(study)
  for run in study.runs:
    name = file_name(study, run)
    yield triangle(run, study.labels[run], f'triangle_{name}')
    yield letters(study, run, f'letters_{name}')
  yield grace(study)


def file_name(study: Study, run: MeasuredRun) -> str:
  """The run's directory; its place among the runs where that is taken."""
  name = plain(run.path.name)
  same = [r for r in study.all_runs if r.path.name == run.path.name]
  return f'{name}_{same.index(run) + 1}' if len(same) > 1 else name


def facts(study: Study) -> list[Chart]:
  """Reliability and generalization by number of edits."""
  groups = (
    [(list(study.runs), '')]
    if len(study.runs) <= 4
    else [([run], f'_{file_name(study, run)}') for run in study.runs]
  )
  charts = []
  for runs, suffix in groups:
    curves = [
      curve
      for score, panel in _OF_FACTS.items()
      for run in runs
      for when in _WHEN
      for curve in of_metric(
        run,
        EDIT_TASK,
        f'{when}_{score}',
        panel=panel,
        label=study.labels[run],
        variant=when,
      )
    ]
    if curves:
      about = f': {study.labels[runs[0]]}' if suffix else ''
      charts.append(
        Chart(
          name=f'facts{suffix}',
          title=f'The facts by number of edits{about}',
          caption='Target tokens said right over the facts so far. Sequential: '
          'after the last edit. Individual: each right after its own edit. '
          'Unedited: the same facts before any edit, which is what comes for '
          f'free. {INTERVALS}',
          x_label=EDITS,
          y_label='target tokens said right, %',
          curves=curves,
          y_low=0.0,
        )
      )
  return charts


def perplexity(study: Study) -> list[Chart]:
  """Perplexities by number of edits."""
  tasks = [t for t in study.tasks if labels.is_perplexity(t)]
  charts = []
  for runs, suffix, about in groups(study):
    found = [
      of_scores(study, runs, task, panel=labels.task_name(task))
      for task in tasks
    ]
    curves = [curve for curves, _ in found for curve in curves]
    if curves:
      charts.append(
        Chart(
          name=f'perplexity{suffix}',
          title=f'Perplexity of plain text by number of edits{about}',
          caption='Lower is better. Dotted: the unedited model. A caret at '
          f'the top: infinite. {INTERVALS}',
          x_label=EDITS,
          y_label='perplexity, log scale',
          curves=curves,
          levels=[level for _, levels in found for level in levels],
          y_scale='log',
        )
      )
  return charts


def triangle(run: MeasuredRun, label: str, name: str) -> HeatMap | None:
  """What later edits take from earlier facts."""
  size = run.config.get('edit_batch_size', 1)
  scores = {(r['edit_step'], r['fact']): r['scores'] for r in run.triangle}
  made = {s for t, s in scores if t and t == 1 + s // size}
  if not made:
    return None
  measured = [n for n in run.edits(EDIT_TASK) if n]
  own = lambda s: 1 + s // size
  # By column after which edit step; None: after the fact's own.
  columns = {'before': 0, 'own edit': None}
  columns |= {f'after {n}': run.step(n) for n in measured}
  panels = {}
  for kind, panel in (
    ('rewrite_token', 'own prompt'),
    ('rephrase_token', 'in other words'),
  ):
    values = {
      (column, s + 1): 100 * found[kind]
      for column, step in columns.items()
      for s in sorted(made)
      if kind
      in (found := scores.get((own(s) if step is None else step, s), {}))
    }
    if values:
      panels[panel] = values
  if not panels:
    return None
  return HeatMap(
    name=name,
    title=f'What became of each fact: {label}',
    caption='One line per fact, in the order of the edits, from the top. '
    'Columns: before any edit, right after its own edit, and after so many '
    'edits in all. Hatched: not measured, for the fact was not written yet.',
    x_label='measured',
    y_label='fact',
    value_label='target tokens said right, %',
    columns=list(columns),
    lines=list(range(1, max(made) + 2)),
    panels=panels,
  )


def letters(study: Study, run: MeasuredRun, name: str) -> Bars | None:
  """Which letters were answered."""
  panels = {}
  for task in labels.task_order(list(run.headlines)):
    source = {n: run for n in run.edits(task)}
    if 0 not in source and (other := study.source(run, task)):
      source = {0: other, **source}
    bars = {str(n): whose.letters(task, n) for n, whose in source.items()}
    if any(bars.values()):
      panels[labels.task_name(task)] = bars
  if not panels:
    return None
  return Bars(
    name=name,
    title=f'Letters that were answered: {study.labels[run]}',
    caption='A model that always says the same letter scores near chance '
    'whatever it knows. Empty: no letter could be read off the answer.',
    x_label=EDITS,
    y_label='answers, %',
    panels=panels,
  )


def grace(study: Study) -> Chart | None:
  """Where GRACE acts, and what it keeps."""
  curves = []
  for run in study.runs:
    label = study.labels[run]
    for kind, about in _TRIGGERED.items():
      curves += of_metric(
        run,
        EDIT_TASK,
        f'sequential_{kind}_trigger_rate',
        panel=f'acts on {about}, %',
        label=label,
      )
    for task in study.tasks:
      curves += of_metric(
        run,
        task,
        'trigger_rate',
        panel=f'acts on items of {labels.task_name(task)}, %',
        label=label,
      )
    for metric, panel in (
      ('num_keys', 'keys in the codebook'),
      ('radius_median', 'median radius of a key'),
    ):
      curves += of_metric(run, EDIT_TASK, metric, panel=panel, label=label)
  if not curves:
    return None
  return Chart(
    name='grace',
    title='Where GRACE acts',
    caption='Prompts and items, in per cent, in which some position was as '
    'near to a key as its radius; and what the codebook holds.',
    x_label=EDITS,
    y_label='',
    curves=curves,
    y_low=0.0,
  )
