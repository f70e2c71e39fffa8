"""A tokenizer of one id per character, and a predictor made of sums."""

import dataclasses
import hashlib

import numpy as np

from me_jax.data.sources import DataSources
from me_jax.typing import GenerateResult, ScoreResult


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
  """BOS is 1, EOS is 2; every character is its code point plus 3."""

  adds_bos: bool = True
  eos_id: int = 2
  special_ids: frozenset[int] = frozenset((1, 2))

  def encode(self, text):
    return [1] * self.adds_bos + [ord(c) + 3 for c in text]

  def encode_with_offsets(self, text):
    spans = [(i, i + 1) for i in range(len(text))]
    return self.encode(text), [(0, 0)] * self.adds_bos + spans

  def decode(self, ids):
    return ''.join(chr(i - 3) for i in ids if i not in self.special_ids)


def folder(root):
  """Data files below `root` and nowhere else."""
  return DataSources(data_root=root, allow_hub=False)


class FakePredictor:
  """Pseudo-random answers that depend on the request alone.

  Answers come last request first, as a predictor is free to do. `stop_after`
  answers in all, it breaks.
  """

  def __init__(self, stop_after=None, text=None):
    self.asked = 0
    self.batches = []
    self.stop_after = stop_after
    self.text = text

  def _count(self):
    if self.asked == self.stop_after:
      raise KeyboardInterrupt
    self.asked += 1

  def score(self, state, requests):
    self.batches.append(tuple(requests))
    for index in reversed(range(len(requests))):
      self._count()
      request = requests[index]
      pieces = [request.context[1:], *request.continuations]
      context, *rest = [_logprobs(piece) for piece in pieces]
      yield (
        index,
        ScoreResult(
          logprobs=tuple(rest),
          greedy=tuple(np.zeros(len(r), np.int32) for r in rest),
          context_logprobs=context if request.score_context else None,
        ),
      )

  def generate(self, state, requests):
    self.batches.append(tuple(requests))
    for index in reversed(range(len(requests))):
      self._count()
      digest = _digest(requests[index].prompt)
      text = f'\n{"ABCDE"[digest % 5]}\n' if self.text is None else self.text
      yield (
        index,
        GenerateResult(
          tokens=np.arange(len(text), dtype=np.int32),
          text=text,
          stop_reason='length',
        ),
      )


def _digest(ids):
  return int(hashlib.sha256(repr(tuple(ids)).encode()).hexdigest()[:8], 16)


def _logprobs(ids):
  rng = np.random.default_rng(_digest(ids))
  return -rng.exponential(size=len(ids)).astype(np.float32)
