"""Hostile programs: none passes, outlives its deadline or changes anything.

Each is written so that its test would hold only if the attack worked.
"""

import functools
import os
import pathlib
import secrets
import socket
import tempfile
import time

import pytest

from me_jax.sandbox import plan, process
from me_jax.sandbox.execute import Sandbox

_TIMEOUT_S = 0.4
_GRACE_S = 5.0  # On a busy machine.
_FOUR = 'assert f(2) == 4'

# Of the machine, with what is filled in per run: SECRET stands in the test and
# in a file outside, OUTSIDE is that file's folder, PORT is open on this
# machine, PARENT is this process.
_RESOURCES = {
  'fork bomb': """
import os
while True:
  try:
    os.fork()
  except OSError:
    pass
""",
  'thread bomb': """
import threading, time
while True:
  try:
    threading.Thread(target=time.sleep, args=(60,)).start()
  except RuntimeError:
    pass
""",
  'memory bomb': """
blocks = []
while True:
  blocks.append(bytearray(1 << 24))
""",
  'one huge string': "f = lambda x: len('x' * (1 << 36)) - (1 << 36) + 4",
  'decompression bomb': """
import zlib
data = zlib.compress(bytes(1 << 26))
f = lambda x: 4 * len([zlib.decompress(data) for _ in range(100)]) // 100
""",
  'memory that no limit counts': """
import os
pieces = []
for i in range(40):
  pieces.append(os.memfd_create(str(i)))
  os.ftruncate(pieces[-1], 1 << 24)
  os.posix_fallocate(pieces[-1], 0, 1 << 24)
f = lambda x: 4
""",
  'huge sparse file': """
with open('sparse', 'wb') as file:
  file.truncate(1 << 40)
f = lambda x: 4
""",
  'ten thousand open files': """
files = [open('many', 'w') for _ in range(10000)]
f = lambda x: 4
""",
  'deeply nested folders': """
import os
while True:
  os.mkdir('x' * 200)
  os.chdir('x' * 200)
""",
  'infinite loop': 'while True: pass',
  'sleep': 'import time; time.sleep(60)',
  'endless sleep in the test': """
def f(x):
  import time
  time.sleep(60)
  return 4
""",
  'catastrophic regular expression': """
import re
f = lambda x: re.match('(a+)+$', 'a' * 60 + 'b') or 4
""",
  'huge power': 'f = lambda x: 4 + 0 * 9 ** 9 ** 9',
  'recursion bomb': """
import sys
sys.setrecursionlimit(10 ** 9)
f = lambda x: f(x) + f(x)
""",
  'deeply nested source': '(' * 100000 + ')' * 100000,
  'huge output': """
import sys
while True:
  print('x' * 100000)
  print('x' * 100000, file=sys.stderr)
""",
  'huge result': 'f = lambda x: [4] * (10 ** 7)',
  'result that never ends': """
class Numbers(list):
  def __iter__(self):
    while True:
      yield 4
f = lambda x: Numbers([3])
""",
  'result within itself': """
def f(x):
  result = [4]
  result.append(result)
  return result
""",
  'colliding hashes': 'f = lambda x: {i * (2 ** 61 - 1) for i in range(8000)}',
  'exception that takes forever to print': """
class Slow(Exception):
  def __str__(self):
    while True:
      pass
raise Slow
""",
}

_CLINGING = {
  'ignored signals': """
import signal
for number in range(1, 65):
  try:
    signal.signal(number, signal.SIG_IGN)
  except (OSError, ValueError):
    pass
while True:
  pass
""",
  'cancelled alarm': """
import signal
signal.alarm(0)
signal.setitimer(signal.ITIMER_REAL, 0)
while True:
  try:
    while True:
      pass
  except BaseException:
    pass
""",
  'double fork and detach': """
import os, time
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    time.sleep(60)
  os._exit(0)
os.wait()
def f(x):
  return 4
time.sleep(60)
""",
  'detached subprocess': """
import subprocess, sys
subprocess.Popen(
  [sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True
)
f = lambda x: 4
""",
  'multiprocessing': """
import multiprocessing, time
for method in ('fork', 'spawn'):
  context = multiprocessing.get_context(method)
  context.Process(target=time.sleep, args=(60,)).start()
f = lambda x: 4
""",
  'threads that go on': """
import threading
def work():
  while True:
    pass
for _ in range(3):
  threading.Thread(target=work).start()
f = lambda x: 5
""",
  'a new process group': """
import os
os.setpgid(0, 0)
f = lambda x: 4
""",
  'raised limits': """
import resource
top = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_AS, (top, top))
f = lambda x: 4
""",
  'raised limits of the parent': """
import resource
resource.prlimit(PARENT, resource.RLIMIT_CPU, (1, 1))
f = lambda x: 4
""",
  'all descriptors closed': """
import os
os.closerange(0, 1000)
while True:
  pass
""",
}

