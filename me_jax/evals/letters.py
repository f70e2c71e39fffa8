"""Answers that are option letters: reading them, and how they are spread."""

import math
from collections.abc import Sequence

from me_jax.evals.statistics import wilson
from me_jax.evals.task import Metric, Sample


def first_capital(text: str) -> str:
  """The first character that Unicode calls upper-case, or ''."""
  return next((c for c in text if c.isupper()), '')


def first_smallest(scores: Sequence[float]) -> int:
  """Index of the smallest score, the first of equals.

  A comparison with NaN is false, so a leading NaN wins and others never do:
  the rule of OpenCompass, by which a model that gives no finite score at all
  answers with the first label.
  """
  best = 0
  for i, score in enumerate(scores):
    if score < scores[best]:
      best = i
  return best


def finite_or_none(value: float) -> float | None:
  """The number, or None where plain JSON has no word for it."""
  return float(value) if math.isfinite(value) else None


def share(name: str, count: int, n: int) -> Metric:
  """`count` of `n` in per cent, with its Wilson interval."""
  low, high = wilson(count, n)
  return Metric(
    name=name,
    value=100 * count / n,
    n=n,
    ci_low=100 * low,
    ci_high=100 * high,
  )


def accuracy(name: str, samples: Sequence[Sample]) -> Metric:
  """Share of samples that are correct, in per cent."""
  return share(name, sum(s['correct'] for s in samples), len(samples))


def spread(samples: Sequence[Sample], letters: str) -> list[Metric]:
  """How often each letter was the answer.

  It tells a model that knows from one that always says the same.
  """
  answers = [s['filtered_resps'][0] for s in samples]
  return [
    share(f'predicted_{letter}', answers.count(letter), len(answers))
    for letter in letters
  ]


def nonfinite(samples: Sequence[Sample]) -> Metric:
  """The number of answers in which a score or logit was not finite."""
  return Metric(
    name='n_nonfinite',
    value=float(sum(s['nonfinite'] for s in samples)),
    n=len(samples),
  )
