"""95 % intervals."""

from collections.abc import Callable, Sequence

import numpy as np

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
DRAWS = 2000


def wilson(successes: int, n: int) -> tuple[float, float]:
  """Wilson's score interval of a proportion (Wilson 1927).

  Raises:
    ValueError: Not 0 <= successes <= n, or n = 0.
  """
  if not 0 <= successes <= n or n == 0:
    raise ValueError(
      f'Expected 0 <= successes <= n and n > 0, got {successes} of {n}.'
    )
  p = successes / n
  scale = 1 + _Z**2 / n
  centre = (p + _Z**2 / (2 * n)) / scale
  half = _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
  # Exact at the ends, where rounding would leave 1e-16 or so.
  low = 0.0 if successes == 0 else float(centre - half)
  high = 1.0 if successes == n else float(centre + half)
  return low, high


def bootstrap(
  statistic: Callable[[np.ndarray], np.ndarray],
  data: np.ndarray,
  *,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval of a function of column totals.

  A mean is the total of the values over the total of a column of ones, a
  ratio of sums likewise.

  Args:
    statistic: From totals [draws, k] to [draws].
    data: float64 [n, k], one row per item, resampled with replacement.
    seed: Of the draws.
  """
  n = len(data)
  counts = np.random.default_rng(seed).multinomial(
    n, np.full(n, 1 / n), size=DRAWS
  )
  return _percentiles(statistic(counts @ data))


def macro_mean(
  groups: Sequence[np.ndarray], *, seed: int = 0
) -> tuple[float, float, float]:
  """Mean of the group means, and its interval from a stratified bootstrap.

  From each group of n values n - 1 are drawn, which makes the spread of its
  mean unbiased (Rao and Wu 1988). A group with one value has no spread to
  show; if there is one, whole groups are drawn instead, which is conservative.

  Raises:
    ValueError: No group, or an empty one.
  """
  if not groups or not all(len(g) for g in groups):
    raise ValueError(
      f'Expected groups of at least one value, got sizes '
      f'{[len(g) for g in groups]}.'
    )
  rng = np.random.default_rng(seed)
  means = np.array([np.mean(g, dtype=np.float64) for g in groups])
  if min(len(g) for g in groups) == 1:
    draws = _resampled_means(rng, means)
  else:
    draws = np.mean([_resampled_means(rng, g) for g in groups], axis=0)
  return float(means.mean()), *_percentiles(draws)


def _resampled_means(
  rng: np.random.Generator, values: np.ndarray
) -> np.ndarray:
  """Means [DRAWS] of n - 1 values drawn with replacement, one if n = 1."""
  n = len(values)
  size = max(1, n - 1)
  counts = rng.multinomial(size, np.full(n, 1 / n), size=DRAWS)
  return counts @ np.asarray(values, np.float64) / size


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
  # No interpolation: the difference of two infinite draws is not a number.
  low, high = np.percentile(draws, (2.5, 97.5), method='inverted_cdf')
  return float(low), float(high)