_REACHING_OUT = {
  'reading /etc/passwd': "f = lambda: open('/etc/passwd').read()",
  'listing the home folder': """
import os
f = lambda: sorted(os.listdir('HOME'))
""",
  'reading a file outside': "f = lambda: open('OUTSIDE/secret').read()",
  'reading it over a symlink': """
import os
os.symlink('OUTSIDE/secret', 'link')
f = lambda: open('link').read()
""",
  'reading it over a hard link': """
import os
os.link('OUTSIDE/secret', 'link')
f = lambda: open('link').read()
""",
  'reading it from the old root': """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir('new')
libc.chroot(b'new')
for _ in range(50):
  os.chdir('..')
libc.chroot(b'.')
f = lambda: open('OUTSIDE/secret').read()
""",
  'environment': "import os; f = lambda: os.environ['PATH']",
  'environment in memory': """
import ctypes
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
def f():
  found, i = {}, 0
  while environ[i]:
    name, _, value = environ[i].decode().partition('=')
    found[name] = value
    i += 1
  return found['PATH']
""",
  'environment of the parent': """
def f():
  with open('/proc/PARENT/environ') as file:
    text = file.read()
  return dict(p.split('=', 1) for p in text.split(chr(0)) if p)['PATH']
""",
  'writing outside': """
open('OUTSIDE/new', 'w').write('x')
f = lambda x: 4
""",
  'overwriting a file outside': """
open('OUTSIDE/secret', 'r+').write('x')
f = lambda x: 4
""",
  'emptying a file outside': """
import os
os.truncate('OUTSIDE/secret', 0)
f = lambda x: 4
""",
  'deleting a file outside': """
import os
os.remove('OUTSIDE/secret')
f = lambda x: 4
""",
  'deleting by shell': """
import os
status = os.system('rm -rf OUTSIDE')
f = lambda x: 4 if status == 0 else 5
""",
  'changing modes outside': """
import os
os.chmod('OUTSIDE/secret', 0)
f = lambda x: 4
""",
  'moving a folder outside': """
import os
os.rename('OUTSIDE', 'OUTSIDE-moved')
f = lambda x: 4
""",
  'writing over a symlink': """
import os
os.symlink('OUTSIDE', 'link')
open('link/new', 'w').write('x')
f = lambda x: 4
""",
  'deleting its own files': """
import os, shutil, sys
shutil.rmtree(os.getcwd(), ignore_errors=True)
os.remove(sys.modules['__main__'].__file__)
f = lambda x: 4
""",
  'changing the interpreter': """
import os
open(os.__file__, 'a').write('#')
f = lambda x: 4
""",
  'a socket to this machine': """
import socket
socket.create_connection(('127.0.0.1', PORT), timeout=0.3)
f = lambda x: 4
""",
  'a datagram': """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'x', ('127.0.0.1', PORT))
f = lambda x: 4
""",
  'a server': """
import socket
socket.create_server(('127.0.0.1', 0))
f = lambda x: 4
""",
  'killing the parent': """
import os
os.kill(PARENT, 9)
f = lambda x: 4
""",
  'killing everybody over ctypes': """
import ctypes
done = ctypes.CDLL(None).kill(-1, 9)
f = lambda x: 4 if done == 0 else 5
""",
  'a signal by way of a descriptor': """
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, fcntl.F_SETSIG, 9)
fcntl.fcntl(r, fcntl.F_SETOWN, PARENT)
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
os.write(w, b'x')
f = lambda x: 4
""",
  'tracing the parent': """
import ctypes
done = ctypes.CDLL(None).ptrace(16, PARENT, 0, 0)
f = lambda x: 4 if done == 0 else 5
""",
  'mounting and new namespaces over ctypes': """
import ctypes
libc = ctypes.CDLL(None)
done = libc.unshare(0x10000000), libc.mount(b'none', b'/', None, 32, None)
f = lambda x: 4 if 0 in done else 5
""",
  'execv of true': "import os; os.execv('/bin/true', ['true'])",
  'execv of Python that prints': """
import os, sys
print_all = 'import os\\nfor d in range(64):\\n  try: os.write(d, b"4")\\n'
print_all += '  except OSError: pass'
os.execv(sys.executable, [sys.executable, '-c', print_all])
""",
}

