"""One task on one model state: answers first, scores from the stored ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from me_jax.evals.samples import (
  SampleWriter,
  check_field,
  read_samples,
)
from me_jax.evals.subset import subset
from me_jax.evals.task import Item, Metric, Request, Task, prompt_hash
from me_jax.files import PathLike
from me_jax.typing import ModelState, Predictor, ScoreRequest

_BLOCK = 1024  # items whose prompts are held at once
_GROUP = 64  # items asked together, all or none

# From a total to a display of what is done.
ProgressFactory = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def evaluate(
  task: Task,
  predictor: Predictor,
  state: ModelState,
  *,
  state_fingerprint: str,
  path: PathLike,
  limit: int | None = None,
  seed: int = 0,
  progress: ProgressFactory = lambda total: nullcontext(lambda done: None),
) -> list[Metric]:
  """The task's metrics, the headline score first.

  Every answer is appended to the log `path` as it comes, and an interrupted
  evaluation resumes. Items are asked in fixed groups of similar length; a group
  that was not finished is asked again as a whole, so that an answer never
  depends, not even in its last digit, on where an evaluation was interrupted.

  Args:
    task: What to ask.
    predictor: Who answers.
    state: With which weights.
    state_fingerprint: Names the weights; equal only for equal weights.
    path: The log of this task on this state.
    limit: Number of items, a nested subset; None takes all.
    seed: Of the subset.
    progress: From the number of items to a context whose value is called with
      the number of items done.

  Raises:
    ValueError: The log is damaged, or one of its records has another
      state_fingerprint or prompt_hash.
    OSError: The log cannot be written; what was written stays valid.
  """
  items = task.items()
  chosen = subset(items, limit, seed)
  stored = read_samples(path, state_fingerprint=state_fingerprint)
  ask = predictor.score if task.mode == 'ppl' else predictor.generate
  done = sum(item.id in stored for item in chosen)
  with progress(len(chosen)) as report, SampleWriter(path) as writer:
    report(done)
    for group in _groups(task, chosen):
      for item, _request, asked in group:
        if item.id in stored:
          check_field(stored[item.id], 'prompt_hash', asked, path)
      if all(item.id in stored for item, _, _ in group):
        continue
      for index, result in ask(state, [request for _, request, _ in group]):
        item, _, asked = group[index]
        if item.id in stored:
          continue
        writer.add(
          {
            'doc_id': item.id,
            'group': item.group,
            'prompt_hash': asked,
            'state_fingerprint': state_fingerprint,
            **task.sample(item, result),
          }
        )
        done += 1
        report(done)
  stored = read_samples(path, state_fingerprint=state_fingerprint)
  return task.aggregate(
    [stored[item.id] for item in chosen], complete=len(chosen) == len(items)
  )


def _groups(
  task: Task, items: Sequence[Item]
) -> Iterator[list[tuple[Item, Request, str]]]:
  """Items with what to ask and its hash, together with others of about the
  same length."""
  for first in range(0, len(items), _BLOCK):
    block = [(item, task.request(item)) for item in items[first:][:_BLOCK]]
    block.sort(key=lambda pair: (_length(pair[1]), pair[0].id))
    for start in range(0, len(block), _GROUP):
      yield [
        (item, request, prompt_hash(request))
        for item, request in block[start : start + _GROUP]
      ]


def _length(request: Request) -> int:
  if isinstance(request, ScoreRequest):
    return len(request.context) + sum(map(len, request.continuations))
  return len(request.prompt)
