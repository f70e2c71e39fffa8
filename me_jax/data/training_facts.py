"""Facts that an editor learns from, apart from those it is judged by."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from me_jax import files
from me_jax.data.request import EditRequest


class Split(NamedTuple):
  """Facts to learn from, and others to validate with.

  Attributes:
    training: No subject and no prompt of theirs is in `validation`.
    validation: As many of each pool.
    sha256: Hex digest of the canonical JSON of both.
    counts: `dropped_incomplete` (no other wording, or nothing unrelated to
      ask); `dropped_prompt_in_evaluation` (any prompt, unrelated ones too) and
      `dropped_subject_in_evaluation`, of the rest; the same for
      `..._in_validation`, of those drawn; `training`, `validation`.
  """

  training: tuple[EditRequest, ...]
  validation: tuple[EditRequest, ...]
  sha256: str
  counts: dict[str, int]


def split(
  pools: Sequence[Sequence[EditRequest]],
  *,
  facts_per_pool: int,
  val_facts: int,
  seed: int,
  evaluation: Sequence[EditRequest] = (),
) -> Split:
  """A seeded draw from each of `pools`, apart from `evaluation`.

  An unrelated question that comes back in evaluation was trained to keep its
  answer, so facts are apart only if they share no prompt of any kind.

  Args:
    pools: Facts, e.g. from `facts.load_facts`.
    facts_per_pool: Facts drawn from each, those for validation included; 0 for
      all.
    val_facts: Facts for validation, of all pools together.
    seed: Of the draw.
    evaluation: Facts that the editor is judged by.

  Raises:
    ValueError: No facts are left to learn from, or too few to validate with.
  """
  complete = [
    [f for f in pool if f.rephrase_prompts and f.locality_prompts]
    for pool in pools
  ]
  evaluated = _Apart(evaluation)
  apart = [[f for f in pool if evaluated.allows(f)] for pool in complete]
  validation: list[EditRequest] = []
  rest: list[EditRequest] = []
  for i, pool in enumerate(apart):
    order = np.random.default_rng([seed, i]).permutation(len(pool))
    drawn = [pool[j] for j in order[: facts_per_pool or None]]
    share = (val_facts + i) // len(apart)  # sums to val_facts
    validation.extend(drawn[:share])
    rest.extend(drawn[share:])
  validated = _Apart(validation)
  training = [fact for fact in rest if validated.allows(fact)]
  if not training or len(validation) != val_facts:
    raise ValueError(
      f'The pools hold {[len(pool) for pool in apart]} usable facts, which '
      f'gives {len(training)} to learn from and {len(validation)} of '
      f'{val_facts} for validation. Ask for fewer, or give more.'
    )
  content = files.canonical_json(
    [[fact.to_json() for fact in part] for part in (training, validation)]
  )
  return Split(
    training=tuple(training),
    validation=tuple(validation),
    sha256=hashlib.sha256(content.encode()).hexdigest(),
    counts={
      'dropped_incomplete': sum(map(len, pools)) - sum(map(len, complete)),
      **evaluated.counts('evaluation'),
      **validated.counts('validation'),
      'training': len(training),
      'validation': len(validation),
    },
  )


class _Apart:
  """Keeps facts apart from others, and counts those that are not."""

  def __init__(self, others: Iterable[EditRequest]):
    self._subjects, self._prompts = set(), set()
    for fact in others:
      self._subjects.add(fact.subject)
      self._prompts |= _prompts(fact)
    self._with_prompt = self._with_subject = 0

  def allows(self, fact: EditRequest) -> bool:
    """Whether the fact shares no prompt and no subject with the others."""
    if not self._prompts.isdisjoint(_prompts(fact)):
      self._with_prompt += 1
      return False
    if fact.subject in self._subjects:
      self._with_subject += 1
      return False
    return True

  def counts(self, name: str) -> dict[str, int]:
    return {
      f'dropped_prompt_in_{name}': self._with_prompt,
      f'dropped_subject_in_{name}': self._with_subject,
    }


def _prompts(fact: EditRequest) -> set[str]:
  """All that is asked of a fact."""
  unrelated = (p.prompt for p in fact.locality_prompts)
  return {fact.text, *fact.rephrase_prompts, *unrelated}
