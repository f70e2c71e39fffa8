"""Tasks answered in writing, beside `generate` of transformers, one by one."""

import dataclasses
import os
import time
from collections.abc import Sequence

import numpy as np
import transformers

from bench import passes as passes_lib
from bench import torch_evaluation
from bench.greedy_runs import Parting, first_difference
from me_jax.evals.task import Item, Record, Task
from me_jax.typing import GenerateResult

HEADER = (
  'items  new tokens ours/torch  ours s/item  torch s/item   ratio  '
  'answers equal  beginnings  compile  load'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """One task. Times in seconds, compilation in none but `compile`.

  Attributes:
    task: Its name.
    items: What we answered.
    torch_items: So many of them PyTorch answered, too.
    tokens, torch_tokens: Mean number of new tokens.
    ours, torch: Per item. Ours has making the prompts in it, PyTorch's not.
    prepare: Making our prompts, per item.
    compile: In all.
    equal: Items of which every reading takes the same from both answers.
    beginnings: Items of which our answer is the beginning of PyTorch's.
    partings: The other items, with distances of PyTorch's logits.
    differences: Ids of the items whose readings differ.
    load: Processes running at the time; above the cores, others disturb.
  """

  task: str
  items: int
  torch_items: int
  tokens: float
  torch_tokens: float
  ours: float
  torch: float
  prepare: float
  compile: float
  equal: int
  beginnings: int
  partings: tuple[Parting, ...]
  differences: tuple[str, ...]
  load: float

  @property
  def ratio(self) -> float:
    """How many times faster ours is."""
    return self.torch / self.ours

  @property
  def unexplained(self) -> list[str]:
    """Ids of the items whose readings differ though no near tie parted the
    answers."""
    near = {p.doc_id for p in self.partings if p.is_near_tie}
    return [name for name in self.differences if name not in near]


def time_task(
  passes: passes_lib.Passes,
  model: transformers.LlamaForCausalLM,
  make: passes_lib.MakeTask,
  *,
  limit: int | None,
  torch_items: int | None,
  torch_first: bool,
) -> Timing:
  """Evaluates a task with both sides, in turn.

  Args:
    passes: Our side.
    model: PyTorch's, with the same weights.
    make: The task.
    limit: Items; None for all.
    torch_items: PyTorch answers only so many of them, evenly spread; None for
      all.
    torch_first: PyTorch begins.

  Raises:
    ValueError: The task is not answered in writing.
  """
  settings = passes_lib.settings()
  task = passes.task(make, settings)
  if task.mode != 'gen':
    raise ValueError(
      f'{task.name} is told by likelihoods; only a task that is answered in '
      'writing can be compared with generate.'
    )
  selection = passes.select(task, settings, limit)
  eos_id = passes.model.tokenizer.eos_id
  total = len(selection.items)
  count = min(torch_items or total, total)
  chosen = [i * total // count for i in range(count)]
  requests = [selection.requests[i] for i in chosen]

  def ours() -> passes_lib.Pass:
    return passes.timed(make, settings, limit=limit)

  def plain() -> tuple[float, list[list[int]]]:
    write = lambda request, most: torch_evaluation.greedy(
      model, request.prompt, max_new_tokens=most, eos_id=eos_id
    )
    write(requests[0], 2)  # memory and threads
    start = time.perf_counter()
    found = [write(r, r.max_new_tokens) for r in requests]
    return time.perf_counter() - start, found

  # In turn, so that neither side always has the quieter machine.
  order = (plain, ours) if torch_first else (ours, plain)
  results = {side: side() for side in order}
  done, (torch_seconds, torch_tokens) = results[ours], results[plain]
  partings, differences = [], []
  for i, theirs in zip(chosen, torch_tokens, strict=True):
    item = done.items[i]
    answer = _torch_answer(passes, task, item, theirs)
    if readings(done.answers[item.id]) != readings(answer):
      differences.append(item.id)
    own = done.tokens[item.id]
    index = first_difference(own, theirs)
    if index is not None:
      before = [*done.prompts[item.id], *theirs[:index]]
      gap = torch_evaluation.preference(
        model, before, theirs[index], own[index]
      )
      partings.append(Parting(doc_id=item.id, index=index, gap=abs(gap)))
  return Timing(
    task=task.name,
    items=total,
    torch_items=count,
    tokens=_mean_length(list(done.tokens.values())),
    torch_tokens=_mean_length(torch_tokens),
    ours=done.seconds / total,
    torch=torch_seconds / count,
    prepare=done.prepare / total,
    compile=done.compile,
    equal=count - len(differences),
    beginnings=count - len(partings),
    partings=tuple(partings),
    differences=tuple(differences),
    load=os.getloadavg()[0],
  )


def readings(answer: Record) -> Record:
  """What every reading takes from an answer, by its name."""
  return answer['filtered_resps']


def line(t: Timing) -> str:
  """The row under `HEADER`, and one line for each parting."""
  tokens = f'{t.tokens:.1f}/{t.torch_tokens:.1f}'
  of_all = lambda n: f'{n}/{t.torch_items}'
  equal, beginnings = of_all(t.equal), of_all(t.beginnings)
  row = (
    f'{t.items:5} {tokens:>22} {t.ours:12.3f} {t.torch:13.3f} {t.ratio:7.1f} '
    f'{equal:>14} {beginnings:>11} {t.compile:8.1f} {t.load:5.1f}  {t.task}'
  )
  details = [
    f'  {p.doc_id}: parts at token {p.index}, logits {p.gap:.1e} apart'
    f'{"; READINGS DIFFER" if p.doc_id in t.differences else ""}'
    for p in t.partings
  ]
  return '\n'.join([row, *details])


def _torch_answer(
  passes: passes_lib.Passes, task: Task, item: Item, tokens: Sequence[int]
) -> Record:
  """The record of PyTorch's answer with its scores."""
  tokenizer = passes.model.tokenizer
  ended = bool(tokens) and tokens[-1] == tokenizer.eos_id
  own = tokens[:-1] if ended else tokens
  answer = task.answer(
    item,
    GenerateResult(
      tokens=np.array(own, np.int32),
      text=tokenizer.decode(own),
      stop_reason='eos' if ended else 'length',
    ),
  )
  return answer | task.score(item, answer)


def _mean_length(answers: Sequence[Sequence[int]]) -> float:
  return sum(map(len, answers)) / len(answers)
