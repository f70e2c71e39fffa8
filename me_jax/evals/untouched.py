"""Answers of the unedited model that an editor leaves as they are.

A method that acts in the forward pass looks at some tokens of a text and acts
where it finds what it knows. Where it finds nothing in an item, neither in the
prompt nor in what the unedited model went on with, the edited model goes on
with the same: its answer is copied.

What the method looks at is the same for all its states, so it is computed once
and kept.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from me_jax.edits.editor import Probe
from me_jax.engines import scoring
from me_jax.evals import aggregates, samples
from me_jax.evals.runner import Selection
from me_jax.evals.task import Metric, Record, Request
from me_jax.files import PathLike
from me_jax.typing import (
  CONTEXT_END,
  NEW,
  PROMPT_END,
  Fed,
  ModelState,
  ScoreRequest,
  SitePredictor,
)


class Found(NamedTuple):
  """What a state does to a task.

  Attributes:
    copies: Unedited records of the items that it leaves as they are, by id.
    metrics: How many those are, `copied`, and in how many items and at how
      many of the tokens that it looks at the method acts, `trigger_rate` and
      `token_trigger_rate`: on the text as the unedited model went on.
  """

  copies: Mapping[str, Record]
  metrics: list[Metric]


NOTHING = Found({}, [])


class _Text(NamedTuple):
  """What a model was fed, and what the tokens were to it, [T]."""

  request: ScoreRequest
  kinds: np.ndarray
  positions: np.ndarray


class _Looked(NamedTuple):
  """What stands at the tokens that are looked at, [n] and [n, X]."""

  slots: np.ndarray
  content: np.ndarray


class Untouched:
  """The items of one task that states of one method leave as they are."""

  def __init__(
    self,
    selection: Selection,
    predictor: SitePredictor,
    probe: Probe,
    *,
    path: PathLike,
    fingerprint: str,
    max_bytes: int,
  ):
    """Nothing is read yet.

    Args:
      selection: The items.
      predictor: Who answers.
      probe: Of the method.
      path: The log of the unedited model's answers; if it is not there, or
        holds no answer to an item, there is none to copy.
      fingerprint: Of the unedited model.
      max_bytes: Of what is looked at, so much is kept for the next state.
    """
    self._selection = selection
    self._predictor = predictor
    self._probe = probe
    self._path = path
    self._fingerprint = fingerprint
    self._free = max_bytes
    self._texts: dict[int, _Text] | None = None
    self._unedited: dict[str, Record] = {}
    self._kept: dict[int, _Looked] = {}

  def __call__(self, state: ModelState) -> Found:
    """What `state` leaves as it is.

    Raises:
      ValueError: The log of the unedited model is damaged, or of another one.
    """
    if self._texts is None:
      self._texts = dict(self._read())
    if not self._texts:
      return NOTHING
    on_host = jax.device_get(state.editor)
    slots = {
      i: np.flatnonzero(
        self._probe.asks(on_host, Fed(text.kinds[None], text.positions[None]))
      )
      for i, text in self._texts.items()
    }
    items = self._selection.items
    copies, triggered, asked, acting = {}, 0, 0, 0
    content = dict(self._content(state, slots))
    for i, at in slots.items():
      acts, may_act = np.zeros((2, 0), bool)
      if len(at):
        acts, may_act = self._probe.finds(state.editor, content[i])
      if not may_act.any():
        copies[items[i].id] = self._unedited[items[i].id]
      triggered += bool(acts.any())
      asked += len(acts)
      acting += int(acts.sum())
    metrics = [
      aggregates.share('copied', len(copies), len(items)),
      aggregates.share('trigger_rate', triggered, len(self._texts)),
    ]
    if asked:
      metrics.append(aggregates.share('token_trigger_rate', acting, asked))
    return Found(copies, metrics)

  def _read(self) -> Iterator[tuple[int, _Text]]:
    """The texts of items that the unedited model was asked in the same way."""
    stored = samples.read_samples(
      self._path, state_fingerprint=self._fingerprint
    )
    selection = self._selection
    for i, item in enumerate(selection.items):
      record, expected = stored.get(item.id), selection.keys[i]
      if record is None or any(record[k] != v for k, v in expected.items()):
        continue
      text = _text(selection.requests[i], record)
      if text is not None and not selection.task.is_cut_short(item, record):
        self._unedited[item.id] = record
        yield i, text

  def _content(
    self, state: ModelState, slots: Mapping[int, np.ndarray]
  ) -> Iterator[tuple[int, np.ndarray]]:
    """What stands at the tokens that are looked at, by item."""
    missing: list[int] = []
    for i, at in slots.items():
      kept = self._kept.get(i)
      if kept is not None and np.array_equal(kept.slots, at):
        yield i, kept.content
      elif len(at):
        missing.append(i)
    behind = [_behind(self._texts[i].request, slots[i]) for i in missing]
    found = self._predictor.tap(
      state, self._probe.site, [r for r, _ in behind], [at for _, at in behind]
    )
    for place, content in found:
      i = missing[place]
      if content.nbytes <= self._free:
        self._free -= content.nbytes
        self._kept[i] = _Looked(slots[i], content.copy())
      yield i, content


def _behind(
  request: ScoreRequest, slots: np.ndarray
) -> tuple[ScoreRequest, list[int]]:
  """The request, and slots of its row behind what it shares: nothing, if one
  of the tokens that are looked at is shared."""
  if slots.min() < request.shared:
    request = dataclasses.replace(request, shared=0)
  return request, (slots - request.shared).tolist()


def _text(request: Request, record: Record) -> _Text | None:
  """What the model was fed for an answer; None if the record does not say."""
  if isinstance(request, ScoreRequest):
    row = scoring.pack(dataclasses.replace(request, shared=0))
    kinds = np.zeros(len(row.ids), np.int32)
    kinds[len(request.context) - 1] = CONTEXT_END
    return _Text(request, kinds, np.array(row.positions, np.int32))
  if 'tokens' not in record:
    return None
  # The last token was fed only if the end token came of it.
  is_last_fed = record['stop_reason'] == 'eos'
  new = record['tokens'] if is_last_fed else record['tokens'][:-1]
  kinds = np.zeros(len(request.prompt) + len(new), np.int32)
  kinds[len(request.prompt) - 1] = PROMPT_END
  kinds[len(request.prompt) :] = NEW
  fed = ScoreRequest(
    context=(*request.prompt, *new),
    continuations=((0,),),
    shared=request.shared,
  )
  return _Text(fed, kinds, np.arange(len(kinds), dtype=np.int32))
