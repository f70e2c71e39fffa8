"""MMLU over whole subjects, beside PyTorch that scores four full texts."""

import dataclasses
import os
import time
from collections.abc import Sequence

import transformers

from bench import passes as passes_lib
from bench import torch_evaluation
from me_jax.evals import letters
from me_jax.evals.mmlu import LETTERS, Mmlu
from me_jax.typing import ScoreRequest

NEAR_TIE = 1e-4  # nats per token; float32 sums may rank closer texts apart

HEADER = (
  'items ours/torch  tokens ours/torch   ours s/item  torch s/item   ratio  '
  'equal  differ (near ties)  compile  load'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """An item with two predictions.

  Attributes:
    doc_id: The item.
    ours, torch: The letters.
    our_gap, torch_gap: Distance of the best two scores, nats per token of the
      whole text.
  """

  doc_id: str
  ours: str
  torch: str
  our_gap: float
  torch_gap: float

  @property
  def is_near_tie(self) -> bool:
    """The best two are as good as equal on both sides."""
    return max(self.our_gap, self.torch_gap) < NEAR_TIE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """One subject, or several. Times in seconds, compilation in none but
  `compile`.

  Attributes:
    subject: Its name.
    items: What our side answered.
    torch_items: What PyTorch answered, the first of them.
    tokens, torch_tokens: Of one full text, mean over these items.
    ours, torch: Per item. Ours has making the prompts in it, PyTorch's not.
    prepare: Making our prompts, per item.
    compile: In all.
    equal: Items with the same prediction, of `torch_items`.
    differences: The others.
    load: Processes running at the time; above the cores, others disturb.
  """

  subject: str
  items: int
  torch_items: int
  tokens: float
  torch_tokens: float
  ours: float
  torch: float
  prepare: float
  compile: float
  equal: int
  differences: tuple[Difference, ...]
  load: float

  @property
  def ratio(self) -> float:
    """How many times faster ours is."""
    return self.torch / self.ours


def time_subject(
  passes: passes_lib.Passes,
  model: transformers.LlamaForCausalLM,
  subject: str,
  *,
  limit: int | None,
  torch_items: int | None,
  torch_first: bool,
) -> Timing:
  """Evaluates a subject with both sides, in turn.

  Args:
    passes: Our side.
    model: PyTorch's, with the same weights.
    subject: Its name.
    limit: Items of our side; None for all.
    torch_items: Items of PyTorch's side, the first ones; None for all.
    torch_first: PyTorch begins.
  """
  make = lambda context: Mmlu(context=context, subjects=(subject,))
  settings = passes_lib.settings()
  selection = passes.select(passes.task(make, settings), settings, limit)
  texts = [_texts(request) for request in selection.requests]
  asked = texts[:torch_items]

  def ours() -> passes_lib.Pass:
    return passes.timed(make, settings, limit=limit)

  def plain() -> tuple[float, list[list[float]]]:
    torch_evaluation.text_score(model, asked[0][0])  # memory and threads
    start = time.perf_counter()
    found = [
      [torch_evaluation.text_score(model, text) for text in four]
      for four in asked
    ]
    return time.perf_counter() - start, found

  # In turn, so that neither side always has the quieter machine.
  order = (plain, ours) if torch_first else (ours, plain)
  results = {side: side() for side in order}
  done, (torch_seconds, torch_scores) = results[ours], results[plain]
  our_scores = [
    [float(s) for s in done.answers[item.id]['resps']]
    for item in done.items[: len(asked)]
  ]
  names = [item.id for item in done.items[: len(asked)]]
  differences = compare(names, our_scores, torch_scores)
  return Timing(
    subject=subject,
    items=len(texts),
    torch_items=len(asked),
    tokens=_mean_length(texts),
    torch_tokens=_mean_length(asked),
    ours=done.seconds / len(texts),
    torch=torch_seconds / len(asked),
    prepare=done.prepare / len(texts),
    compile=done.compile,
    equal=len(asked) - len(differences),
    differences=differences,
    load=os.getloadavg()[0],
  )


def compare(
  names: Sequence[str],
  ours: Sequence[Sequence[float]],
  torch: Sequence[Sequence[float]],
) -> tuple[Difference, ...]:
  """The items whose lowest score belongs to another letter."""
  return tuple(
    Difference(
      doc_id=name,
      ours=_letter(a),
      torch=_letter(b),
      our_gap=_gap(a),
      torch_gap=_gap(b),
    )
    for name, a, b in zip(names, ours, torch, strict=True)
    if _letter(a) != _letter(b)
  )


def overall(timings: Sequence[Timing]) -> Timing:
  """All subjects together, each with the weight of its items on our side,
  whatever part of them PyTorch answered."""
  items = sum(t.items for t in timings)
  mean = lambda name: sum(getattr(t, name) * t.items for t in timings) / items
  total = lambda name: sum(getattr(t, name) for t in timings)
  return Timing(
    subject='all',
    items=items,
    torch_items=total('torch_items'),
    tokens=mean('tokens'),
    torch_tokens=mean('torch_tokens'),
    ours=mean('ours'),
    torch=mean('torch'),
    prepare=mean('prepare'),
    compile=total('compile'),
    equal=total('equal'),
    differences=tuple(d for t in timings for d in t.differences),
    load=max(t.load for t in timings),
  )


def line(t: Timing) -> str:
  """The row under `HEADER`."""
  items = f'{t.items}/{t.torch_items}'
  tokens = f'{t.tokens:.0f}/{t.torch_tokens:.0f}'
  near = sum(d.is_near_tie for d in t.differences)
  differ = f'{len(t.differences)} ({near})'
  return (
    f'{items:>16} {tokens:>18} {t.ours:13.4f} {t.torch:13.4f} {t.ratio:7.1f} '
    f'{t.equal:6} {differ:>19} {t.compile:8.1f} {t.load:5.1f}  {t.subject}'
  )


def details(t: Timing) -> list[str]:
  """A line for each difference."""
  return [
    f'  {d.doc_id}: ours {d.ours}, PyTorch {d.torch}; best two apart by '
    f'{d.our_gap:.1e} and {d.torch_gap:.1e}'
    for d in t.differences
  ]


def _texts(request: ScoreRequest) -> list[tuple[int, ...]]:
  return [request.context + ending for ending in request.continuations]


def _mean_length(items: Sequence[Sequence[Sequence[int]]]) -> float:
  lengths = [len(text) for four in items for text in four]
  return sum(lengths) / len(lengths)


def _letter(scores: Sequence[float]) -> str:
  return LETTERS[letters.first_smallest(scores)]


def _gap(scores: Sequence[float]) -> float:
  best, second = sorted(scores)[:2]
  return second - best
