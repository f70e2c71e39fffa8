import itertools
import math

import numpy as np
import pytest

from me_jax.evals import paired
from me_jax.evals.statistics import DRAWS


@pytest.mark.parametrize(
  ('broken', 'repaired', 'p'),
  [
    (0, 0, 1.0),
    (1, 0, 1.0),
    (5, 0, 2 / 32),
    (0, 6, 2 / 64),
    (2, 10, 2 * (1 + 12 + 66) / 4096),
    (7, 7, 1.0),
    (8, 7, 1.0),
  ],
)
def test_mcnemar_by_hand(broken, repaired, p):
  assert paired.mcnemar(broken, repaired) == p
  assert paired.mcnemar(repaired, broken) == p


def test_mcnemar_is_the_binomial_test():
  stats = pytest.importorskip('scipy.stats')
  rng = np.random.default_rng(0)
  for size in (5, 50, 500, 5000):
    for a, b in rng.integers(0, size, (10, 2)).tolist():
      expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
      assert paired.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_a_whole_benchmark_does_not_overflow():
  assert paired.mcnemar(14042, 0) == 0.0
  assert 0 < paired.mcnemar(600, 400) < 1e-9
  assert paired.mcnemar(7021, 7021) == 1.0


def test_mcnemar_takes_counts_only():
  with pytest.raises(ValueError, match='-1 and 3'):
    paired.mcnemar(-1, 3)


def test_sign_test_ranks_what_is_not_finite_last():
  before = np.array([1.0, 2.0, 3.0, np.inf, np.nan, 4.0, 1.0])
  after = np.array([np.inf, np.nan, 3.0, np.nan, np.inf, 3.0, 1.5])
  # Three worse, one better; equal: the third, and the two broken in both.
  assert paired.sign_test(before, after) == paired.mcnemar(3, 1)
  assert paired.sign_test(after, before) == paired.mcnemar(1, 3)


def test_bootstrap_agrees_with_the_t_test_on_many_items():
  stats = pytest.importorskip('scipy.stats')
  rng = np.random.default_rng(1)
  for shift in (0.0, 0.04, 0.08, 0.12):
    x = rng.normal(shift, 1, 1000)
    found = paired.bootstrap([x])
    test = stats.ttest_1samp(x, 0)
    interval = test.confidence_interval()
    assert found.value == pytest.approx(x.mean())
    assert found.p == pytest.approx(test.pvalue, abs=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(interval), abs=0.01)


def test_bootstrap_agrees_with_all_draws_there_are():
  x = [-1.0, 2.0, 3.0, 1.0, 4.0, -2.5]
  mean = np.mean(x)
  draws = [np.mean(d) for d in itertools.product(x, repeat=len(x) - 1)]
  exact = np.mean(np.abs(draws - mean) >= abs(mean))
  found = paired.bootstrap([np.array(x)])
  error = 4 * math.sqrt(exact * (1 - exact) / DRAWS)
  assert found.p == pytest.approx(exact, abs=error)
  assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.25)
  assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.25)


def test_bootstrap_is_seldom_wrong_where_nothing_changed():
  rng = np.random.default_rng(2)
  samples = rng.normal(size=(300, 80)) * (rng.random((300, 80)) < 0.5)
  rejected = sum(paired.bootstrap([x]).p < 0.05 for x in samples)
  assert 3 <= rejected <= 30


def test_bootstrap_of_a_macro_mean_draws_within_groups():
  rng = np.random.default_rng(3)
  # Means far apart, little spread within: drawn together it would be wide.
  groups = [rng.normal(m, 0.1, n) for m, n in ((-5, 50), (0, 200), (5.5, 20))]
  found = paired.bootstrap(groups)
  assert found.value == pytest.approx(np.mean([g.mean() for g in groups]))
  spread = math.sqrt(sum(g.var(ddof=1) / len(g) for g in groups)) / 3
  assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
  assert found.p == 1 / (DRAWS + 1)


def test_bootstrap_draws_whole_groups_if_one_has_a_single_item():
  groups = [np.array([1.0]), np.array([2.0, 2.0]), np.array([3.0, 3.0])]
  found = paired.bootstrap(groups)
  assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)


def test_bootstrap_where_nothing_or_little_changed():
  same = paired.bootstrap([np.zeros(30)])
  assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
  one = paired.bootstrap([np.array([0.0, 0.0, 0.0, -0.4])])
  assert one.p == 1.0
  # No exact test of three pairs can say more than 1 in 4.
  three = paired.bootstrap([np.array([-0.1, -0.1, -0.1])])
  assert (three.low, three.high, three.p) == (
    pytest.approx(-0.1),
    pytest.approx(-0.1),
    0.25,
  )
  single = paired.bootstrap([np.array([-0.3])])
  assert (single.low, single.high, single.p) == (-math.inf, math.inf, 1.0)


def test_bootstrap_gives_the_same_again_in_any_order():
  x = np.random.default_rng(4).normal(0.1, 1, 50)
  found, reversed_ = paired.bootstrap([x]), paired.bootstrap([x[::-1]])
  assert found.value == pytest.approx(reversed_.value, rel=1e-12)
  assert (found.low, found.high, found.p) == (
    reversed_.low,
    reversed_.high,
    reversed_.p,
  )
  assert paired.bootstrap([x], seed=1).low != found.low


def test_bootstrap_refuses_what_has_no_mean():
  with pytest.raises(ValueError, match='2 of 4 differences are not finite'):
    paired.bootstrap([np.array([1.0, np.nan]), np.array([np.inf, 0.0])])
  for groups in ([], [np.array([])], [np.array([1.0]), np.array([])]):
    with pytest.raises(ValueError, match='groups of at least one value'):
      paired.bootstrap(groups)


def test_holm_by_hand():
  found = paired.holm([0.01, 0.04, 0.03, 0.005])
  assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert paired.holm([0.5, 0.9]) == [1.0, 1.0]
  assert paired.holm([0.03]) == [0.03]
  assert paired.holm([]) == []


def test_holm_rejects_what_stepping_down_rejects():
  rng = np.random.default_rng(5)
  for _ in range(100):
    ps = (rng.random(8) ** 4).tolist()
    rejected = set()
    for rank, i in enumerate(np.argsort(ps)):
      if ps[i] >= 0.05 / (len(ps) - rank):
        break
      rejected.add(int(i))
    assert {i for i, p in enumerate(paired.holm(ps)) if p < 0.05} == rejected


@pytest.mark.parametrize('p', [math.nan, -0.1, 1.1])
def test_holm_takes_p_values_only(p):
  with pytest.raises(ValueError, match='between 0 and 1'):
    paired.holm([0.1, p])
