"""The filter of system calls, on machines that are not at hand as well."""

import pathlib
import sys

import pytest

from me_jax.sandbox import plan

_READ = {'x86_64': 0, 'aarch64': 63}
_ARCHITECTURE = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
_ALLOW, _REFUSE, _UNKNOWN, _KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
_OWN = 77


@pytest.fixture
def syscalls(monkeypatch):
  """The module as the child imports it."""
  if sys.platform != 'linux':
    pytest.skip('Linux only')
  monkeypatch.syspath_prepend(
    str(pathlib.Path(plan.__file__).parent / 'inside')
  )
  import syscalls

  yield syscalls
  for name in ('syscalls', 'linux'):
    del sys.modules[name]


def _decision(code, machine, number, *arguments) -> int:
  # What the kernel does: linux/filter.h, for the instructions that are used.
  data = {0: number, 4: _ARCHITECTURE[machine]}
  data |= {16 + 8 * i: value for i, value in enumerate(arguments)}
  tests = {
    0x15: lambda a, k: a == k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: a & k != 0,
  }
  at = loaded = 0
  while True:
    instruction, if_true, if_false, operand = code[at]
    at += 1
    if instruction == 0x20:
      loaded = data[operand] & 0xFFFFFFFF
    elif instruction == 0x06:
      return operand
    else:
      at += if_true if tests[instruction](loaded, operand) else if_false


@pytest.mark.parametrize('machine', ['x86_64', 'aarch64'])
def test_decisions(syscalls, machine):
  code = syscalls._filter(machine, _OWN)
  column = list(_ARCHITECTURE).index(machine)

  def decide(numbers, *arguments):
    return _decision(code, machine, numbers[column], *arguments)

  assert _decision(code, machine, _READ[machine], 0, 0, 0) == _ALLOW
  for name, numbers in syscalls._REFUSED.items():
    if numbers[column] is not None:
      assert decide(numbers, 0, 0) == _REFUSE, name
  thread, process = 0x3D0F00, 0x1200011
  assert decide(syscalls._CLONE, thread) == _ALLOW
  assert decide(syscalls._CLONE, process) == _REFUSE
  assert decide(syscalls._CLONE3) == _UNKNOWN
  kill = syscalls._ONLY_SELF['kill']
  assert decide(kill, _OWN, 9) == _ALLOW
  for target in (_OWN + 1, 0, -1):
    assert decide(kill, target, 9) == _REFUSE
  assert decide(syscalls._PRLIMIT, 0) == _ALLOW
  assert decide(syscalls._PRLIMIT, _OWN + 1) == _REFUSE
  fcntl, commands = syscalls._REFUSED_COMMANDS['fcntl']
  assert decide(fcntl, 3, 1) == _ALLOW
  assert [decide(fcntl, 3, c) for c in commands] == [_REFUSE] * 3
  assert _decision(code, machine, 463) == _UNKNOWN
  assert _decision(code, machine, 0x40000000) == _REFUSE
  other = {'x86_64': 'aarch64', 'aarch64': 'x86_64'}[machine]
  assert _decision(code, other, _READ[machine]) == _KILL


def test_numbers_are_those_of_the_headers(syscalls):
  header = pathlib.Path('/usr/include/x86_64-linux-gnu/asm/unistd_64.h')
  generic = pathlib.Path('/usr/include/asm-generic/unistd.h')
  if not header.exists() or not generic.exists():
    pytest.skip('no kernel headers')
  checked = 0
  for column, path in enumerate((header, generic)):
    found = {}
    for line in path.read_text().splitlines():
      match line.split():
        case ['#define', name, number] if number.isdigit():
          found[name.replace('__NR3264_', '__NR_')] = int(number)
    for name, numbers in syscalls._REFUSED.items():
      # Headers older than the call do not have it.
      if f'__NR_{name}' in found:
        assert found[f'__NR_{name}'] == numbers[column], name
        checked += 1
  assert checked > 100