_FORGERY = {
  'os._exit(0)': 'import os; os._exit(0)',
  'exit(0)': 'exit(0)',
  'raise SystemExit': 'raise SystemExit(0)',
  'sys.exit in the test': 'import sys; f = lambda x: sys.exit(0)',
  'exit while an exception is printed': """
import os
class Leave(Exception):
  def __str__(self):
    os._exit(0)
raise Leave
""",
  'exit hooks': """
import atexit, sys
@atexit.register
def last():
  print('pass')
  while True:
    pass
sys.exit(0)
""",
  'equal to everything': """
class Equal:
  __eq__ = lambda self, other: True
  __ne__ = lambda self, other: False
  __bool__ = lambda self: True
  __hash__ = lambda self: 4
f = lambda x: Equal()
""",
  'a number equal to everything': """
class Equal(int):
  __eq__ = lambda self, other: True
  __int__ = __index__ = lambda self: 4
  __repr__ = __str__ = lambda self: '4'
  __format__ = lambda self, spec: '4'
  __hash__ = int.__hash__
f = lambda x: Equal(5)
""",
  'an object that claims to be a number': """
class Liar:
  __class__ = int
  __eq__ = lambda self, other: True
f = lambda x: Liar()
""",
  'a class equal to everything': """
class Meta(type):
  __eq__ = lambda self, other: True
  __hash__ = type.__hash__
  __instancecheck__ = __subclasscheck__ = lambda self, other: True
  __mro__ = (int, object)
class Equal(metaclass=Meta):
  pass
f = lambda x: Equal
""",
  'comparison that gives a third thing': """
class Third:
  __eq__ = lambda self, other: self
  __bool__ = lambda self: True
f = lambda x: Third()
""",
  'patched AssertionError': """
import builtins
class Ignored(BaseException):
  pass
builtins.AssertionError = AssertionError = Ignored
f = lambda x: 5
""",
  'patched built-ins': """
import builtins
def always(*args, **kwargs):
  return True
for name in ('print', 'exec', 'eval', 'compile', 'type', 'isinstance', 'repr',
             'issubclass', 'len', 'str', 'int', 'bool', 'bytes', 'set'):
  setattr(builtins, name, always)
f = lambda x: 5
""",
  'patched modules': """
import os, sys, types
for module in list(sys.modules):
  if module not in ('sys', 'builtins', 'os'):
    sys.modules[module] = types.ModuleType(module)
os.write = lambda *a: len(a[-1])
os._exit = lambda *a: None
f = lambda x: 5
""",
  'printing a guessed token': """
import os
for text in ('["token",""]', '["token","' + '0' * 32 + '"]', 'pass', '4'):
  data = len(text).to_bytes(4, 'big') + text.encode()
  print(text)
  for descriptor in range(64):
    try:
      os.write(descriptor, data)
    except OSError:
      pass
os._exit(0)
""",
  'garbage to every descriptor': """
import os
while True:
  for descriptor in range(64):
    try:
      os.write(descriptor, b'x' * 100000)
    except OSError:
      pass
""",
  'trace function': """
import sys
def trace(frame, event, argument):
  for name in list(frame.f_locals):
    frame.f_locals[name] = True
  return trace
sys.settrace(trace)
sys.setprofile(trace)
f = lambda x: 5
""",
  'rewriting the functions of the harness': """
import gc, types
def always(*args, **kwargs):
  return 'true'
for thing in gc.get_objects():
  if isinstance(thing, types.FunctionType):
    if thing.__name__ in ('encode', '_write', '_raised', 'send', 'receive'):
      if not thing.__closure__:
        thing.__code__ = always.__code__
f = lambda x: 5
""",
  'standard input': 'import sys; f = lambda x: len(sys.stdin.read()) + 4',
  'input()': "f = lambda x: 4 if input() == '' else 5",
  'segmentation fault': 'import ctypes; ctypes.string_at(0)',
  'abort': 'import os; os.abort()',
  'asserts swallowed by a condition': 'f = lambda x: 5\nif False: \\',
  'asserts swallowed by a string': 'f = lambda x: 5\n"""',
  'asserts swallowed by a bracket': 'f = lambda x: 5\n(',
  'null bytes': 'f = lambda x: 5\0',
  'exit in a destructor': """
import os
class Last:
  def __del__(self):
    os._exit(0)
def f(x):
  Last()
  return 4
""",
}

