"""Samples of text: what the second moment is collected from.

Texts come in a seeded random order without replacement. A sample is the first
of them, so a smaller sample is part of a larger one.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Corpus(Protocol):
  """Texts in a random order."""

  id: str  # says exactly which texts there are

  def rows(self, max_length: int, seed: int) -> Iterator[list[int]]:
    """Token ids of each text, special tokens included, cut at `max_length`."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CorpusSample:
  """What the second moment is collected from.

  Attributes:
    rows: Token ids of each text.
    spec: What they are, for the fingerprint: `known_spec`, and what is known
      only now: `n_texts` and `corpus_sha256` over the ids.
  """

  rows: list[list[int]] = dataclasses.field(repr=False)
  spec: Mapping[str, Any]

  @property
  def n_tokens(self) -> int:
    """Tokens in all texts."""
    return sum(map(len, self.rows))


def known_spec(
  corpus: Corpus,
  *,
  max_length: int,
  seed: int,
  n_samples: int = 0,
  min_tokens: int = 0,
) -> dict[str, Any]:
  """The part of `CorpusSample.spec` that needs no text."""
  return {
    'corpus': corpus.id,
    'max_length': max_length,
    'seed': seed,
    'n_samples': n_samples,
    'min_tokens': min_tokens,
  }


def token_rows(
  corpus: Corpus,
  *,
  max_length: int,
  seed: int,
  n_samples: int = 0,
  min_tokens: int = 0,
  progress: Callable[[int], None] = lambda done: None,
) -> CorpusSample:
  """Texts of `corpus`, at random without replacement.

  No packing: one text a row. Where the corpus is smaller than what is asked
  for, all of it is used; `spec['n_texts']` says how many that were.

  Args:
    corpus: Where the texts come from.
    max_length: Tokens after which a text is cut.
    seed: Of the draw.
    n_samples: Number of texts, or
    min_tokens: stop at the first text with which there are so many tokens.
    progress: Called with how many of `n_samples` or `min_tokens` there are.

  Raises:
    ValueError: Not exactly one of `n_samples` and `min_tokens`, a number below
      1, or an empty corpus.
  """
  if (n_samples > 0) == (min_tokens > 0) or max_length < 1:
    raise ValueError(
      'Expected max_length and either n_samples or min_tokens to be at least '
      f'1, got {max_length}, {n_samples} and {min_tokens}.'
    )
  rows: list[list[int]] = []
  tokens = 0
  hashed = hashlib.sha256()
  progress(0)
  drawn = corpus.rows(max_length, seed)
  for row in itertools.islice(drawn, n_samples or None):
    rows.append(row)
    tokens += len(row)
    hashed.update(np.asarray([len(row), *row], '<i8').tobytes())
    progress(min(tokens, min_tokens) if min_tokens else len(rows))
    if min_tokens and tokens >= min_tokens:
      break
  if not rows:
    raise ValueError(f'The corpus {corpus.id} has no text in it.')
  known = known_spec(
    corpus,
    max_length=max_length,
    seed=seed,
    n_samples=n_samples,
    min_tokens=min_tokens,
  )
  return CorpusSample(
    rows=rows,
    spec={
      **known,
      'n_texts': len(rows),
      'corpus_sha256': hashed.hexdigest(),
    },
  )
