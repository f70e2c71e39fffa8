"""Answers that are option letters."""

import math
import re
from collections.abc import Callable, Iterable

from me_jax.evals.generation_task import Reading
from me_jax.evals.task import Item


def first_capital(text: str) -> str:
  """The first character that Unicode calls upper-case, or ''."""
  return next((c for c in text if c.isupper()), '')


def first_option(text: str, options: str) -> str:
  """The first of `options` that is no part of a word or number, or ''."""
  found = _alone(options).search(text)
  return found[0] if found else ''


def capital_readings(options: str, target: str) -> tuple[Reading, ...]:
  """OpenCompass's way, the first capital, and ours, the first lone option.

  Args:
    options: The letters to choose from.
    target: The field that holds the right one.
  """
  mark = lambda item, answer: {'accuracy': answer == item.fields[target]}
  return (
    Reading(
      name='oc', filter=lambda item, text: first_capital(text), mark=mark
    ),
    Reading(
      name='clean',
      filter=lambda item, text: first_option(text, options),
      mark=mark,
    ),
  )


def capital_decided(options: str) -> Callable[[Item], Callable[[str], bool]]:
  """When nothing can change what `capital_readings` take from a text: it has
  a capital, and a lone option that what follows shows to be alone."""
  alone = _alone(options)

  def decided(text: str) -> bool:
    found = alone.search(text)
    # An option is a capital, so the first capital is there, too.
    return found is not None and found.end() < len(text)

  return lambda item: decided


def first_smallest(scores: Iterable[float]) -> int:
  """Index of the smallest score, the first of equals.

  A comparison with NaN is false, so a leading NaN wins and others never do:
  the rule of OpenCompass, by which a model that gives no finite score at all
  answers with the first label.
  """
  scores = list(scores)
  best = 0
  for i, score in enumerate(scores):
    if score < scores[best]:
      best = i
  return best


def to_json(value: float) -> float | str:
  """The number, or 'nan', 'inf' or '-inf' where JSON has no word for it;
  `float` reads all of them."""
  value = float(value)
  return value if math.isfinite(value) else str(value)


def _alone(options: str) -> re.Pattern[str]:
  # Not \w: a Chinese character before a letter does not make it a word.
  return re.compile(f'(?<![A-Za-z0-9])[{options}](?![A-Za-z0-9])')
