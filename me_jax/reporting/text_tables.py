"""The paper's Table 3: what another model thinks of the edited one's text."""

from me_jax.reporting import labels, paper
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.other_tables import by_edits
from me_jax.reporting.study import Study
from me_jax.reporting.table import INTERVAL, Line, Table, cell

_ROME = {'name': 'rome'}  # as in the paper's table: with C
_TEXT = {
  'adj_mean': ('mean', 2),
  'adj_median': ('median', 2),
  'adj_geomean': ('geometric mean', 2),
  'ppl_mean': ('perplexity alone', 2),
  'rho_mean': ('ρ', 3),
  **{f'adj_mean_n{n}': (f'mean, {n}-grams', 2) for n in (1, 2, 3, 4)},
  'n_excluded': ('left out', 0),
}


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
    is_rome = labels.method_name(run.method) == labels.method_name(_ROME)
    if there and paper.has_model(run) and is_rome:
      cells = [paper.cell(there, str(n)) for n in edits]
      lines.append(
        Line((paper.name('rome') + f', layer {layer}',), cells, True)
      )
  judges = dict.fromkeys(map(scorer, runs))
  return Table(
    name='table3',
    title='Adjusted perplexity by layer and number of edits (Table 3)',
    heads=('run',),
    columns=[edits_name(n) for n in edits],
    lines=lines,
    notes=[
      f'Judged by {", ".join(judges)}; lower is better. The perplexity of the '
      'first 20 tokens of an answer times e^(1 − ρ), ρ the share of its '
      'n-grams that are distinct; the mean over the answers that are long '
      "enough. '/': none is. Numbers with different n are of different "
      f'answers; no test is made. {INTERVAL}'
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
    Line((f'layer {layer}',), [paper.cell(v, n) for n in edits], True)
    for layer, v in by_layer.items()
  ]
  return paper.apart(
    'table3_paper',
    'Table 3',
    f'adjusted perplexity, judged by {paper.numbers()["scorer"]}',
    ('ROME',),
    [edits_name(n) for n in edits],
    lines,
  )


def edits_name(count: int | str) -> str:
  return '1 edit' if str(count) == '1' else f'{count} edits'


def scorer(run: MeasuredRun) -> str:
  """The model that judged the run's text."""
  settings = run.config.get('adjusted_ppl') or {}
  return (settings.get('scorer') or {}).get('name') or 'a model not named'


def text_quality(study: Study) -> Table | None:
  """All that Table 3 is a part of."""
  return by_edits(
    study,
    'adjusted_ppl',
    _TEXT,
    name='adjusted_perplexity',
    title='Adjusted perplexity, its parts and other averages',
    note='ρ: share of distinct n-grams in an answer, 1 where nothing repeats. '
    "Left out: answers that are too short. '/': no answer is long enough.",
  )
