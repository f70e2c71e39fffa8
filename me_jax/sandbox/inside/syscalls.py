"""A filter on the system calls of the calling process (seccomp).

It leaves a program that computes, reads, writes and makes threads alone, and
refuses, with "operation not permitted", what would let it make processes,
reach processes of the same user, open sockets, allocate memory that no limit
counts, change owners and modes, or use the large interfaces of the kernel.
What needs privileges is not listed: the program has none.

The numbers are those of Linux's `asm/unistd_64.h` and `asm-generic/unistd.h`;
the layout of the filter is that of `linux/filter.h` and `linux/seccomp.h`.
"""

import ctypes
import os

import linux

# Name: (number on x86_64, number on aarch64); None where there is no such call.
_REFUSED = {
  # New processes and programs. Threads are `clone` and stay allowed.
  'fork': (57, None),
  'vfork': (58, None),
  'execve': (59, 221),
  'execveat': (322, 281),
  # Other processes of the same user.
  'rt_sigqueueinfo': (129, 138),
  'rt_tgsigqueueinfo': (297, 240),
  'pidfd_open': (434, 434),
  'pidfd_send_signal': (424, 424),
  'pidfd_getfd': (438, 438),
  'ptrace': (101, 117),
  'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271),
  'process_madvise': (440, 440),
  'kcmp': (312, 272),
  'setpriority': (141, 140),
  'ioprio_set': (251, 30),
  'sched_setaffinity': (203, 122),
  'sched_setscheduler': (144, 119),
  'sched_setparam': (142, 118),
  'sched_setattr': (314, 274),
  'migrate_pages': (256, 238),
  'move_pages': (279, 239),
  # Leaving the process group, or what was set up for this process.
  'setsid': (112, 157),
  'setpgid': (109, 154),
  'prctl': (157, 167),
  'seccomp': (317, 277),
  'personality': (135, 92),
  'unshare': (272, 97),
  'setns': (308, 268),
  'mount': (165, 40),
  'umount2': (166, 39),
  'pivot_root': (155, 41),
  'chroot': (161, 51),
  'mount_setattr': (442, 442),
  'open_tree': (428, 428),
  'move_mount': (429, 429),
  'fsopen': (430, 430),
  'fsconfig': (431, 431),
  'fsmount': (432, 432),
  'fspick': (433, 433),
  # The network. Pairs of connected sockets stay allowed.
  'socket': (41, 198),
  'connect': (42, 203),
  'bind': (49, 200),
  'listen': (50, 201),
  'accept': (43, 202),
  'accept4': (288, 242),
  # Memory outside the address space.
  'shmget': (29, 194),
  'shmat': (30, 196),
  'semget': (64, 190),
  'msgget': (68, 186),
  'mq_open': (240, 180),
  'memfd_create': (319, 279),
  'memfd_secret': (447, 447),
  # Large and rarely needed.
  'bpf': (321, 280),
  'perf_event_open': (298, 241),
  'userfaultfd': (323, 282),
  'io_uring_setup': (425, 425),
  'io_uring_enter': (426, 426),
  'io_uring_register': (427, 427),
  'add_key': (248, 217),
  'request_key': (249, 218),
  'keyctl': (250, 219),
  # What Landlock does not cover.
  'chmod': (90, None),
  'fchmod': (91, 52),
  'fchmodat': (268, 53),
  'fchmodat2': (452, 452),
  'chown': (92, None),
  'fchown': (93, 55),
  'lchown': (94, None),
  'fchownat': (260, 54),
  'setxattr': (188, 5),
  'lsetxattr': (189, 6),
  'fsetxattr': (190, 7),
  'removexattr': (197, 14),
  'lremovexattr': (198, 15),
  'fremovexattr': (199, 16),
  'utime': (132, None),
  'utimes': (235, None),
  'futimesat': (261, None),
  'utimensat': (280, 88),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
# Allowed only for the calling process itself: argument 0 is its number.
_ONLY_SELF = {
  'kill': (62, 129),
  'tgkill': (234, 131),
}
_TKILL, _PRLIMIT = (200, 130), (302, 261)
# Allowed but for these values of argument 1, by which a process can have
# signals sent to another one.
_REFUSED_COMMANDS = {
  'fcntl': ((72, 25), (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
  'ioctl': ((16, 29), (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP
}
# Calls added to the kernel after this table was written "do not exist".
_LAST_KNOWN = 462
_X32 = 0x40000000
_AUDIT_NAMES = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERROR = 0x80000000, 0x7FFF0000, 0x00050000
_NO_PERMISSION, _NO_SUCH_CALL = 1, 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x10000


class _Instruction(ctypes.Structure):
  _fields_ = [
    ('code', ctypes.c_uint16),
    ('if_true', ctypes.c_uint8),
    ('if_false', ctypes.c_uint8),
    ('operand', ctypes.c_uint32),
  ]


class _Program(ctypes.Structure):
  _fields_ = [
    ('length', ctypes.c_uint16),
    ('instructions', ctypes.POINTER(_Instruction)),
  ]


def supported() -> bool:
  """Whether the numbers of this machine's system calls are known here."""
  return (
    os.uname().machine in _AUDIT_NAMES and ctypes.sizeof(ctypes.c_void_p) == 8
  )


def install_filter() -> None:
  """Puts the filter on this process for good. Raises OSError."""
  instructions = _filter(os.uname().machine, os.getpid())
  array = (_Instruction * len(instructions))(*instructions)
  program = _Program(len(instructions), array)
  set_seccomp, mode_filter = 22, 2
  linux.call('prctl', set_seccomp, mode_filter, ctypes.byref(program), 0, 0)


def _filter(machine: str, own: int) -> list[tuple[int, int, int, int]]:
  column = list(_AUDIT_NAMES).index(machine)
  refuse = (_RETURN, 0, 0, _ERROR | _NO_PERMISSION)
  unknown = (_RETURN, 0, 0, _ERROR | _NO_SUCH_CALL)
  allow = (_RETURN, 0, 0, _ALLOW)
  load = (_LOAD, 0, 0, _NUMBER)

  def argument(index: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)

  def when(number: int, *block: tuple) -> list[tuple]:
    return [(_EQUAL, 0, len(block), number), *block]

  code = [
    (_LOAD, 0, 0, _ARCHITECTURE),
    (_EQUAL, 1, 0, _AUDIT_NAMES[machine]),
    (_RETURN, 0, 0, _KILL),
    load,
    (_AT_LEAST, 0, 1, _X32),
    refuse,
    (_AT_LEAST, 0, 1, _LAST_KNOWN + 1),
    unknown,
    # Told that it is missing, the C library takes `clone`, whose flags a
    # filter can see.
    *when(_CLONE3[column], unknown),
    *when(
      _CLONE[column],
      argument(0),
      (_ANY_BIT, 0, 1, _CLONE_THREAD),
      allow,
      refuse,
    ),
    *when(_TKILL[column], refuse),
    *when(_PRLIMIT[column], argument(0), (_EQUAL, 0, 1, 0), allow, refuse),
  ]
  for numbers in _ONLY_SELF.values():
    code += when(
      numbers[column], argument(0), (_EQUAL, 0, 1, own), allow, refuse
    )
  for numbers, values in _REFUSED_COMMANDS.values():
    tests = [i for v in values for i in ((_EQUAL, 0, 1, v), refuse)]
    code += when(numbers[column], argument(1), *tests, allow)
  for numbers in _REFUSED.values():
    if numbers[column] is not None:
      code += when(numbers[column], refuse)
  return [*code, allow]
