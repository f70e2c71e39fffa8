"""What each shortcut saves, and whether it changes an answer."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bench import greedy_runs
from bench.passes import MakeTask, Pass, Passes, settings
from me_jax.config import EvalConfig
from me_jax.evals.task import Record, decode_settings

HEADER = (
  'items    s with  s without  factor  of cpu s  compile  differ (near ties)  '
  'largest change  load  without'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut:
  """A way to save work.

  Attributes:
    name: What it is called.
    without: Changes of `passes.settings` that turn it off.
    taken: Changes that turn it on, if it is not on there.
    in_predictor: Modes of tasks in which the predictor works otherwise; what
      changes the requests is found by itself.
    between_states: It saves work on a state after another, so an edited model
      is asked.
  """

  name: str
  without: Mapping[str, Any]
  taken: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  in_predictor: tuple[str, ...] = ()
  between_states: bool = False


# A new one is a line here and, if the predictor must know of it, one or two in
# `Passes`.
SHORTCUTS = (
  Shortcut(name='shared_prefix', without={'shared_prefix': False}),
  Shortcut(name='one_forward', without={'one_forward': False}),
  Shortcut(name='early_stop', without={'early_stop': False}),
  Shortcut(name='refill', without={'refill': False}, in_predictor=('gen',)),
  Shortcut(
    name='lower_layers',
    without={'lower_layers_gb': 0.0},
    taken={'lower_layers_gb': EvalConfig().lower_layers_gb},
    in_predictor=('ppl',),
    between_states=True,
  ),
)
# Of a method that acts in the forward pass.
COPY_UNTOUCHED = Shortcut(
  name='copy_untouched',
  without={'copy_untouched': False},
  in_predictor=('gen', 'ppl'),
  between_states=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """An item whose readings differ.

  Attributes:
    doc_id: The item.
    taken, without: What is read with and without the shortcut.
    is_near_tie: The two best scores, or the logits of the tokens at which the
      texts part, are as good as equal.
  """

  doc_id: str
  taken: Record
  without: Record
  is_near_tie: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """One task with some shortcuts turned off. Times in seconds.

  Attributes:
    task: Its name.
    without: The shortcut that is off; 'none' or 'all'.
    items: What was answered.
    taken, seconds: All of it with and without the shortcut, with compiled
      programs.
    taken_cpu, cpu: The same in seconds of the processor, over all cores.
    compile: What the first pass without took longer.
    differences: Items whose readings differ from those with the shortcut.
    largest: Of likelihoods, the largest change of a stored number. Where one
      side scored the context and the other did not, of the distances to the
      item's mean, which the context leaves as they are.
    load: Processes running at the time; above the cores, others disturb.
  """

  task: str
  without: str
  items: int
  taken: float
  seconds: float
  taken_cpu: float
  cpu: float
  compile: float
  differences: tuple[Difference, ...]
  largest: float | None
  load: float

  @property
  def factor(self) -> float:
    """How many times faster it is with the shortcut."""
    return self.seconds / self.taken

  @property
  def cpu_factor(self) -> float:
    """How many times less the processor works with the shortcut."""
    return self.cpu / self.taken_cpu


def time_task(
  passes: Passes, make: MakeTask, *, limit: int | None, with_all_off: bool
) -> Iterator[Timing]:
  """Evaluates a task with all shortcuts, then without each that applies; or,
  after a run of a method that acts in the forward pass, without copies.

  MMLU without `one_forward` scores its contexts and so shares no prefix either.

  Args:
    passes: Who evaluates.
    make: The task.
    limit: Items; None for all.
    with_all_off: Also without all of them at once.
  """
  found: dict[Any, Pass] = {}

  def timed(changes: Mapping[str, Any], is_edited: bool = False) -> Pass:
    asked = settings(**changes)
    key = (dataclasses.astuple(asked), is_edited)
    if key not in found:
      found[key] = passes.timed(make, asked, limit=limit, is_edited=is_edited)
    return found[key]

  everything = timed({})
  yield _timing('none', everything, everything, passes)
  known = (COPY_UNTOUCHED,) if passes.edited else SHORTCUTS
  shortcuts = [s for s in known if applies(s, passes, make, limit)]
  for shortcut in shortcuts:
    taken = timed(shortcut.taken, shortcut.between_states)
    without = timed(shortcut.without, shortcut.between_states)
    yield _timing(shortcut.name, taken, without, passes)
  if with_all_off:
    off = {k: v for s in shortcuts for k, v in s.without.items()}
    yield _timing('all', everything, timed(off), passes)


def applies(
  shortcut: Shortcut, passes: Passes, make: MakeTask, limit: int | None
) -> bool:
  """Whether the requests of these items, or the work on them, depend on it."""

  def asked(changes: Mapping[str, Any]) -> list[Any]:
    config = settings(**changes)
    selection = passes.select(passes.task(make, config), config, limit)
    return [(r.shared, decode_settings(r)) for r in selection.requests]

  mode = passes.task(make, settings()).mode
  return mode in shortcut.in_predictor or asked(shortcut.taken) != asked(
    shortcut.without
  )


def compare(passes: Passes, taken: Pass, without: Pass) -> list[Difference]:
  """The items whose readings differ."""
  found = []
  for item in taken.items:
    a, b = taken.answers[item.id], without.answers[item.id]
    if a['filtered_resps'] != b['filtered_resps']:
      found.append(
        Difference(
          doc_id=item.id,
          taken=a['filtered_resps'],
          without=b['filtered_resps'],
          is_near_tie=_is_near_tie(passes, taken, without, item.id),
        )
      )
  return found


def largest_change(taken: Pass, without: Pass) -> float | None:
  """See `Timing.largest`; None where answers are texts."""
  if taken.task.mode == 'gen':
    return None
  largest = 0.0
  for item in taken.items:
    a, b = taken.answers[item.id], without.answers[item.id]
    x, y = (np.array(r['resps'], float) for r in (a, b))
    if a['decode'] != b['decode']:
      x, y = x - x.mean(), y - y.mean()
    # Unlike max, keeps a NaN.
    largest = np.maximum(largest, np.abs(x - y).max())
  return float(largest)


def line(t: Timing) -> str:
  """The row under `HEADER`, and one line for each difference."""
  near = sum(d.is_near_tie for d in t.differences)
  differ = f'{len(t.differences)} ({near})'
  largest = '' if t.largest is None else f'{t.largest:.1e}'
  row = (
    f'{t.items:5} {t.taken:9.2f} {t.seconds:10.2f} {t.factor:7.2f} '
    f'{t.cpu_factor:9.2f} {t.compile:8.1f} '
    f'{differ:>19} {largest:>15} {t.load:5.1f}  {t.task}: {t.without}'
  )
  details = [
    f'  {d.doc_id}: with {d.taken}, without {d.without}'
    f'{" (near tie)" if d.is_near_tie else ""}'
    for d in t.differences
  ]
  return '\n'.join([row, *details])


def _timing(name: str, taken: Pass, without: Pass, passes: Passes) -> Timing:
  return Timing(
    task=taken.task.name,
    without=name,
    items=len(taken.items),
    taken=taken.seconds,
    seconds=without.seconds,
    taken_cpu=taken.cpu,
    cpu=without.cpu,
    compile=without.compile,
    differences=tuple(compare(passes, taken, without)),
    largest=largest_change(taken, without),
    load=os.getloadavg()[0],
  )


def _is_near_tie(passes: Passes, taken: Pass, without: Pass, name: str) -> bool:
  if taken.task.mode != 'gen':
    both = (taken.answers[name], without.answers[name])
    return all(answer.get('near_tie', False) for answer in both)
  a, b = taken.tokens[name], without.tokens[name]
  index = greedy_runs.first_difference(a, b)
  if index is None:
    return False
  gap = passes.gap(
    [*taken.prompts[name], *a[:index]],
    a[index],
    b[index],
    is_edited=taken.is_edited,
  )
  return gap < greedy_runs.NEAR_TIE
