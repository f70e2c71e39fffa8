"""Figures 6 and 8 of the paper and the curves of its Table 3: weights,
attention, text."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from me_jax.reporting import labels, other_tables, text_tables
from me_jax.reporting.curves import EDITS, INTERVALS, of_metric
from me_jax.reporting.figure import Chart, Curve
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study

_FLOWS = {
  's_wp': 'S_wp: text to label words',
  's_pq': 'S_pq: label words to the answer',
  's_ww': 'S_ww: all else',
}


def figures(study: Study) -> Iterator[Chart | None]:
  """All of this file."""
  yield drift(study)
  yield saliency(study)
  yield raw_saliency(study)
  yield adjusted_perplexity(study)


def drift(study: Study) -> Chart | None:
  """Figure 6: the correlation of edited with unedited weights."""
  curves = []
  for run in study.runs:
    label = _layer_label(study, run)
    by_path = {
      path: _numbers(run, 'weight_drift', f'pearson_r/{path}')
      for path in other_tables.matrices(run)
    }
    edits = sorted({n for values in by_path.values() for n in values})
    # GRACE leaves the weights alone: there is nothing to draw.
    if not edits or run.method['name'] == 'grace':
      continue
    mean = [np.mean([v[n] for v in by_path.values() if n in v]) for n in edits]
    curves.append(
      Curve(panel='', label=label, x=edits, y=list(map(float, mean)))
    )
    if len(by_path) > 1:
      curves += [
        Curve(
          panel='',
          label=label,
          x=list(v),
          y=list(v.values()),
          variant='',
          is_thin=True,
        )
        for v in by_path.values()
      ]
  if not curves:
    return None
  return Chart(
    name='figure6',
    title='Similarity of edited and unedited weights (Figure 6)',
    caption='Pearson correlation of all entries of an edited matrix with those '
    'of the unedited one. Where a method edits several matrices the mean is '
    'drawn with markers, and thin without them each matrix.',
    x_label=EDITS,
    y_label='Pearson R',
    curves=curves,
    y_high=1.0,
  )


def saliency(study: Study) -> Chart | None:
  """Figure 8: where the answer comes from, by layer."""
  curves = _all_flows(study, 'share')
  if not curves:
    return None
  return Chart(
    name='figure8',
    title='Information flow in context by layer (Figure 8)',
    caption='Saliency of the attention in SST-2 prompts with two examples: '
    'shares of the mean flow from the text to the label words (S_wp), from '
    'these to the place of the answer (S_pq) and between all other tokens '
    '(S_ww). The three add up to 1 at every layer.',
    x_label='layer',
    y_label='share of the flow',
    curves=curves,
    y_low=0.0,
    y_high=1.0,
  )


def raw_saliency(study: Study) -> Chart | None:
  """What the shares of Figure 8 are shares of."""
  curves = [
    dataclasses.replace(curve, y=[y if y > 0 else np.nan for y in curve.y])
    for curve in _all_flows(study, 's')
  ]
  if not curves:
    return None
  return Chart(
    name='saliency',
    title='Saliency in context by layer, as measured (Figure 8)',
    caption='What Figure 8 shows the shares of: means over the pairs of tokens '
    'of each kind of |Σ A ⊙ ∂L/∂A|, the sum being over the heads. What is 0 '
    'is left out.',
    x_label='layer',
    y_label='saliency, log scale',
    curves=curves,
    y_scale='log',
  )


def adjusted_perplexity(study: Study) -> Chart | None:
  """What a judge thinks of the text."""
  task, metric = 'adjusted_ppl', 'adj_mean'
  curves = [
    curve
    for run in study.runs
    for curve in of_metric(
      run, task, metric, panel='', label=_layer_label(study, run)
    )
    # Where no answer qualifies, there is no point.
    if any(np.isfinite(y) for y in curve.y)
  ]
  if not curves:
    return None
  judges = ', '.join(
    dict.fromkeys(text_tables.scorer(r) for r in study.runs if r.edits(task))
  )
  return Chart(
    name='adjusted_perplexity',
    title='Adjusted perplexity of answers by number of edits (as Table 3)',
    caption=f'Judged by {judges}; lower is better. Points at which no answer '
    f'is long enough are left out. {INTERVALS}',
    x_label=EDITS,
    y_label='adjusted perplexity, log scale',
    curves=curves,
    y_scale='log',
  )


def _layer_label(study: Study, run: MeasuredRun) -> str:
  """The run's label, with its layers even if no other run has others."""
  label = study.labels[run]
  if not run.layers or 'layer' in label:
    return label
  return f'{label}, {labels.layers_name(run.layers)}'


def _numbers(run: MeasuredRun, task: str, metric: str) -> dict[int, float]:
  return {n: run.row(task, metric, n).value for n in run.edits(task, metric)}


def _all_flows(study: Study, kind: str) -> list[Curve]:
  """Before the edits, once for a model, and after the last."""
  curves: list[Curve] = []
  panels = set()
  for run in study.all_runs:
    edits = run.edits('saliency')
    chosen = [n for n in edits if n == 0] + [n for n in edits[-1:] if n]
    for n in chosen:
      edited = f'{study.labels[run]}, {n} edits'
      panel = edited if n else f'unedited {run.model}'
      if panel not in panels:
        panels.add(panel)
        curves += _flows(run, n, panel, kind)
  return curves


def _flows(
  run: MeasuredRun, num_edits: int, panel: str, kind: str
) -> list[Curve]:
  """The three by layer: raw, 's', or a 'share'."""
  curves = []
  for flow, label in _FLOWS.items():
    prefix = f'{kind}_{flow.removeprefix("s_")}/'
    rows = sorted(
      (int(name.removeprefix(prefix)), row)
      for name in run.metrics('saliency')
      if name.startswith(prefix)
      and (row := run.row('saliency', name, num_edits))
    )
    if rows:
      curves.append(
        Curve(
          panel=panel,
          label=label,
          x=[layer for layer, _ in rows],
          y=[row.value for _, row in rows],
          low=[row.ci_low for _, row in rows],
          high=[row.ci_high for _, row in rows],
          n=[row.n for _, row in rows],
        )
      )
  return curves
