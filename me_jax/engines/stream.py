"""Prompts through the rows of a decoding batch, as rows become free."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from me_jax import trees
from me_jax.engines import decoding
from me_jax.typing import GenerateRequest, GenerateResult, Tokenizer

_DECIDE_EVERY = 4  # decode steps between two looks at `decided`
_LOOK_EVERY = 16  # where no request has one
_ROOM = 64  # tokens of an answer at first
_GROWTH = 4
_FEW = (8, 4)  # rows of a batch that is nearly done, at most a third of it


class DeviceFunctions(NamedTuple):
  """Jitted functions of `decoding`, bound to a model state and a prefix.

  Attributes:
    prefill: From ids [G, T] and lengths [G] to `Prompts`.
    insert: See `decoding.insert`.
    decode: From `Rows` and a number of steps to `Rows`.
    grow: From `Rows` and N to `Rows`.
    keep: From `Rows` and places [b] to `Rows` of those alone.
    empty_rows: From B, T and N to `Rows`.
  """

  prefill: Callable[[np.ndarray, np.ndarray], decoding.Prompts]
  insert: Callable[..., decoding.Rows]
  decode: Callable[[decoding.Rows, int], decoding.Rows]
  grow: Callable[[decoding.Rows, int], decoding.Rows]
  keep: Callable[[decoding.Rows, np.ndarray], decoding.Rows]
  empty_rows: Callable[[int, int, int], decoding.Rows]


@dataclasses.dataclass(kw_only=True)
class Stream:
  """Answers requests that share a prefix and the shape of a batch.

  Attributes:
    device: What runs there.
    tokenizer: The model's.
    batch: B, rows that decode together.
    slots: T, the longest prompt behind the prefix.
    new: Tokens of the longest answer; there is room for fewer at first, for
      attention to the rest would cost as much as if it were there.
    data_size: Groups of devices that rows are dealt over; divides `batch`.
    prefill_shape: From the length of a prompt behind the prefix to the shape
      [G, T] in which it is put through the model, of its own whatever else
      waits: an answer does not depend on which others were there before.
    refill: Free rows take the next prompts while others go on, and the last few
      go on in a smaller batch; else a batch is decoded to its end before the
      next begins.
  """

  device: DeviceFunctions
  tokenizer: Tokenizer
  batch: int
  slots: int
  new: int
  data_size: int
  prefill_shape: Callable[[int], tuple[int, int]]
  refill: bool

  def __call__(
    self, requests: Sequence[tuple[int, GenerateRequest]]
  ) -> Iterator[tuple[int, GenerateResult]]:
    """Results with their indices, as they are ready."""
    decides = any(request.decided for _, request in requests)
    steps = _DECIDE_EVERY if decides else _LOOK_EVERY
    waiting = deque(sorted(requests, key=lambda r: (-_own_length(r[1]), r[0])))
    room = min(_ROOM, self.new)
    rows = self.device.empty_rows(self.batch, self.slots, room)
    running: dict[int, _Answer] = {}
    while waiting or running:
      if self.refill or not running:
        rows = yield from self._fill(rows, waiting, running)
      if not running:
        continue
      if self.refill and not waiting:
        rows, running = self._among_few(rows, running)
      room = rows.tokens.shape[1]
      longest = max(len(answer.tokens) for answer in running.values())
      if longest + steps > room < self.new:
        rows = self.device.grow(rows, min(_GROWTH * room, self.new))
      rows = self.device.decode(rows, steps)
      tokens, counts, stops = trees.to_host(
        (rows.tokens, rows.count, rows.stop)
      )
      for row, answer in list(running.items()):
        answer.tokens = tokens[row, : counts[row]]
        result = answer.result(int(stops[row]))
        if result is not None:
          yield answer.index, result
          del running[row]

  def _fill(self, rows, waiting, running):
    """Puts waiting prompts into free rows, if there are enough to be worth a
    pass; returns the rows."""
    is_idle = not running
    while waiting:
      free = [row for row in range(self.batch) if row not in running]
      shape = self.prefill_shape(_own_length(waiting[0][1]))
      enough = 1 if is_idle else min(shape[0], len(waiting))
      if len(free) < enough:
        break
      rows = yield from self._begin(rows, waiting, free, shape, running)
    return rows

  def _among_few(self, rows, running):
    """The running rows in a batch of fewer, if that is much smaller; and who is
    where in it."""
    batch = len(rows.count)
    sizes = (n * self.data_size for n in _FEW)
    few = next((n for n in sizes if n <= batch // 3), 0)
    if len(running) > few:
      return rows, running
    places = np.zeros(few, np.int32)
    places[: len(running)] = list(running)
    rows = self.device.keep(rows, places)
    # The others are copies of row 0: what becomes of them is not read.
    return rows, dict(enumerate(running.values()))

  def _begin(self, rows, waiting, free, shape, running):
    """Puts the next prompts of a shape into free rows, unless their first
    token ends them; returns the rows."""
    size, slots = shape
    taken = []
    while waiting and len(taken) < min(size, len(free)):
      if self.prefill_shape(_own_length(waiting[0][1])) != shape:
        break
      taken.append(waiting.popleft())
    ids = np.zeros((size, slots), np.int32)
    lengths = np.zeros(size, np.int32)
    for place, (_, request) in enumerate(taken):
      own = request.prompt[request.shared :]
      ids[place] = own[0]
      ids[place, slots - len(own) :] = own
      lengths[place] = len(own)
    prompts = self.device.prefill(ids, lengths)
    tokens, stops = trees.to_host((prompts.token, prompts.stop))
    places = np.full(size, self.batch, np.int32)
    limits = np.zeros(size, np.int32)
    for place, (index, request) in enumerate(taken):
      stop = int(stops[place])
      answer = _Answer(index, request, self.tokenizer)
      if not stop:
        answer.tokens = tokens[place : place + 1][: request.max_new_tokens]
        if request.max_new_tokens <= 1:
          stop = decoding.LENGTH
      result = answer.result(stop)
      if result is not None:
        yield index, result
        continue
      row = free.pop()
      running[row] = answer
      places[place], limits[place] = row, request.max_new_tokens
    if (places < self.batch).any():
      rows = self.device.insert(rows, prompts, places, limits)
    return rows


class _Answer:
  """The answer to one request, as far as it got."""

  def __init__(
    self, index: int, request: GenerateRequest, tokenizer: Tokenizer
  ):
    self.index = index
    self.tokens = np.zeros(0, np.int32)
    self._decided = request.decided
    self._tokenizer = tokenizer
    self._looked_at = 0  # tokens with which it was not decided yet

  def result(self, stop: int) -> GenerateResult | None:
    """The finished answer, or None if it goes on.

    Which token decides it does not depend on how many came at once.
    """
    if self._decided and len(self.tokens) > self._looked_at:
      if self._is_decided(len(self.tokens)):
        count = self._looked_at + 1
        while not self._is_decided(count):
          count += 1
        self.tokens, stop = self.tokens[:count], decoding.DECIDED
      self._looked_at = len(self.tokens)
    if not stop:
      return None
    return GenerateResult(
      tokens=self.tokens.copy(),
      text=self._tokenizer.decode(self.tokens.tolist()),
      stop_reason=decoding.STOP_REASONS[stop],
    )

  def _is_decided(self, count: int) -> bool:
    text = self._tokenizer.decode(self.tokens[:count].tolist())
    # The last token may end inside a character.
    return self._decided(text.rstrip('\ufffd'))


def _own_length(request: GenerateRequest) -> int:
  return len(request.prompt) - request.shared