# Looks everywhere for what the test expects.
_SEARCH = """
import gc, os, sys
def texts():
  frame = sys._getframe()
  while frame:
    yield from map(repr, frame.f_locals.values())
    yield from map(repr, frame.f_globals.values())
    yield repr(frame.f_code.co_consts)
    frame = frame.f_back
  for thing in gc.get_objects():
    if isinstance(thing, (list, tuple, dict, set)):
      yield repr(thing)[:100000]
    elif hasattr(thing, '__dict__'):
      yield repr(vars(thing))[:100000]
  yield repr(sys.argv) + repr(sys.orig_argv) + repr(dict(os.environ))
  for path in ('/proc/self/cmdline', '/proc/self/environ', '/proc/self/maps',
               sys.modules['__main__'].__file__, '/proc/PARENT/cmdline'):
    try:
      yield open(path, errors='replace').read()
    except OSError:
      pass
def pipes():
  for descriptor in range(64):
    try:
      os.set_blocking(descriptor, False)
      yield repr(os.read(descriptor, 1 << 16))
    except OSError:
      pass
def f():
  for source in (texts, pipes):
    for text in source():
      # Not written in one piece, so as not to find this program.
      at = text.find('the answer' + ' is ')
      if at >= 0:
        return text[at : at + 46]
"""

# Speaks the language of the pipes, without knowing the answer.
_SPEAKER = """
import json, marshal, os
def reply(*message):
  data = json.dumps(message).encode()
  for descriptor in range(3, 8):
    try:
      os.write(descriptor, len(data).to_bytes(4, 'big') + data)
    except OSError:
      pass
reply('defined')
while True:
  for descriptor in range(3, 8):
    try:
      data = os.read(descriptor, 1 << 16)
    except OSError:
      continue
    if data:
      verb, *rest = marshal.loads(data[4:])
      reply(verb, rest[0] if verb == 'token' else 'the answer is yes')
"""


def _alive(marker: str) -> list[str]:
  # The commands of living processes that name `marker`.
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      command = path.read_bytes().replace(b'\0', b' ').decode(errors='replace')
    except OSError:
      continue
    if marker in command:
      found.append(command)
  return found


def _snapshot(folder: pathlib.Path) -> dict:
  return {
    path: (path.stat().st_mode, path.stat().st_mtime_ns, path.is_file())
    + ((path.read_bytes(),) if path.is_file() else ())
    for path in [folder, *folder.rglob('*')]
  }


class _Place:
  """A sandbox of one kind, and something outside worth attacking."""

  def __init__(self, kind: str, root: pathlib.Path):
    self.sandbox = Sandbox(
      timeout_s=_TIMEOUT_S, memory_bytes=1 << 28, isolation=kind
    )
    self.kind, self.temporary = kind, root / 'temporary'
    self.secret = f'the answer is {secrets.token_hex(16)}'
    self.outside = root / 'outside'
    self.outside.mkdir()
    (self.outside / 'secret').write_text(self.secret)
    # Open to everybody: it is the walls that must protect it.
    self.outside.chmod(0o777)
    (self.outside / 'secret').chmod(0o666)
    self.server = socket.create_server(('127.0.0.1', 0))

  def attack(self, program: str, test: str = _FOUR):
    """The outcome, after a look at what the program left behind."""
    for name, value in (
      ('OUTSIDE', self.outside),
      ('PORT', self.server.getsockname()[1]),
      ('PARENT', os.getpid()),
      ('HOME', pathlib.Path.home()),
    ):
      program = program.replace(name, str(value))
    before, start = _snapshot(self.outside), time.monotonic()
    ended = []
    remove = process.remove

    def remove_later(folder):
      # Removing its files comes after its end and takes as long as the disk
      # wants.
      ended.append(time.monotonic())
      assert not _alive(str(self.temporary))
      remove(folder)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(process, 'remove', remove_later)
      outcome = self.sandbox.run(program, [test])
    assert ended[0] - start < _TIMEOUT_S + _GRACE_S
    assert not _alive(str(self.temporary))
    assert not list(self.temporary.iterdir())
    assert _snapshot(self.outside) == before
    honest = self.sandbox.run('f = lambda x: x * x', [_FOUR])
    assert honest.category == 'pass', honest
    return outcome


