"""An audit hook that refuses what a program has no business doing.

A weak wall, for platforms that have no better one: it lives in the program's
own interpreter. It stops careless programs and simple malice, not somebody who
looks for a way round it.
"""

import os
import sys

_REFUSED = (
  'ctypes.',
  'fcntl.',
  'mmap.',
  'os.exec',
  'os.fork',
  'os.kill',
  'os.posix_spawn',
  'os.spawn',
  'os.system',
  'pty.',
  'resource.',
  'signal.',
  'socket.',
  'subprocess.',
  'syslog.',
)
_CHANGES = (
  'os.chflags',
  'os.chmod',
  'os.chown',
  'os.link',
  'os.lockf',
  'os.mkdir',
  'os.remove',
  'os.removexattr',
  'os.rename',
  'os.rmdir',
  'os.setxattr',
  'os.symlink',
  'os.truncate',
  'os.utime',
)
_LOOKS = ('os.chdir', 'os.listdir', 'os.scandir', 'os.listxattr')
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(*, readable: list[str], writable: str) -> None:
  """Allows reading below `readable` and all below `writable`, for good."""
  real, fsdecode, join = os.path.realpath, os.fsdecode, os.path.join
  own = join(real(writable), '')
  seen = (own, *(join(real(folder), '') for folder in readable))
  null, path_types = os.devnull, (str, bytes, os.PathLike)

  def below(path: object, folders: tuple[str, ...]) -> bool:
    if isinstance(path, int) or path is None:
      return True
    path = fsdecode(path)
    return path == null or join(real(path), '').startswith(folders)

  def check(event: str, arguments: tuple) -> None:
    if event.startswith(_REFUSED):
      allowed = False
    elif event == 'open':
      path, _, flags = arguments
      allowed = below(path, (own,) if flags & _WRITES else seen)
    elif event in _CHANGES:
      paths = [a for a in arguments if isinstance(a, path_types)]
      allowed = all(below(path, (own,)) for path in paths)
    elif event in _LOOKS:
      allowed = below(arguments[0], seen)
    else:
      allowed = True
    if not allowed:
      raise PermissionError(f'{event} is not allowed here')

  sys.addaudithook(check)
