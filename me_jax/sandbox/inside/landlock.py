"""File access of the calling process restricted by Landlock (Linux 6.2)."""

import ctypes
import os
import stat

import linux

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # The same on every architecture.
_EXECUTE, _WRITE, _READ, _LIST = (1 << bit for bit in range(4))
# Truncation, by which files can be emptied, came with version 3.
_FILE_RIGHTS_OF_VERSION_3 = (1 << 15) - 1
_RIGHTS_OF_FILES = _EXECUTE | _WRITE | _READ | 1 << 14


class _PathBeneath(ctypes.Structure):
  _pack_ = 1
  _fields_ = [('allowed', ctypes.c_uint64), ('folder', ctypes.c_int32)]


def restrict(*, readable: list[str], writable: str) -> None:
  """Leaves reading below `readable`, everything but running below `writable`.

  Looking up whether a file exists stays possible. Raises OSError if the kernel
  has no Landlock, or one too old to protect files from being emptied.
  """
  version = linux.syscall('landlock_create_ruleset', _CREATE, None, 0, 1)
  if version < 3:
    raise OSError(f'Landlock version {version} is too old, 3 is needed')
  handled = ctypes.c_uint64(_FILE_RIGHTS_OF_VERSION_3)
  rules = linux.syscall(
    'landlock_create_ruleset', _CREATE, ctypes.byref(handled), 8, 0
  )
  for folder in readable:
    _allow(rules, folder, _READ | _LIST)
  _allow(rules, os.devnull, _READ | _WRITE)
  _allow(rules, writable, _FILE_RIGHTS_OF_VERSION_3 & ~_EXECUTE)
  linux.syscall('landlock_restrict_self', _RESTRICT, rules, 0)
  os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
  beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
  if not stat.S_ISDIR(os.fstat(beneath).st_mode):
    rights &= _RIGHTS_OF_FILES
  rule = _PathBeneath(rights, beneath)
  linux.syscall('landlock_add_rule', _ADD, rules, 1, ctypes.byref(rule), 0)
  os.close(beneath)
