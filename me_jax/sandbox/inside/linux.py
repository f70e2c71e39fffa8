"""System calls of Linux that the standard library does not offer."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
  """The result of a function of the C library. Raises OSError, naming it."""
  return _checked(name, getattr(_libc, name)(*arguments))


def die_with_parent() -> None:
  """Lets the death of the parent end this process at once.

  Of a parent that died before this call no signal comes. One that is heard
  from after this call was alive.
  """
  death_signal, kill = 1, 9
  call('prctl', death_signal, kill, 0, 0, 0)


def syscall(name: str, number: int, *arguments: object) -> int:
  """The result of a system call without a wrapper. Raises OSError."""
  return _checked(name, _libc.syscall(ctypes.c_long(number), *arguments))


def _checked(name: str, result: int) -> int:
  if result < 0:
    error = ctypes.get_errno()
    raise OSError(error, f'{name}: {os.strerror(error)}')
  return result
