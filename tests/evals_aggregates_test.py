import numpy as np
import pytest

from me_jax.evals import aggregates, statistics


def _samples(values, group='g', **changes):
  return [
    {
      'group': group,
      'metrics': {'accuracy': value, 'half': value / 2},
      'filtered_resps': {'oc': 'A' if value == 1 else '', 'clean': 'B'},
      'nonfinite': False,
      **changes,
    }
    for value in values
  ]


def test_right_and_wrong_have_wilsons_interval():
  metric = aggregates.mean('accuracy', _samples([1.0, 0.0, 1, 1]), 'accuracy')
  assert metric == aggregates.share('accuracy', 3, 4)
  low, high = statistics.wilson(3, 4)
  assert (metric.value, metric.n) == (75, 4)
  assert (metric.ci_low, metric.ci_high) == (100 * low, 100 * high)


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_all_alike_still_have_an_interval(value):
  """Wilson's: a bootstrap of equal values would have none."""
  metric = aggregates.mean('accuracy', _samples([value] * 9), 'accuracy')
  assert metric.value == 100 * value
  assert metric.ci_high - metric.ci_low > 25


def test_parts_of_a_point_are_bootstrapped():
  values = np.random.default_rng(0).random(300)
  metric = aggregates.mean('f1', _samples(values.tolist()), 'accuracy')
  assert metric.name == 'f1' and metric.n == 300
  assert metric.value == pytest.approx(100 * values.mean(), rel=1e-12)
  half = 196 * values.std() / 300**0.5
  assert metric.ci_high - metric.ci_low == pytest.approx(2 * half, rel=0.1)
  # Wilson's interval of such a mean would be much wider.
  low, high = statistics.wilson(round(values.sum()), 300)
  assert metric.ci_high - metric.ci_low < 0.7 * 100 * (high - low)


def test_one_part_of_a_point_is_enough():
  found = aggregates.mean('f1', _samples([1.0, 0.0, 0.5]), 'accuracy')
  assert found.value == 50
  assert found != aggregates.share('f1', 1, 3)


def test_every_metric_has_a_mean():
  found = aggregates.means(_samples([1.0, 0.0]))
  assert [(m.name, m.value) for m in found] == [('accuracy', 50), ('half', 25)]


def test_groups_weigh_the_same():
  samples = _samples([1.0] * 30, 'large') + _samples([0.0, 1.0], 'small')
  macro = aggregates.macro_mean('m', samples, 'accuracy', ['small', 'large'])
  assert (macro.name, macro.value, macro.n) == ('m', 75, 32)
  assert macro.ci_low < 75 < macro.ci_high


def test_macro_means_then_the_groups():
  samples = _samples([1.0, 1.0], 'b') + _samples([0.0, 1.0], 'a')
  found = aggregates.macro_means('t', samples, ('a', 'b'), complete=True)
  assert [(m.name, m.value, m.n) for m in found] == [
    ('accuracy', 75, 4),
    ('half', 37.5, 4),
    ('accuracy_a', 50, 2),
    ('accuracy_b', 100, 2),
    ('half_a', 25, 2),
    ('half_b', 50, 2),
  ]
  assert found[2] == aggregates.share('accuracy_a', 1, 2)


def test_a_missing_group_is_an_error_that_names_it():
  samples = _samples([1.0, 0.0], 'b')
  with pytest.raises(ValueError, match=r't: .* 2 of 3 groups: a, c\.'):
    aggregates.macro_means('t', samples, ('a', 'b', 'c'), complete=True)
  found = aggregates.macro_means('t', samples, ('a', 'b', 'c'), complete=False)
  assert [m.name for m in found] == [
    'accuracy_of_1_groups',
    'half_of_1_groups',
    'accuracy_b',
    'half_b',
  ]
  macro = aggregates.macro_mean('m', samples, 'half', ['a', 'b'], 'subjects')
  assert (macro.name, macro.value) == ('m_of_1_subjects', 25)


def test_what_tells_a_broken_model():
  samples = _samples([1.0, 1.0, 0.0]) + _samples([0.0], nonfinite=True)
  spread = aggregates.spread(samples, 'AB', 'oc')
  assert [(m.name, m.value) for m in spread] == [
    ('predicted_A', 50),
    ('predicted_B', 0),
  ]
  assert aggregates.spread(samples, 'AB', 'clean')[1].value == 100
  assert aggregates.empty_share(samples, 'oc').value == 50
  assert aggregates.empty_share(samples, 'clean').value == 0
  bad = aggregates.nonfinite(samples)
  assert (bad.name, bad.value, bad.n) == ('n_nonfinite', 1, 4)
  assert bad.ci_low is None
