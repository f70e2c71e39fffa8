"""How far a long computation is, how fast, and how long it still takes."""

import io
import sys
import time
from collections.abc import Callable

import tqdm

from me_jax import processes

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
  """A bar on a terminal, plain lines elsewhere. Call it with what is done.

  The first call says where counting starts (more than 0 after a resume) and
  belongs before the first piece of work: the rate is measured from there.

      with Progress(len(items), 'scoring', 'items') as progress:
        progress(0)
        for i, item in enumerate(items, start=1):
          ...
          progress(i)
  """

  def __init__(
    self,
    total: int,
    what: str,
    unit: str,
    *,
    stream: io.TextIOBase | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      total: What `done` is when all is done.
      what: A few words before the numbers.
      unit: What is counted, in the plural.
      stream: Where to write; None for stderr.
      clock: Seconds.
    """
    self._total, self._what, self._unit = total, what, unit
    # Looked up now: stderr may be replaced after this module is imported.
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._start: tuple[float, int] | None = None
    self._shown: tuple[float, int] | None = None
    self._done = 0
    self._bar: tqdm.tqdm | None = None

  def __call__(self, done: int) -> None:
    """Shows that `done` of the total are done."""
    if not processes.is_first():
      return
    now = self._clock()
    self._done = done
    if self._start is None:
      self._start = (now, done)
      if self._stream.isatty():
        self._bar = tqdm.tqdm(
          total=self._total,
          initial=done,
          desc=self._what,
          unit=f' {self._unit}',
          file=self._stream,
          dynamic_ncols=True,
        )
    if self._bar is not None:
      self._bar.update(done - self._bar.n)
      return
    last = self._start[0] if self._shown is None else self._shown[0]
    if done >= self._total or now - last >= _SECONDS_BETWEEN_LINES:
      self._line(now)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exception) -> None:
    """Leaves the last state on the screen."""
    if self._bar is not None:
      self._bar.close()
    elif self._start is not None:
      self._line(self._clock())

  def _line(self, now: float) -> None:
    if self._shown is not None and self._shown[1] == self._done:
      return
    self._shown = (now, self._done)
    share = f' ({self._done / self._total:.0%})' if self._total else ''
    parts = [
      f'{self._what}: {self._done:,}/{self._total:,} {self._unit}{share}'
    ]
    seconds, done = now - self._start[0], self._done - self._start[1]
    if seconds > 0 and done > 0:
      rate = done / seconds
      parts.append(f'{_number(rate)} {self._unit}/s')
      if self._done < self._total:
        parts.append(f'{duration((self._total - self._done) / rate)} left')
      else:
        parts.append(f'took {duration(seconds)}')
    print(', '.join(parts), file=self._stream, flush=True)


def duration(seconds: float) -> str:
  """'7.3 s', '2:05' (minutes) or '1:02:05' (hours)."""
  if seconds < 59.95:
    return f'{seconds:.1f} s'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'


def _number(rate: float) -> str:
  return f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'
