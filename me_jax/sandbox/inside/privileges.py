"""Giving up who we are."""

import ctypes
import os

import linux

_NOBODY = 65534
# A range that no distribution gives to users or containers. Each process gets
# its own, so that limits per user count one program and not its neighbours.
_FIRST_USER = 0x70000000


def become_nobody(folder: str, process: int) -> int:
  """The user id that root has changed to; `folder` now belongs to it.

  Args:
    folder: The program's.
    process: A number that no other running program has.
  """
  for user in (_FIRST_USER + process, _NOBODY):
    try:
      os.chown(folder, user, user)
      os.setgroups([])
      os.setgid(user)
      os.setuid(user)
      return user
    except OSError:
      # Inside a container only the ids of its map exist.
      if user == _NOBODY or os.geteuid() != 0:
        raise
  raise AssertionError('unreachable')


def give_up() -> None:
  """Drops all capabilities for good."""
  no_new_privileges = 38
  linux.call('prctl', no_new_privileges, 1, 0, 0, 0)
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  linux.call('capset', header, (ctypes.c_uint32 * 6)())
