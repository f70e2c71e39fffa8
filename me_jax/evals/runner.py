"""One task on one model state: answers first, scores from the stored ones."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import NamedTuple

from me_jax import files, preemption, processes, trees
from me_jax.evals import aggregates, samples
from me_jax.evals.subset import subset
from me_jax.evals.task import (
  Item,
  Metric,
  Record,
  Request,
  Task,
  decode_settings,
  prompt_hash,
)
from me_jax.files import PathLike
from me_jax.prefixes import shared_lengths
from me_jax.typing import ModelState, Predictor, ScoreRequest, ScoreResult

_GROUP = 128  # items whose likelihoods are asked together, all or none
_SCORERS = 2  # threads that score while the device goes on


class Known(NamedTuple):
  """What is known of a state's answers before it is asked, by item id.

  Attributes:
    copies: Answers of another state that this one would give, too.
    lookups: What a method that acts in the forward pass does in an item:
      `asked`, at how many tokens it looks, `acting`, at how many it acts. It is
      stored with the answer.
  """

  copies: Mapping[str, Record] = MappingProxyType({})
  lookups: Mapping[str, Record] = MappingProxyType({})


NOTHING = Known()

# From a total to a display of what is done.
ProgressFactory = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclasses.dataclass(frozen=True)
class Selection:
  """The items of a task that a run asks, the same for every model state.

  Attributes:
    task: Whose they are.
    items: In the order of the task.
    is_complete: They are all that the data at hand hold, so that no group may
      be missing. The data may be a part of the official ones all the same:
      `registry.OFFICIAL_ITEMS` tells, and reports say it.
    shares_prefixes: What prompts begin with in common is computed once.
    stores_prompts: Each answer is stored with the text that was asked.
  """

  task: Task
  items: tuple[Item, ...]
  is_complete: bool
  shares_prefixes: bool = True
  stores_prompts: bool = False

  def texts(self, i: int) -> list[str]:
    """What item number `i` is asked, from the tokens: a prompt, or a context
    and its continuations."""
    decode = self.task.context.tokenizer.decode
    request = self.requests[i]
    if isinstance(request, ScoreRequest):
      return [decode(ids) for ids in (request.context, *request.continuations)]
    return [decode(request.prompt)]

  @functools.cached_property
  def requests(self) -> tuple[Request, ...]:
    """What is asked of each item; made once for all model states."""
    requests = [self.task.request(item) for item in self.items]
    if not self.shares_prefixes:
      return tuple(requests)
    shareable = [i for i, r in enumerate(requests) if not _is_scored_whole(r)]
    lengths = shared_lengths([_prompt(requests[i]) for i in shareable])
    for i, length in zip(shareable, lengths, strict=True):
      requests[i] = dataclasses.replace(requests[i], shared=length)
    return tuple(requests)

  @functools.cached_property
  def keys(self) -> tuple[Record, ...]:
    """What a stored answer must agree with, by item."""
    return tuple(
      {
        'version': self.task.version,
        'prompt_hash': prompt_hash(r),
        'decode': decode_settings(r),
      }
      for r in self.requests
    )


def select(
  task: Task,
  *,
  limit: int | None = None,
  seed: int = 0,
  shares_prefixes: bool = True,
  stores_prompts: bool = False,
) -> Selection:
  """All items, or `limit` of them: a seeded, stratified, nested subset."""
  items = task.items()
  chosen = subset(items, limit, seed)
  return Selection(
    task,
    tuple(chosen),
    len(chosen) == len(items),
    shares_prefixes,
    stores_prompts,
  )


def evaluate(
  selection: Selection,
  predictor: Predictor,
  state: ModelState,
  *,
  state_fingerprint: str,
  path: PathLike,
  scores_path: PathLike,
  known: Known = NOTHING,
  progress: ProgressFactory = lambda total: nullcontext(lambda done: None),
) -> list[Metric]:
  """The task's metrics, the headline first.

  Every answer is appended to the log `path` as it comes, and an interrupted
  evaluation resumes: no stored answer is asked for again but for the company
  of likelihoods, see `_groups`. Answers are scored beside the device, of many
  processes by the first; the scores are written when all are there.

  Args:
    selection: What to ask.
    predictor: Who answers.
    state: With which weights.
    state_fingerprint: Names the weights. That answers of other weights are
      taken for theirs cannot happen all the same: a checksum of the arrays in
      `state` is stored with each.
    path: The log of answers of this task on this state.
    scores_path: Where their scores go.
    known: What need not be asked; see `untouched`.
    progress: From the number of items to a context whose value is called with
      the number of items done.

  Raises:
    ValueError: The log is damaged, or one of its records is of other weights,
      another version of the task, another prompt or other decode settings, or
      ended early where the task's profile reads on.
    OSError: The log cannot be written; what was written stays valid.
  """
  task, items = selection.task, selection.items
  whose = {
    'state_fingerprint': state_fingerprint,
    'state_checksum': trees.checksum(state),
  }
  stored = samples.read_samples(path, **whose)
  _check_answers(selection, stored, path)
  score = task.score if processes.is_first() else _not_scored
  with (
    futures.ThreadPoolExecutor(_SCORERS) as pool,
    progress(len(items)) as report,
  ):
    scores = {
      item.id: pool.submit(score, item, stored[item.id])
      for item in items
      if item.id in stored
    }
    report(len(scores))
    flush_every = 1 if task.mode == 'gen' else 16
    asked = _answers(selection, predictor, state, stored, known.copies)
    with samples.SampleWriter(path, flush_every) as writer:
      for item, record in itertools.chain(
        _copied(items, stored, known.copies), asked
      ):
        record |= whose
        if item.id in known.lookups:
          record |= {'lookups': known.lookups[item.id]}
        writer.add(record)
        stored[item.id] = record
        scores[item.id] = pool.submit(score, item, record)
        report(len(scores))
        if preemption.is_told():
          # They are scored again, from the log.
          pool.shutdown(wait=False, cancel_futures=True)
          preemption.stop()
    samples.put_in_order(path, items, stored)
    return processes.from_first(
      lambda: _write_scores(
        selection,
        stored,
        {name: score.result() for name, score in scores.items()},
        scores_path,
      )
    )


def score(
  selection: Selection, *, path: PathLike, scores_path: PathLike
) -> list[Metric]:
  """The metrics of stored answers, without a model.

  An answer counts with early stop and without, if all that is read is there.

  Raises:
    ValueError: The log is damaged, an item has no answer there, a record is of
      another version of the task, another prompt or other decode settings, or
      ended early where the task's profile reads on.
  """
  stored = samples.read_samples(path, state_fingerprint=None)
  missing = [item.id for item in selection.items if item.id not in stored]
  if missing:
    raise ValueError(
      f'{path}: no answer to {len(missing)} of {len(selection.items)} items, '
      f'{missing[0]!r} for one. Finish the run, or set its limit.'
    )
  _check_answers(selection, stored, path, ignored=('early_stop',))
  with futures.ThreadPoolExecutor(_SCORERS) as pool:
    found = pool.map(
      lambda item: selection.task.score(item, stored[item.id]),
      selection.items,
    )
    by_id = {item.id: s for item, s in zip(selection.items, found, strict=True)}
  return _write_scores(selection, stored, by_id, scores_path)


def _check_answers(
  selection: Selection,
  stored: dict[str, Record],
  path: PathLike,
  ignored: Sequence[str] = (),
) -> None:
  """Returns if what is stored answers what the selection asks.

  Args:
    selection: Its task, prompts and settings.
    stored: Records by id; those of other items are not looked at.
    path: Where they are from.
    ignored: Decode settings that may differ.

  Raises:
    ValueError: Names the item, and what differs.
  """
  for item, key in zip(selection.items, selection.keys, strict=True):
    if item.id not in stored:
      continue
    record = stored[item.id]
    found = record['decode']
    free = {name: found[name] for name in ignored if name in found}
    expected = key | {'decode': key['decode'] | free}
    for field, value in expected.items():
      samples.check_field(record, field, value, path)
    if selection.task.is_cut_short(item, record):
      raise ValueError(
        f'{path}: the answer to {item.id!r} ended as soon as another profile '
        'had what it needs. Run the evaluation again, under this profile or '
        'with --evals.early_stop=false.'
      )


def _write_scores(
  selection: Selection,
  stored: dict[str, Record],
  scores: dict[str, Record],
  path: PathLike,
) -> list[Metric]:
  keep = (
    'doc_id',
    'group',
    'version',
    'prompt_hash',
    'state_fingerprint',
    'nonfinite',
  )
  rules = {'profile': selection.task.context.settings.profile}
  files.write_jsonl(
    path,
    [
      {name: stored[item.id][name] for name in keep} | rules | scores[item.id]
      for item in selection.items
    ],
  )
  answered = [stored[item.id] | scores[item.id] for item in selection.items]
  return [
    *selection.task.aggregate(answered, complete=selection.is_complete),
    *aggregates.lookups(answered),
  ]


def _not_scored(item: Item, record: Record) -> Record:
  del item, record
  return {}


def _copied(
  items: Sequence[Item],
  stored: Mapping[str, Record],
  copies: Mapping[str, Record],
) -> list[tuple[Item, Record]]:
  """The copies of items that are not stored, with whose answers they were."""
  return [
    (item, copy | {'copied_from': copy['state_fingerprint']})
    for item in items
    if item.id not in stored and (copy := copies.get(item.id))
  ]


def _answers(
  selection: Selection,
  predictor: Predictor,
  state: ModelState,
  stored: Mapping[str, Record],
  copies: Mapping[str, Record],
) -> Iterator[tuple[Item, Record]]:
  """Records of the items that are neither stored nor copied, less the state's
  fingerprint."""
  items, requests = selection.items, selection.requests
  copied = {i for i, item in enumerate(items) if item.id in copies}
  done = copied | {i for i, item in enumerate(items) if item.id in stored}
  if len(done) == len(requests):
    return
  if selection.task.mode == 'gen':
    results = predictor.generate(state, requests, skip=done)
  else:
    results = _likelihoods(predictor, state, requests, copied, done)
  for i, result in results:
    answer = selection.task.answer(items[i], result)
    ids = {'doc_id': items[i].id, 'group': items[i].group}
    asked = {}
    if selection.stores_prompts:
      asked = {'arguments': selection.texts(i)}
    yield items[i], {**ids, **asked, **selection.keys[i], **answer}


def _likelihoods(
  predictor: Predictor,
  state: ModelState,
  requests: Sequence[Request],
  copied: Collection[int],
  done: Collection[int],
) -> Iterator[tuple[int, ScoreResult]]:
  """Results of those that are not done, with their indices."""
  for group in _groups(requests, copied):
    if all(i in done for i in group):
      continue
    for place, result in predictor.score(state, [requests[i] for i in group]):
      if group[place] not in done:
        yield group[place], result


def _groups(
  requests: Sequence[Request], without: Collection[int]
) -> list[list[int]]:
  """Indices that are asked together: of one prefix and similar length.

  A group that was not finished is asked again as a whole, so that a
  likelihood does not depend, not even in its last digit, on where an
  evaluation was interrupted.
  """
  by_prefix: dict[tuple[int, ...], list[int]] = {}
  for i, request in enumerate(requests):
    if i not in without:
      by_prefix.setdefault(_prompt(request)[: request.shared], []).append(i)
  groups = []
  for members in by_prefix.values():
    members.sort(key=lambda i: (_length(requests[i]), i))
    groups += [
      members[first : first + _GROUP]
      for first in range(0, len(members), _GROUP)
    ]
  return groups


def _prompt(request: Request) -> tuple[int, ...]:
  if isinstance(request, ScoreRequest):
    return request.context
  return request.prompt


def _is_scored_whole(request: Request) -> bool:
  return isinstance(request, ScoreRequest) and request.score_context


def _length(request: Request) -> int:
  if isinstance(request, ScoreRequest):
    return len(request.context) + sum(map(len, request.continuations))
  return len(request.prompt)
