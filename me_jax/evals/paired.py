"""Paired tests: two models on the same items."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from me_jax.evals.statistics import DRAWS

_ROUNDING = 1e-9  # relative; two sums of the same items in another order


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanDifference:
  """The mean of differences between two models.

  Attributes:
    value: The mean, or the mean of the groups' means.
    low: Lower end of its 95 % interval; -inf where one pair is all there is.
    high: Upper end.
    p: Two-sided, of no difference.
  """

  value: float
  low: float
  high: float
  p: float


def mcnemar(broken: int, repaired: int) -> float:
  """Two-sided p of the exact test of McNemar (1947).

  Were the models equally good, each item that only one of them has right
  would be as likely the one's as the other's: a binomial with probability 1/2.
  Items on which they agree say nothing. Exact at any count; no mid-p.

  Args:
    broken: Items that only the first model has right.
    repaired: Items that only the second has right.

  Raises:
    ValueError: A count is negative.
  """
  if broken < 0 or repaired < 0:
    raise ValueError(f'Expected counts, got {broken} and {repaired}.')
  n = broken + repaired
  ways, tail = 1, 0  # ways = n choose i
  for i in range(min(broken, repaired) + 1):
    tail += ways
    ways = ways * (n - i) // (i + 1)
  return min(1.0, 2 * tail / 2**n)


def sign_test(before: np.ndarray, after: np.ndarray) -> float:
  """Two-sided p of the exact sign test on losses, float64 [n] each.

  Says only which of each pair is larger, so it holds where a mean does not: a
  value that is not finite counts as larger than any that is, and as large as
  any other such; equal values say nothing.
  """
  before, after = (np.where(np.isfinite(x), x, np.inf) for x in (before, after))
  return mcnemar(int((after > before).sum()), int((after < before).sum()))


def bootstrap(groups: Sequence[np.ndarray], *, seed: int = 0) -> MeanDifference:
  """The mean of the groups' mean differences, and its paired bootstrap.

  Both values of an item are drawn together, so only their difference matters.
  The draws are those of `statistics.macro_mean`: from each group of n
  differences n - 1, or whole groups if a group has one item only. The interval
  is the percentile one. The test shifts the draws to a mean of zero and asks
  how often they are as far from it as what was found: p = (count + 1) /
  (draws + 1) (Davison and Hinkley 1997, 4.4). No p is below 2^(1 - m) for m
  differences that are not zero: the least that exchanging the two values of
  each pair could give, where a bootstrap of a few items knows no spread.

  Args:
    groups: Float [n] each, value of the second model less that of the first;
      one group for a plain mean.
    seed: Of the draws.

  Raises:
    ValueError: There is no group or an empty one, or a value is not finite.
  """
  if not groups or not all(len(g) for g in groups):
    raise ValueError(
      f'Expected groups of at least one value, got sizes '
      f'{[len(g) for g in groups]}.'
    )
  groups = [np.asarray(g, np.float64) for g in groups]
  values = np.concatenate(groups)
  if bad := int((~np.isfinite(values)).sum()):
    raise ValueError(
      f'{bad} of {len(values)} differences are not finite: their mean has no '
      'interval. Use `sign_test`.'
    )
  means = np.array([g.mean() for g in groups])
  value = float(means.mean())
  least = min(1.0, 2.0 ** (1 - np.count_nonzero(values)))
  if len(values) == 1:
    return MeanDifference(value=value, low=-math.inf, high=math.inf, p=1.0)
  rng = np.random.default_rng(seed)
  if min(map(len, groups)) == 1 < len(groups):
    draws = _resampled_means(rng, means)
  else:
    draws = np.mean([_resampled_means(rng, g) for g in groups], axis=0)
  far = np.abs(draws - value) >= abs(value) * (1 - _ROUNDING)
  # No interpolation: an end of the interval is one of the draws.
  low, high = np.percentile(draws, (2.5, 97.5), method='inverted_cdf')
  return MeanDifference(
    value=value,
    low=float(low),
    high=float(high),
    p=max(least, (int(far.sum()) + 1) / (DRAWS + 1)),
  )


def holm(ps: Sequence[float]) -> list[float]:
  """The p values adjusted for being that many (Holm 1979), in their order.

  Rejecting where the adjusted value is below a level keeps the chance of any
  false rejection below that level, whatever the tests' dependence.

  Raises:
    ValueError: A p is not between 0 and 1.
  """
  for p in ps:
    if not 0 <= p <= 1:
      raise ValueError(f'Expected p values between 0 and 1, got {p}.')
  adjusted = [0.0] * len(ps)
  largest = 0.0
  order = sorted(range(len(ps)), key=lambda i: ps[i])
  for rank, i in enumerate(order):
    largest = max(largest, (len(ps) - rank) * ps[i])
    adjusted[i] = min(1.0, largest)
  return adjusted


def _resampled_means(
  rng: np.random.Generator, values: np.ndarray
) -> np.ndarray:
  """Means [DRAWS] of n - 1 of n values drawn with replacement."""
  # Most items do not change: equal values are drawn as one.
  distinct, counts = np.unique(values, return_counts=True)
  size = len(values) - 1
  drawn = rng.multinomial(size, counts / len(values), size=DRAWS)
  return drawn @ distinct / size
