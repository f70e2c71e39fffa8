"""Facts that an editor learns from, apart from those it is judged by."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from me_jax import files
from me_jax.data.request import EditRequest


class Split(NamedTuple):
  """Facts to learn from, and others to validate with.

  Attributes:
    training: No subject of theirs is in `validation`.
    validation: As many of each pool.
    sha256: Hex digest of the canonical JSON of both.
    counts: `dropped_incomplete` (no other wording, or nothing unrelated to
      ask), `dropped_subject_in_validation`, `training`, `validation`.
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
) -> Split:
  """A seeded draw from each of `pools`.

  Args:
    pools: Facts, e.g. from `facts.load_facts`.
    facts_per_pool: Facts drawn from each, those for validation included; 0 for
      all.
    val_facts: Facts for validation, of all pools together.
    seed: Of the draw.

  Raises:
    ValueError: No facts are left to learn from, or too few to validate with.
  """
  complete = [
    [f for f in pool if f.rephrase_prompts and f.locality_prompts]
    for pool in pools
  ]
  validation: list[EditRequest] = []
  rest: list[EditRequest] = []
  for i, pool in enumerate(complete):
    order = np.random.default_rng([seed, i]).permutation(len(pool))
    drawn = [pool[j] for j in order[: facts_per_pool or None]]
    share = (val_facts + i) // len(complete)  # sums to val_facts
    validation.extend(drawn[:share])
    rest.extend(drawn[share:])
  subjects = {fact.subject for fact in validation}
  training = [fact for fact in rest if fact.subject not in subjects]
  if not training or len(validation) != val_facts:
    raise ValueError(
      f'The pools hold {[len(pool) for pool in complete]} usable facts, which '
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
      'dropped_subject_in_validation': len(rest) - len(training),
      'training': len(training),
      'validation': len(validation),
    },
  )
