"""Stops at the next safe place when the machine is wanted for something else.

A scheduler says so with SIGTERM, to one of many processes or to all. All stop
at the same place: JAX's preemption service finds it.
"""

import itertools
import signal
import sys
import threading
from typing import NoReturn

from jax.experimental import multihost_utils

from me_jax import processes

EXIT_CODE = 128 + signal.SIGTERM

_told = threading.Event()
_places = itertools.count()


def listen() -> None:
  """From now on SIGTERM is heard; a second one ends a single process at once.

  Of many processes JAX listens itself.
  """
  if not processes.are_many():
    signal.signal(signal.SIGTERM, _hear)


def is_told() -> bool:
  """Whether to stop here. All processes must ask at the same places, and all
  hear the same."""
  if processes.are_many():
    return multihost_utils.reached_preemption_sync_point(next(_places))
  return _told.is_set()


def stop() -> NoReturn:
  """Ends the program, with all that is done on the disk or on its way there.

  Raises:
    SystemExit: Always.
  """
  if processes.is_first():
    said = 'Stopped by SIGTERM. The same command resumes.'
    print(said, file=sys.stderr, flush=True)
  sys.exit(EXIT_CODE)


def stop_if_told() -> None:
  """`stop` if `is_told`."""
  if is_told():
    stop()


def _hear(number: int, frame: object) -> None:
  del frame
  _told.set()
  signal.signal(number, signal.SIG_DFL)
