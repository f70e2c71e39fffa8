"""Figures hold what rows hold, files what figures hold."""

import csv
import io
import math

import numpy as np
import pytest
from reporting_workdirs import Made, evaluation, make, read, rome

from me_jax.reporting import diagnostic_figures, draw, write
from me_jax.reporting.figure import Bars, Chart, Curve, HeatMap, Level, to_csv

ALL = ('weight_drift', 'saliency', 'adjusted_ppl')
MEMIT = {'name': 'memit', 'layers': [4, 5]}


def _figures(*paths):
  return {figure.name: figure for figure in write.figures(read(*paths))}


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """Of two layers of ROME, two batch sizes of MEMIT, one run without C."""
  root = tmp_path_factory.mktemp('runs')
  mades = {
    'l5': Made(method=rome(), analyses=ALL),
    'l9': Made(method=rome(layer=9), analyses=ALL),
    'no_c': Made(method=rome(mom2_adjustment=False)),
    'b1': Made(method=MEMIT, analyses=('weight_drift',)),
    'b2': Made(method=MEMIT, size=2, edits=(0, 4, 10)),
  }
  return _figures(*(make(root / name, made) for name, made in mades.items()))


def _curve(chart, label, panel=None, variant=None):
  [curve] = [
    c
    for c in chart.curves
    if c.label == label
    and panel in (None, c.panel)
    and variant in (None, c.variant)
    and not c.is_thin
  ]
  return curve


def test_every_figure_that_has_rows_is_there(found):
  assert set(found) == {
    'scores',
    'facts_l5',
    'facts_l9',
    'facts_no_c',
    'facts_b1',
    'facts_b2',
    'perplexity',
    'figure4',
    'figure5',
    'figure6',
    'figure7',
    'figure8',
    'saliency',
    'adjusted_perplexity',
    *(
      f'{kind}_{run}'
      for kind in ('triangle', 'letters', 'diagnostics')
      for run in ('l5', 'l9', 'no_c', 'b1', 'b2')
    ),
  }


def test_scores_are_the_rows_and_are_seen_against_chance(found):
  chart = found['scores']
  curve = _curve(chart, 'ROME, layer 5')
  assert list(curve.x) == [0, 1, 4, 10] and curve.n == [20] * 4
  assert list(curve.y) == [60.0, 60.0, 45.0, 5.0]
  assert curve.low[1] < 60 < curve.high[1]
  assert chart.y_low == 0
  assert list(chart.levels) == [
    Level(panel='CommonsenseQA', kind='unedited', y=60.0),
    Level(panel='CommonsenseQA', kind='chance', y=20.0),
  ]


def test_figure_4_has_a_curve_per_layer(found):
  assert {c.label for c in found['figure4'].curves} == {'L5', 'L9'}


def test_figure_5_begins_at_the_first_batch(found):
  chart = found['figure5']
  assert chart.x_scale == 'log'
  assert list(_curve(chart, '1 at once').x) == [1, 4, 10]
  assert list(_curve(chart, '2 at once').x) == [4, 10]


def test_figure_6_has_the_mean_and_each_matrix(found):
  chart = found['figure6']
  assert chart.y_high == 1.0
  assert list(_curve(chart, 'ROME, layer 5').y) == [0.999, 0.996, 0.99]
  label = 'MEMIT, batch size 1, layers 4–5'
  mean = _curve(chart, label)
  assert mean.y == pytest.approx([0.9985, 0.994, 0.985])
  assert sum(c.is_thin for c in chart.curves if c.label == label) == 2


def test_figure_7_is_about_one_layer(found):
  labels = {c.label for c in found['figure7'].curves}
  assert labels == {'ROME, layer 5', 'ROME w/o C'}


def test_figure_8_shows_the_model_before_and_after(found):
  chart = found['figure8']
  assert {c.panel for c in chart.curves} == {
    'unedited tiny',
    'ROME, layer 5, 10 edits',
    'ROME, layer 9, 10 edits',
  }
  own = [c for c in chart.curves if c.panel == 'unedited tiny']
  assert [list(c.x) for c in own] == [list(range(6))] * 3
  assert np.sum([c.y for c in own], axis=0) == pytest.approx(1)
  raw = [c for c in found['saliency'].curves if c.panel == 'unedited tiny']
  total = np.sum([c.y for c in raw], axis=0)
  for shares, values in zip(own, raw, strict=True):
    assert np.array(values.y) / total == pytest.approx(np.array(shares.y))