@functools.cache
def _kinds() -> list[str]:
  # Those that this machine has.
  found = []
  for kind in plan.KINDS:
    try:
      Sandbox(timeout_s=_TIMEOUT_S, isolation=kind)
    except RuntimeError:
      continue
    found.append(kind)
  return found


def pytest_generate_tests(metafunc):
  """Runs each attack against each kind of sandbox."""
  if 'place' in metafunc.fixturenames:
    metafunc.parametrize('place', _kinds(), indirect=True, scope='module')


@pytest.fixture(scope='module')
def place(request):
  """A sandbox of the kind asked for, and its surroundings."""
  with tempfile.TemporaryDirectory(prefix='me_jax_hostile_') as folder:
    root = pathlib.Path(folder)
    root.chmod(0o755)
    (root / 'temporary').mkdir()
    with pytest.MonkeyPatch.context() as patch:
      # Every command line then names this folder.
      patch.setattr(tempfile, 'tempdir', str(root / 'temporary'))
      place = _Place(request.param, root)
      yield place
      place.server.close()


def _parameters(programs):
  return pytest.mark.parametrize(
    'program', list(programs.values()), ids=list(programs)
  )


@_parameters(_RESOURCES)
def test_takes_no_more_than_its_share(place, program):
  assert place.attack(program).category != 'pass'


@_parameters(_CLINGING)
def test_does_not_outlive_its_deadline(place, program):
  assert place.attack(program).category != 'pass'


@_parameters(_FORGERY)
def test_does_not_pass_by_a_trick(place, program):
  assert place.attack(program).category != 'pass'


@_parameters(_REACHING_OUT)
def test_reaches_nothing_outside(place, program):
  expected = 4
  if 'passwd' in program:
    expected = pathlib.Path('/etc/passwd').read_text()
  elif 'HOME' in program:
    expected = sorted(os.listdir(pathlib.Path.home()))
  elif "['PATH']" in program:
    expected = os.environ['PATH']
  elif 'secret' in program and 'lambda:' in program:
    expected = place.secret
  call = 'f(2)' if expected == 4 else 'f()'
  outcome = place.attack(program, f'assert {call} == {expected!r}')
  assert outcome.category != 'pass'


def test_disk_filler(place):
  if 'disk space' in place.sandbox.walls.down:
    pytest.skip('only the size of one file is limited here')
  program = """
import itertools
for i in itertools.count():
  with open(str(i), 'wb') as file:
    file.write(bytes(1 << 20))
"""
  outcome = place.attack(program)
  assert outcome.category == 'failed'
  assert 'No space left' in outcome.detail


def test_many_small_files(place):
  if 'disk space' in place.sandbox.walls.down:
    pytest.skip('only the size of one file is limited here')
  program = """
import itertools
for i in itertools.count():
  open(str(i), 'w').close()
"""
  assert place.attack(program).category != 'pass'


@_parameters({'search': _SEARCH, 'speaker': _SPEAKER})
def test_does_not_find_the_answer(place, program):
  outcome = place.attack(program, f'assert f() == {place.secret!r}')
  assert outcome.category != 'pass'


@pytest.mark.parametrize(
  ('program', 'test'),
  [
    ('f = lambda x: 0\nset = lambda x: 0', 'assert f(1) == set([1, 2])'),
    ('f = lambda x: 0\nsorted = abs', 'assert f(1) == sorted([1, 2])'),
    (_FORGERY['equal to everything'], 'assert f(1) in (1, 2)'),
    (_FORGERY['equal to everything'], 'assert 4 == f(1)'),
    (_FORGERY['equal to everything'], 'assert f(1) == 2 and f(2) == 4'),
    (_FORGERY['equal to everything'], 'assert not f(1) != 2'),
    (_FORGERY['equal to everything'], 'assert [f(1)] == [2]'),
    (_FORGERY['equal to everything'], 'assert f(1)'),
    ('f = lambda x: 5', 'assert f(1) == 4, (lambda: 1)()'),
  ],
)
def test_other_shapes_of_test(place, program, test):
  assert place.attack(program, test).category != 'pass'


def test_pass_does_not_spare_what_goes_on(place):
  # It gave the right answer, so it passes: and is ended all the same.
  program = """
import atexit, threading
def work():
  while True:
    pass
threading.Thread(target=work).start()
atexit.register(work)
f = lambda x: 4
"""
  assert place.attack(program).category == 'pass'


def test_the_strongest_kind_is_taken():
  assert Sandbox(timeout_s=_TIMEOUT_S).walls.kind == _kinds()[0]
