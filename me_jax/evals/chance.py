"""What a model scores that knows nothing of the matter."""

from collections.abc import Mapping
from typing import NamedTuple

from me_jax.evals import registry


class Chance(NamedTuple):
  """The expected accuracy of a guess.

  Attributes:
    level: In per cent.
    reason: Why so much.
  """

  level: float
  reason: str


_FOUR = Chance(25.0, 'four options')
_FIVE = Chance(20.0, 'five options')
_FREE = Chance(0.0, 'free text: a guess is never right')
LEVELS: Mapping[str, Chance] = {
  'mmlu': _FOUR,
  'mmlu_cloze': _FOUR,
  'commonsenseqa': _FIVE,
  'commonsenseqa_cloze': _FIVE,
  'c3': Chance(26.4, 'four options, in 313 of 1,825 questions three'),
  'axb': Chance(50.0, 'two options; always the same one gives 41.7 or 58.3'),
  'sst2_icl': Chance(50.0, 'two options'),
  'mbpp': Chance(0.0, 'programs: a guess does not run'),
  'math': _FREE,
  'math_plain': _FREE,
  'math_own_exemplars': _FREE,
  'tydiqa': _FREE,
  'tydiqa_goldp': _FREE,
}


def chance(task: str) -> Chance | None:
  """Of a task by name; None where there is no such level, as for BBH, whose
  27 tasks have options or free text each, or for a perplexity."""
  return LEVELS.get(registry.base_name(task))