def test_facts_and_text(found):
  chart = found['facts_l5']
  assert {c.variant for c in chart.curves} == {
    'sequential',
    'individual',
    'unedited',
  }
  label = 'ROME, layer 5'
  curve = _curve(chart, label, 'own prompt', 'sequential')
  assert list(curve.y) == [97.5, 90.0, 75.0]
  assert found['perplexity'].y_scale == 'log'
  assert _curve(found['perplexity'], label).y[-1] == math.inf
  text = _curve(found['adjusted_perplexity'], label)
  assert text.y[:3] == [7.5, 10.5, 19.5] and math.isnan(text.y[3])


def test_the_triangle_lacks_what_was_not_measured(found):
  heat = found['triangle_l5']
  assert isinstance(heat, HeatMap)
  assert heat.columns == [
    'before',
    'own edit',
    'after 1',
    'after 4',
    'after 10',
  ]
  values = heat.panels['own prompt']
  assert values['before', 10] == 20.0 and values['own edit', 10] == 100.0
  assert values['after 4', 1] == pytest.approx(85.0)
  assert values['after 10', 1] == pytest.approx(55.0)
  assert ('after 4', 5) not in values and ('after 1', 2) not in values
  assert heat.panels['in other words']['after 10', 1] == pytest.approx(27.5)
  assert found['triangle_b2'].panels['own prompt']['own edit', 10] == 100.0


def test_letters_are_shares_of_the_answers(found):
  bars = found['letters_l5'].panels['CommonsenseQA']
  assert list(bars) == ['0', '1', '4', '10']
  assert bars['10']['C'] == 90.0 and sum(bars['10'].values()) == 100.0


def test_diagnostics_are_the_numbers_of_the_records(found):
  chart = found['diagnostics_l5']
  seconds = _curve(chart, '', 'seconds per edit step')
  assert list(seconds.x) == list(range(1, 11)) and seconds.y[3] == 5.5
  panels = {c.panel for c in chart.curves}
  assert '‖ΔW‖ / ‖W‖ of the edit' in panels
  # Never changes, is no quantity.
  assert not panels & {'loss before the search, nats', 'lookup position'}


def test_quantities_of_every_kind_of_record():
  info = {
    'loss': 2.0,
    'gradient_norm': {'a': 1.0, 'b': 3.0},
    'layers': [{'layer': 4, 'delivered': 0.5}, {'layer': 5, 'delivered': 0.7}],
    'nearest_distance': None,
    'action': 'inserted',
    'boundary_merged': 1,
    'key_norm': math.inf,
  }
  record = {'info': [info, {'loss': 4.0, 'steps': []}], 'edit_step': 1}
  assert diagnostic_figures.quantities(record) == pytest.approx(
    {'loss': 3.0, 'gradient_norm': 2.0, 'delivered': 0.6}
  )
  assert diagnostic_figures.quantities({'edit_step': 1}) == {}


def test_grace_shows_where_it_acts(tmp_path):
  method = {'name': 'grace', 'layer': 20, 'eps': 1.0}
  made = Made(method=method, analyses=('weight_drift',))
  found = _figures(make(tmp_path / 'grace', made))
  # It leaves the weights alone.
  assert 'figure6' not in found
  chart = found['grace']
  curve = _curve(chart, 'GRACE', 'acts on items of CommonsenseQA, %')
  assert list(curve.y) == [3.0, 12.0, 30.0]
  assert list(_curve(chart, 'GRACE', 'keys in the codebook').y) == [1, 4, 10]


def test_models_make_figure_3(tmp_path):
  a = make(tmp_path / 'a', Made(method=rome()))
  b = make(tmp_path / 'b', Made(method=rome(), model='big'))
  chart = _figures(a, b)['figure3']
  assert {c.label for c in chart.curves} == {'tiny', 'big'}


