"""Figures 3, 4, 5 and 7 of the paper, and the same for any runs: what becomes
of general ability."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from me_jax.reporting import labels
from me_jax.reporting.curves import EDITS, INTERVALS, groups, of_scores
from me_jax.reporting.figure import Chart, Curve, Level
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study

_PAPER_PANELS = ('mmlu', 'commonsenseqa', 'tydiqa', 'tydiqa_goldp', 'mbpp')
_QUESTIONS = 'commonsenseqa'  # the benchmark of Figures 4 and 5
_AGAINST = 'Dotted: the unedited model, and what guessing scores.'
_PERCENT = 'score, %'


def figures(study: Study) -> Iterator[Chart | None]:
  """All of this file."""
  yield from scores(study)
  yield models(study)
  yield layers(study)
  yield batch_sizes(study)
  yield constraint(study)


def scores(study: Study) -> list[Chart]:
  """Every benchmark by number of edits: one figure of all runs, or one per
  method and model if they are many."""
  tasks = [t for t in study.tasks if not labels.is_perplexity(t)]
  charts = [
    _by_edits(
      study,
      group.runs,
      tasks,
      name=f'scores{group.suffix}',
      title=f'General ability by number of edits{group.about}',
    )
    for group in groups(study)
  ]
  return [chart for chart in charts if chart]


def models(study: Study) -> Chart | None:
  """Figure 3: ROME on several models, with the same settings."""
  rome = [r for r in study.runs if labels.method_name(r.method) == 'ROME']
  groups = [
    {run.model: run for run in reversed(runs)} for runs in _alike(rome, ())
  ]
  by_model = max(groups, key=len, default={})
  if len(by_model) < 2:
    return None
  runs = [run for run in study.runs if run in by_model.values()]
  return _by_edits(
    study,
    runs,
    _paper_panels(study),
    name='figure3',
    title='ROME on different models (Figure 3)',
    names=[run.model for run in runs],
  )


def constraint(study: Study) -> Chart | None:
  """Figure 7: ROME with and without the second moment of keys, C."""
  rome = [r for r in study.runs if r.method['name'] == 'rome']
  without = [r for r in rome if labels.method_name(r.method) == 'ROME w/o C']
  runs = [
    r
    for r in rome
    if any((r.model, r.layers) == (w.model, w.layers) for w in without)
  ]
  if len(runs) == len(without):
    return None
  return _by_edits(
    study,
    runs,
    _paper_panels(study),
    name='figure7',
    title='ROME with and without C (Figure 7)',
  )


def layers(study: Study) -> Chart | None:
  """Figure 4: CommonsenseQA by number of edits, a curve per edited layers."""

  def name(run: MeasuredRun) -> str:
    first, last = run.layers[0], run.layers[-1]
    return f'L{first}' if first == last else f'L{first}~{last}'

  return _by_setting(
    study,
    varied=('method/layer', 'method/layers'),
    setting=lambda run: run.layers,
    label=name,
    name='figure4',
    title='CommonsenseQA by edited layers (Figure 4)',
    x_scale='linear',
    x_label=EDITS,
  )


def batch_sizes(study: Study) -> Chart | None:
  """Figure 5: CommonsenseQA by number of edited facts, a curve per batch
  size."""
  return _by_setting(
    study,
    varied=('edit_batch_size',),
    setting=lambda run: run.config.get('edit_batch_size', 1),
    label=lambda run: f'{run.config.get("edit_batch_size", 1)} at once',
    name='figure5',
    title='CommonsenseQA by facts edited at once (Figure 5)',
    x_scale='log',
    x_label='number of edited facts',
  )


def _by_setting(
  study: Study,
  *,
  varied: Collection[str],
  setting: Callable[[MeasuredRun], Any],
  label: Callable[[MeasuredRun], str],
  name: str,
  title: str,
  x_scale: str,
  x_label: str,
) -> Chart | None:
  """A panel per method and model, a curve per setting; None where no method
  has two."""
  measured = [r for r in study.runs if r.layers and _QUESTIONS in r.headlines]
  groups = [
    {setting(run): run for run in reversed(runs)}
    for _, of_model in itertools.groupby(sorted(measured, key=_kind), key=_kind)
    for runs in _alike(list(of_model), varied)
  ]
  groups = [by_setting for by_setting in groups if len(by_setting) > 1]
  curves: list[Curve] = []
  levels: list[Level] = []
  for by_setting in groups:
    runs = [by_setting[key] for key in sorted(by_setting)]
    kin = [
      run
      for other in groups
      for run in other.values()
      if _kind(run) == _kind(runs[0])
    ]
    told = labels.differences(runs[0], kin, without=varied)
    panel = f'{", ".join([_kind(runs[0])[0], *told])} on {runs[0].model}'
    found, against = of_scores(
      study, runs, _QUESTIONS, panel=panel, names=list(map(label, runs))
    )
    curves += found
    levels += against
  if x_scale == 'log':
    curves = [_without_zero(curve) for curve in curves]
  if not curves:
    return None
  return Chart(
    name=name,
    title=title,
    caption=f'{_AGAINST} {INTERVALS} See the letters that were answered, too: '
    'an accuracy near chance may be one letter always.',
    x_label=x_label,
    y_label='accuracy, %',
    curves=curves,
    levels=levels,
    x_scale=x_scale,
    y_low=0.0,
  )


def _kind(run: MeasuredRun) -> tuple[str, str]:
  return labels.method_name(run.method), run.model


def _alike(
  runs: Sequence[MeasuredRun], varied: Collection[str]
) -> list[list[MeasuredRun]]:
  """The runs that agree in all settings of an edit but these."""
  found: list[tuple[dict[str, Any], list[MeasuredRun]]] = []
  for run in runs:
    settings = labels.edit_settings(run)
    settings = {k: v for k, v in settings.items() if k not in varied}
    for other, members in found:
      if settings == other:
        members.append(run)
        break
    else:
      found.append((settings, [run]))
  return [members for _, members in found]


def _without_zero(curve: Curve) -> Curve:
  """The curve from the first edit on: a logarithm has no zero."""
  keep = [i for i, x in enumerate(curve.x) if x > 0]
  take = lambda values: [values[i] for i in keep] if values else values
  return Curve(
    panel=curve.panel,
    label=curve.label,
    x=take(curve.x),
    y=take(curve.y),
    low=take(curve.low),
    high=take(curve.high),
    n=take(curve.n),
  )


def _by_edits(
  study: Study,
  runs: Sequence[MeasuredRun],
  tasks: Sequence[str],
  *,
  name: str,
  title: str,
  names: Sequence[str] = (),
) -> Chart | None:
  """A panel per task, a curve per run."""
  found = [
    of_scores(study, runs, task, panel=labels.task_name(task), names=names)
    for task in tasks
  ]
  curves = [curve for curves, _ in found for curve in curves]
  if not curves:
    return None
  return Chart(
    name=name,
    title=title,
    caption=f'{_AGAINST} {INTERVALS}',
    x_label=EDITS,
    y_label=_PERCENT,
    curves=curves,
    levels=[level for _, levels in found for level in levels],
    y_low=0.0,
  )


def _paper_panels(study: Study) -> list[str]:
  """The benchmarks of the paper's figure, or all where it has none of them."""
  tasks = [t for t in study.tasks if not labels.is_perplexity(t)]
  return [t for t in tasks if t in _PAPER_PANELS] or tasks
