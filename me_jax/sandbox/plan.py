"""Which kinds of walls to try on this machine, the strongest first."""

import dataclasses
import os
import pathlib
import shutil
import sys
from typing import Any

KINDS = ('namespaces', 'bubblewrap', 'landlock', 'basic')

_INSIDE = pathlib.Path(__file__).parent / 'inside'
_LIBRARIES = ('/usr/lib', '/usr/lib64', '/lib', '/lib64', '/usr/share/zoneinfo')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What one program may use."""

  timeout_s: float
  memory_bytes: int
  file_bytes: int = 1 << 24
  disk_bytes: int = 1 << 25  # All files, where they are kept in memory.
  open_files: int = 64

  def __post_init__(self):
    if self.timeout_s <= 0:
      raise ValueError(f'timeout_s must be positive, got {self.timeout_s}.')
    if self.memory_bytes < 1 << 26:
      raise ValueError(
        f'memory_bytes must be at least {1 << 26} (the interpreter itself '
        f'needs that), got {self.memory_bytes}.'
      )

  @property
  def cpu_s(self) -> int:
    """More than the deadline: a second wall behind it."""
    return int(self.timeout_s) + 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """One way to start a child.

  Attributes:
    kind: One of `KINDS`.
    user_namespace: With a user namespace, which needs no privileges.
    drop_root: Root becomes another user before the program starts.
    python: The interpreter.
    folders: What of the file tree the interpreter needs; the program can read
      these and, where the walls allow to choose, no others.
    tasks: Upper limit of processes and threads of the program's user.
  """

  kind: str
  user_namespace: bool = False
  drop_root: bool = False
  python: str
  folders: tuple[str, ...]
  tasks: int

  def command(self, limits: Limits, folder: str) -> list[str]:
    """The command that starts the child for the program's `folder`."""
    child = [self.python, '-s', '-S', '-P', '-X', 'utf8']
    child.append(str(_INSIDE / 'main.py'))
    if self.kind != 'bubblewrap':
      return [*child, folder]
    return [*self._bubblewrap(limits), *child, folder]

  def setup(self, limits: Limits) -> dict[str, Any]:
    """The first message to the child (see `inside/session.py`)."""
    return {
      'kind': self.kind,
      'user_namespace': self.user_namespace,
      'drop_root': self.drop_root,
      'folders': list(self.folders),
      'disk_bytes': limits.disk_bytes,
      'limits': {
        'RLIMIT_CPU': limits.cpu_s,
        'RLIMIT_AS': limits.memory_bytes,
        'RLIMIT_FSIZE': limits.file_bytes,
        'RLIMIT_NOFILE': limits.open_files,
        'RLIMIT_NPROC': self.tasks,
        'RLIMIT_CORE': 0,
        'RLIMIT_MSGQUEUE': 0,
      },
    }

  def _bubblewrap(self, limits: Limits) -> list[str]:
    command = [shutil.which('bwrap') or 'bwrap', '--unshare-all', '--as-pid-1']
    command += ['--die-with-parent', '--cap-drop', 'ALL']
    for path in (*self.folders, self.python, str(_INSIDE)):
      if os.path.islink(path):
        command += ['--symlink', os.readlink(path), path]
      else:
        command += ['--ro-bind', path, path]
    command += ['--dev', '/dev', '--remount-ro', '/dev']
    command += ['--size', str(limits.disk_bytes), '--tmpfs', '/program']
    return [*command, '--chdir', '/program', '--remount-ro', '/']


def plans(kind: str) -> list[Plan]:
  """The ways to try, the strongest first.

  Args:
    kind: One of `KINDS`, or 'auto' for all of them.

  Raises:
    RuntimeError: There is none on this platform.
    ValueError: `kind` is none of these.
  """
  if kind not in ('auto', *KINDS):
    raise ValueError(
      f'isolation must be auto or one of {", ".join(KINDS)}, got {kind!r}.'
    )
  if os.name != 'posix':
    raise RuntimeError(
      'Programs written by a model run only on Linux and macOS: this platform '
      f'({sys.platform}) has no process groups and no resource limits. Use the '
      'Windows Subsystem for Linux or a container.'
    )
  root, linux = os.geteuid() == 0, sys.platform == 'linux'
  found = []
  if linux and root:
    found.append(_plan('namespaces', drop_root=True))
  if linux:
    found.append(_plan('namespaces', user_namespace=True))
    if shutil.which('bwrap'):
      found.append(_plan('bubblewrap'))
    if root:
      found.append(_plan('landlock', drop_root=True))
    found.append(_plan('landlock'))
  # With root's rights and all files in reach nothing is safe.
  found.append(_plan('basic', drop_root=root))
  return [p for p in found if kind in ('auto', p.kind)]


def _plan(kind: str, **options: bool) -> Plan:
  return Plan(
    kind=kind,
    python=os.path.realpath(sys.executable),
    folders=_folders(),
    # In a namespace, or as a user of its own, nobody else's tasks count.
    tasks=64 if any(options.values()) else 512 + _tasks(),
    **options,
  )


def _folders() -> tuple[str, ...]:
  prefixes = {sys.base_prefix, sys.base_exec_prefix}
  paths = {f'{os.path.realpath(prefix)}/lib' for prefix in prefixes}
  paths.add(os.path.realpath(os.path.dirname(os.__file__)))
  kept: list[str] = []
  for path in sorted({*paths, *_LIBRARIES}):
    if not os.path.exists(path):
      continue
    if not any(path.startswith(f'{other}/') for other in kept):
      kept.append(path)
  return tuple(kept)


def _tasks() -> int:
  # Without /proc, more than an ordinary desktop has.
  if not os.path.isdir('/proc/self/task'):
    return 1024
  count = 0
  for name in os.listdir('/proc'):
    try:
      if name.isdigit() and os.stat(f'/proc/{name}').st_uid == os.geteuid():
        count += len(os.listdir(f'/proc/{name}/task'))
    except (FileNotFoundError, ProcessLookupError):  # It has just ended.
      continue
  return count
