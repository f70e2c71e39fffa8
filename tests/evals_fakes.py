"""A tokenizer of one id per character, and a predictor made of sums."""

import dataclasses
import hashlib
import json

import numpy as np

from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources
from me_jax.evals.task import TaskContext
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


def task_context(
  sources, tokenizer=None, *, is_chat=False, window=2048, **settings
):
  """What a task is made from."""
  return TaskContext(
    sources=sources,
    tokenizer=tokenizer or CharTokenizer(),
    settings=EvalConfig(**settings),
    is_chat=is_chat,
    window=window,
  )


def sample_of(task, item, result):
  """What a log and its scores hold of one answer, after a way through JSON."""
  answer = json.loads(json.dumps(task.answer(item, result), allow_nan=False))
  score = json.loads(json.dumps(task.score(item, answer), allow_nan=False))
  return {'doc_id': item.id, 'group': item.group, **answer, **score}


class FakePredictor:
  """Pseudo-random answers that depend on the request alone.

  Answers come last request first, as a predictor is free to do. `stop_after`
  answers in all, it breaks.
  """

  def __init__(self, stop_after=None, text=None):
    self.asked = 0
    self.answered = []
    self.batches = []
    self.stop_after = stop_after
    self.text = text

  def _count(self, request):
    if self.asked == self.stop_after:
      raise KeyboardInterrupt
    self.asked += 1
    self.answered.append(request)

  def score(self, state, requests):
    self.batches.append(tuple(requests))
    for index in reversed(range(len(requests))):
      request = requests[index]
      self._count(request)
      pieces = [request.context[1:], *request.continuations]
      context, *rest = [_logprobs(piece) for piece in pieces]
      yield (
        index,
        ScoreResult(
          logprobs=tuple(rest),
          greedy=tuple(np.zeros(len(r), np.int32) for r in rest),
          context_logprobs=context if request.score_context else None,
          context_length=len(request.context),
        ),
      )

  def generate(self, state, requests, *, skip=()):
    self.batches.append(tuple(requests))
    for index in reversed(range(len(requests))):
      if index in skip:
        continue
      self._count(requests[index])
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