def test_layers_are_compared_with_all_else_equal(tmp_path):
  grace = {'name': 'grace'}
  paths = [
    make(
      tmp_path / f'{layer}_{eps}',
      Made(method={**grace, 'layer': layer, 'eps': eps}),
    )
    for layer, eps in ((20, 1.0), (20, 5.0), (30, 5.0), (25, 9.0), (26, 9.0))
  ]
  chart = _figures(*paths)['figure4']
  assert {(c.panel, c.label) for c in chart.curves} == {
    ('GRACE, ε = 5 on tiny', 'L20'),
    ('GRACE, ε = 5 on tiny', 'L30'),
    ('GRACE, ε = 9 on tiny', 'L25'),
    ('GRACE, ε = 9 on tiny', 'L26'),
  }
  other = make(tmp_path / 'big', Made(method=rome(layer=9), model='big'))
  alone = make(tmp_path / 'rome', Made(method=rome()))
  assert 'figure3' not in _figures(other, alone)


def test_an_evaluation_alone_has_no_figure(tmp_path):
  assert _figures(evaluation(tmp_path / 'eval')) == {}


def test_many_runs_are_drawn_by_method(tmp_path):
  paths = [
    make(tmp_path / f'r{i}', Made(method=rome(layer=i))) for i in range(6)
  ]
  paths.append(make(tmp_path / 'm', Made(method=MEMIT)))
  found = _figures(*paths)
  assert {'scores_rome_tiny', 'scores_memit_tiny'} <= set(found)
  assert 'scores' not in found


def test_a_csv_holds_all_that_is_drawn(found):
  chart = found['scores']
  rows = list(csv.DictReader(io.StringIO(to_csv(chart.rows()))))
  [ax] = draw.draw(chart).axes
  drawn = [
    sorted(zip(line.get_xdata(), line.get_ydata(), strict=True))
    for line in ax.lines
    if line.get_marker() not in (6, 'None')
  ]
  for label, points in zip(
    dict.fromkeys(c.label for c in chart.curves), drawn, strict=True
  ):
    assert points == [
      (float(r['x']), float(r['y'])) for r in rows if r['label'] == label
    ]
  levels = [r for r in rows if r['variant'].endswith(' level')]
  across = [line for line in ax.lines if line.get_marker() == 'None']
  assert [float(r['y']) for r in levels] == [
    line.get_ydata()[0] for line in across
  ]


def test_csvs_of_bars_and_heat_maps(found):
  rows = found['letters_l5'].rows()
  assert {'panel': 'CommonsenseQA', 'x': '0', 'part': 'C', 'y': 90.0} in rows
  heights = [
    patch.get_height()
    for patch in draw.draw(found['letters_l5']).axes[0].patches
  ]
  assert sorted(heights) == sorted(row['y'] for row in rows)
  heat = found['triangle_l5']
  image = draw.draw(heat).axes[0].images[0].get_array()
  rows = [r for r in heat.rows() if r['panel'] == 'own prompt']
  assert image.count() == len(rows)
  for row in rows:
    at = image[row['line'] - 1, heat.columns.index(row['x'])]
    assert at == row['value']


def test_infinite_values_are_carets_and_nan_is_left_out():
  chart = Chart(
    name='c',
    title='c',
    caption='',
    x_label='x',
    y_label='y',
    curves=[
      Curve(panel='', label='a', x=[0, 1, 2], y=[3.0, math.inf, math.nan])
    ],
    y_scale='log',
  )
  [ax] = draw.draw(chart).axes
  points, carets = ax.lines
  assert list(points.get_xdata()) == [0.0]
  assert carets.get_marker() == 6 and list(carets.get_xdata()) == [1.0]


@pytest.mark.parametrize('label', ['_x', '$x$', '\\frac', '<b>', ''])
def test_no_label_is_markup(label):
  bars = Bars(
    name='b',
    title=label,
    caption='',
    x_label=label,
    y_label='%',
    panels={label: {'0': {label: 100.0}}},
  )
  chart = Chart(
    name='c',
    title='',
    caption='',
    x_label=label,
    y_label=label,
    curves=[Curve(panel=label, label=label, x=[1], y=[2.0])],
  )
  for figure in (bars, chart):
    assert draw.save(draw.draw(figure), 'png').startswith(b'\x89PNG')


def test_a_figure_is_the_same_file_each_time(found):
  for kind in ('svg', 'pdf', 'png'):
    one, two = (draw.save(draw.draw(found['figure6']), kind) for _ in range(2))
    assert one == two
