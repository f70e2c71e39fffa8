import numpy as np
import pytest

from me_jax.evals import statistics


@pytest.mark.parametrize(
  ('successes', 'n', 'expected'),
  [
    # Newcombe 1998, Table I, method 3.
    (81, 263, (0.2553, 0.3662)),
    (15, 148, (0.0624, 0.1605)),
    (0, 20, (0.0, 0.1611)),
    (1, 29, (0.0061, 0.1718)),
    (20, 20, (0.8389, 1.0)),
  ],
)
def test_wilson_matches_published_values(successes, n, expected):
  assert statistics.wilson(successes, n) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(('successes', 'n'), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes, n):
  with pytest.raises(ValueError, match='successes'):
    statistics.wilson(successes, n)


def test_bootstrap_of_a_mean_has_the_normal_width():
  values = np.random.default_rng(1).normal(5.0, 2.0, 400)
  data = np.stack([values, np.ones(400)], axis=1)
  low, high = statistics.bootstrap(lambda t: t[..., 0] / t[..., 1], data)
  half = 1.96 * values.std() / 20
  assert (high - low) / 2 == pytest.approx(half, rel=0.1)
  assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_bootstrap_is_seeded():
  data = np.random.default_rng(0).random((50, 1))
  first = statistics.bootstrap(lambda t: t[:, 0], data, seed=3)
  assert first == statistics.bootstrap(lambda t: t[:, 0], data, seed=3)
  assert first != statistics.bootstrap(lambda t: t[:, 0], data, seed=4)


def test_macro_mean_weighs_groups_equally():
  value, low, high = statistics.macro_mean([np.ones(90), np.array([0, 1.0])])
  assert value == 0.75
  assert low <= value <= high


@pytest.mark.parametrize('size', [2, 3, 40])
def test_macro_mean_interval_has_the_unbiased_width(size):
  rng = np.random.default_rng(size)
  groups = [rng.normal(size=size) for _ in range(60)]
  _, low, high = statistics.macro_mean(groups)
  variance = sum(np.var(g, ddof=1) / size for g in groups) / 60**2
  assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.1)


def test_macro_mean_of_single_values_still_has_an_interval():
  groups = [np.array([float(i % 2)]) for i in range(50)]
  value, low, high = statistics.macro_mean(groups)
  assert value == 0.5
  assert 0.3 < low < 0.42 and 0.58 < high < 0.7


def test_macro_mean_refuses_an_empty_group():
  with pytest.raises(ValueError, match='sizes'):
    statistics.macro_mean([np.ones(2), np.ones(0)])
