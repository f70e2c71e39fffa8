"""New Linux namespaces with a file tree of their own."""

import _signal
import ctypes
import os

import linux

_NEW_MOUNTS, _NEW_USER, _NEW_PIDS = 0x20000, 0x10000000, 0x20000000
_NEW_UTS, _NEW_IPC, _NEW_NETWORK = 0x4000000, 0x8000000, 0x40000000
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_DETACH = 2
_SET_ATTRIBUTES, _AT_RECURSIVE = 442, 0x8000
_READ_ONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_NOBODY = 65534
_PROGRAM = '/program'
_DEVICES = ('null', 'zero', 'urandom')


def enter(
  root: str,
  folders: list[str],
  *,
  user: bool,
  disk_bytes: int,
  pipes: tuple[int, int],
) -> str:
  """The program's folder, as first process of new namespaces.

  The calling process stays behind outside: it waits for the new one, ends it
  (and with it every process in the namespace) on SIGTERM, closes the
  descriptors `pipes` and leaves with the status of a shell (128 + signal).

  Args:
    root: An empty folder on which the new file tree is mounted.
    folders: What of the old tree is visible in the new, read-only.
    user: Make a user namespace as well; without one this takes root.
    disk_bytes: Size of the program's folder, which is in memory.
    pipes: Descriptors that only the new process needs: for the evaluator's
      requests, and for the replies.

  Raises:
    OSError: The platform does not allow it; names the call.
  """
  spaces = _NEW_MOUNTS | _NEW_PIDS | _NEW_UTS | _NEW_IPC | _NEW_NETWORK
  uid, gid = os.geteuid(), os.getegid()
  linux.call('unshare', spaces | (_NEW_USER if user else 0))
  if user:
    for name, text in (
      ('setgroups', 'deny'),
      ('uid_map', f'{_NOBODY} {uid} 1'),
      ('gid_map', f'{_NOBODY} {gid} 1'),
    ):
      with open(f'/proc/self/{name}', 'w') as f:
        f.write(text)
  _leave_guard_outside(pipes)
  _build(root, folders, disk_bytes)
  os.chdir(root)
  linux.call('pivot_root', b'.', b'.')
  linux.call('umount2', b'.', _DETACH)
  return _PROGRAM


def _leave_guard_outside(pipes: tuple[int, int]) -> None:
  inside: list[int] = []

  def end(signal, frame):
    for process in inside:
      os.kill(process, _signal.SIGKILL)
    if not inside:
      os._exit(128 + _signal.SIGTERM)

  linux.die_with_parent()
  _signal.signal(_signal.SIGTERM, end)
  inside.append(os.fork())
  if inside[0] == 0:
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    return
  for descriptor in pipes:
    os.close(descriptor)
  # The first process of a process namespace is gone only after all others.
  _, status = os.waitpid(inside[0], 0)
  code = os.waitstatus_to_exitcode(status)
  os._exit(code if code >= 0 else 128 - code)


def _build(root: str, folders: list[str], disk_bytes: int) -> None:
  _mount('none', '/', None, _RECURSIVE | _PRIVATE)
  _mount('tmpfs', root, 'tmpfs', _NOSUID | _NODEV, 'size=1m,mode=755')
  for folder in folders:
    target = root + folder
    if os.path.islink(folder):
      os.makedirs(os.path.dirname(target), exist_ok=True)
      os.symlink(os.readlink(folder), target)
      continue
    os.makedirs(target)
    _mount(folder, target, None, _BIND | _RECURSIVE)
    _protect(target, _READ_ONLY | _ATTR_NOSUID | _ATTR_NODEV, _AT_RECURSIVE)
  os.mkdir(f'{root}/dev')
  for name in _DEVICES:
    open(f'{root}/dev/{name}', 'w').close()
    _mount(f'/dev/{name}', f'{root}/dev/{name}', None, _BIND)
  os.mkdir(root + _PROGRAM)
  options = f'size={disk_bytes},nr_inodes=4096,mode=1777'
  _mount('tmpfs', root + _PROGRAM, 'tmpfs', _NOSUID | _NODEV, options)
  _protect(root, _READ_ONLY, 0)


def _mount(
  source: str, target: str, kind: str | None, flags: int, options: str = ''
) -> None:
  linux.call(
    'mount',
    source.encode(),
    target.encode(),
    kind and kind.encode(),
    ctypes.c_ulong(flags),
    options.encode(),
  )


def _protect(path: str, attributes: int, flags: int) -> None:
  # Unlike a remount, this reaches the mounts below as well (Linux 5.12).
  request = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
  linux.syscall(
    'mount_setattr',
    _SET_ATTRIBUTES,
    -100,
    path.encode(),
    flags,
    ctypes.byref(request),
    ctypes.c_size_t(ctypes.sizeof(request)),
  )
