"""Answers of the unedited model that an editor leaves as they are.

A method that acts in the forward pass looks at some tokens of a text and acts
where it finds what it knows. Where it finds nothing in an item, neither in the
prompt nor in what the unedited model went on with, the edited model goes on
with the same: its answer is copied.

What the method looks at is the same for all its states, so it is computed once
and kept.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from me_jax.edits.editor import Probe
from me_jax.engines import scoring
from me_jax.evals import samples
from me_jax.evals.runner import Known, Selection
from me_jax.evals.task import Record, Request
from me_jax.files import PathLike
from me_jax.typing import (
  NEW,
  PROMPT_END,
  Fed,
  ModelState,
  ScoreRequest,
  SitePredictor,
)

_TOKENS = 512  # tokens that are looked at together


class Room:
  """Host memory for what is kept from state to state, shared by tasks."""

  def __init__(self, max_bytes: int):
    """So much may be kept in all."""
    self._free = max_bytes

  def take(self, content: np.ndarray) -> bool:
    """Whether there was room for it, which it has now."""
    if content.nbytes > self._free:
      return False
    self._free -= content.nbytes
    return True


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
    room: Room,
  ):
    """Nothing is read yet.

    Args:
      selection: The items.
      predictor: Who answers.
      probe: Of the method.
      path: The log of the unedited model's answers; if it is not there, or
        holds no answer to an item, there is none to copy.
      fingerprint: Of the unedited model.
      room: Where what is looked at is kept for the next state.
    """
    self._selection = selection
    self._predictor = predictor
    self._probe = probe
    self._path = path
    self._fingerprint = fingerprint
    self._room = room
    self._texts: dict[int, _Text] | None = None
    self._unedited: dict[str, Record] = {}
    self._kept: dict[int, _Looked] = {}

  def __call__(self, state: ModelState) -> Known:
    """What `state` leaves as it is, and where it acts.

    Raises:
      ValueError: The log of the unedited model is damaged, or of another one.
    """
    if self._texts is None:
      self._texts = dict(self._read())
    on_host = jax.device_get(state.editor)
    slots = {
      i: np.flatnonzero(
        self._probe.asks(on_host, Fed(text.kinds[None], text.positions[None]))
      )
      for i, text in self._texts.items()
    }
    # Items, and of each how many tokens; found out in pieces, for what is
    # looked at may be more than memory holds.
    acting = dict.fromkeys(slots, 0)
    touched: set[int] = set()
    for piece in _pieces(self._content(state, slots)):
      owners = np.repeat([i for i, _ in piece], [len(c) for _, c in piece])
      content = np.concatenate([c for _, c in piece])
      acts, may_act = self._probe.finds(state.editor, content)
      for i in owners[acts].tolist():
        acting[i] += 1
      touched.update(owners[may_act].tolist())
    names = {i: self._selection.items[i].id for i in slots}
    return Known(
      copies={
        name: self._unedited[name]
        for i, name in names.items()
        if i not in touched
      },
      lookups={
        name: {'asked': len(slots[i]), 'acting': acting[i]}
        for i, name in names.items()
      },
    )

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
    found = self._predictor.tap(
      state,
      self._probe.site,
      [self._texts[i].request for i in missing],
      [slots[i].tolist() for i in missing],
    )
    for place, content in found:
      i = missing[place]
      if self._room.take(content):
        self._kept[i] = _Looked(slots[i], content.copy())
      yield i, content


def _pieces(
  contents: Iterable[tuple[int, np.ndarray]],
) -> Iterator[list[tuple[int, np.ndarray]]]:
  """The contents in lists of some `_TOKENS` tokens."""
  piece, size = [], 0
  for i, content in contents:
    piece.append((i, content))
    size += len(content)
    if size >= _TOKENS:
      yield piece
      piece, size = [], 0
  if piece:
    yield piece


def _text(request: Request, record: Record) -> _Text | None:
  """What the model was fed for an answer; None if the record does not say."""
  if isinstance(request, ScoreRequest):
    row = scoring.pack(dataclasses.replace(request, shared=0))
    arrays = (np.array(x, np.int32) for x in (row.kinds, row.positions))
    return _Text(request, *arrays)
  if 'tokens' not in record:
    return None
  # The last token was fed only if something came of it that is no token.
  is_last_fed = record['stop_reason'] in ('eos', 'nonfinite')
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
