"""What becomes of honest programs, and of a machine without walls."""

import collections
import concurrent.futures
import dataclasses
import json
import marshal
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from me_jax.sandbox import checks, plan, process, walls
from me_jax.sandbox.execute import Sandbox
from me_jax.sandbox.inside import plain


@pytest.fixture(scope='module')
def sandbox():
  return Sandbox(timeout_s=1.0)


def _run(sandbox, program, *tests):
  return sandbox.run(program, list(tests or ['assert f(2) == 4']))


@pytest.mark.parametrize(
  ('program', 'category', 'detail'),
  [
    ('f = lambda x: x * x', 'pass', ''),
    ('f = lambda x: x', 'wrong_answer', 'AssertionError: assert f(2) == 4'),
    ('def f(x):\n  assert x > 2, "small"', 'wrong_answer', 'small'),
    ('class E(AssertionError): pass\nraise E', 'wrong_answer', 'E'),
    ('while True: pass', 'timeout', 'not done after 1 s'),
    ('f = lambda x: x / 0', 'failed', 'ZeroDivisionError: division by zero'),
    ('', 'failed', "NameError: name 'f' is not defined"),
    ('def f(x):\nreturn 4', 'failed', 'IndentationError: '),
    ('f = lambda x: exit()', 'failed', ''),
    ('raise SystemExit', 'failed', 'SystemExit'),
    ('import jax', 'failed', "ModuleNotFoundError: No module named 'jax'"),
    ('import numpy', 'failed', "ModuleNotFoundError: No module named 'numpy'"),
    ('import session', 'failed', "ModuleNotFoundError: No module named 'sess"),
    ("raise ValueError('one\\ntwo')", 'failed', 'two'),
    ("raise ValueError('\\x1b[31m')", 'failed', 'ValueError: ?[31m'),
    ('f = "\ud800"', 'failed', 'UnicodeEncodeError'),
  ],
)
def test_category_and_detail(sandbox, program, category, detail):
  outcome = _run(sandbox, program)
  assert outcome.category == category
  assert detail in outcome.detail
  assert (outcome.detail == '') == (category == 'pass')


def test_detail_is_cut(sandbox):
  outcome = _run(sandbox, "raise ValueError('x' * 5000)")
  assert outcome.detail == 'ValueError: ' + 'x' * 188


@pytest.mark.parametrize(
  ('result', 'test'),
  [
    ('None', 'assert f() == None'),
    ('True', 'assert f() == 1'),
    ('1.0', 'assert f() == 1'),
    ('0.1 + 0.2', 'assert f() == 0.30000000000000004'),
    ("float('inf')", 'assert f() > 1e308'),
    ('1 - 2j', 'assert f() == 1 - 2j'),
    ('-(7 ** 300)', f'assert f() == -{7**300}'),
    ('10 ** 5000', 'assert f() > 1'),
    ("'\u00e9\U0001f600\\ud800'", "assert f() == '\\u00e9\\U0001f600\\ud800'"),
    ("b'a\\x00'", "assert f() == b'a\\x00'"),
    ("bytearray(b'a')", "assert f() == b'a'"),
    ('[1, (2, [3])]', 'assert f() == [1, (2, [3])]'),
    ('[]', 'assert f() == []'),
    ('{1, (2, 3)}', 'assert f() == {(2, 3), 1}'),
    ('frozenset({1})', 'assert f() == {1}'),
    ('{1: [2], None: {}}', 'assert f() == {None: {}, 1: [2]}'),
    ("collections.Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
    ('collections.defaultdict(int, a=1)', "assert f() == {'a': 1}"),
    ('collections.OrderedDict(b=1, a=2)', "assert f() == {'a': 2, 'b': 1}"),
    ("collections.namedtuple('P', 'x y')(1, 2)", 'assert f() == (1, 2)'),
    ('collections.deque([1])', 'assert f() == collections.deque([1])'),
    ("enum.IntEnum('E', 'A').A", 'assert f() == 1'),
    ('fractions.Fraction(1, 2)', 'assert f() == 0.5'),
    ("decimal.Decimal('2.50')", 'assert f() == 2.5'),
    ('{1: 2}.keys()', 'assert f() == {1}'),
    ('{1: 2}.items()', 'assert f() == {(1, 2)}'),
    ('range(3)', 'assert f() == range(3)'),
    ('(1, 2)', 'assert f() == tuple([1, 2])'),
    ('{1, 2}', 'assert f() == set([1, 2])'),
    ('list(map(str, [1]))', "assert f() == ['1']"),
    ('3', 'assert sys.getsizeof(f()) == sys.getsizeof(4)'),
    ("re.match('a', 'a')", 'assert f()'),
    ("re.match('a', 'b')", 'assert f() is None'),
    ('1', 'assert f() is not None'),
    ('sys', 'assert f() is sys'),
    ('[1, 2]', 'assert 2 in f() and 3 not in f()'),
    ('2', 'assert f() in (1, 2)'),
    ('2', 'assert 1 < f() <= 2 != 3'),
    ('0', 'assert not f() or f() == 1'),
    ('2', 'assert f() == 2, f(1, 2, 3)'),
    ('2', 'assert (f() ==\n  # two\n  2)'),
    ('2', 'assert [f(),  # two\n  2] == [2, 2]'),
    ('2', 'g = f\nassert g() == 2'),
    ('2', 'assert (y := f()) == 2\nassert y == 2'),
  ],
)
def test_honest_values_pass(sandbox, result, test):
  program = (
    'import collections, decimal, enum, fractions, re, sys\n'
    f'def f():\n  return {result}'
  )
  assert _run(sandbox, program, test).category == 'pass'
  # The same by Python's own rules.
  scope: dict = {}
  exec(f'{program}\n{test}', scope)


@pytest.mark.parametrize(
  ('result', 'test'),
  [
    ('[1]', 'assert f() == (1,)'),
    ('1', "assert f() == '1'"),
    ('map(str, [1])', "assert f() == ['1']"),
    ('{1: 2}.values()', 'assert f() == [2]'),
    ('[1]', 'assert f() != [1]'),
    ('2', 'assert 2 < f() < 4'),
    ("float('nan')", 'assert f() == 0'),
    ('object()', 'assert f() == object'),
    ('[0] * 10 ** 6', 'assert f() == [0]'),
  ],
)
def test_wrong_values_do_not(sandbox, result, test):
  program = f'def f():\n  return {result}'
  assert _run(sandbox, program, test).category == 'wrong_answer'


def test_a_long_range_is_not_searched_through(sandbox):
  """Python would, for what is no int, and the parent has no deadline."""
  tests = ["assert 'a' not in f()", 'assert 2.0 in f() and 2.5 not in f()']
  program = 'f = lambda: range(10**18)'
  assert _run(sandbox, program, *tests).category == 'pass'


def test_first_failing_assert_decides(sandbox):
  program = 'f = lambda x: 4 // x'
  tests = ['assert f(1) == 4', 'assert f(2) == 4', 'assert f(0) == 4']
  assert _run(sandbox, program, *tests).category == 'wrong_answer'
  assert _run(sandbox, program, *reversed(tests)).category == 'failed'
  assert _run(sandbox, program, tests[0]).category == 'pass'


def test_uncomparable_values_fail_as_in_python(sandbox):
  outcome = _run(sandbox, "f = lambda x: 'a'", 'assert f(1) < 2')
  assert outcome.category == 'failed'
  assert outcome.detail.startswith('TypeError: ')


def test_tests_that_do_not_parse(sandbox):
  outcome = _run(sandbox, 'f = len', 'assert f(')
  assert outcome.category == 'failed'
  assert 'SyntaxError' in outcome.detail


def test_no_tests(sandbox):
  assert sandbox.run('x = 1', []).category == 'pass'


def test_streams_globals_and_environment(sandbox, capfd):
  program = """
import os, sys
names = sorted(globals())
print('out')
print('err', file=sys.stderr)
os.write(1, b'out')
os.write(2, b'err')
if __name__ == '__main__':
  raise ValueError
def f():
  return names, sys.argv, dict(os.environ), os.listdir('.')
"""
  expected = (['__builtins__', 'os', 'sys'], [''], {}, [])
  outcome = _run(sandbox, program, f'assert f() == {expected}')
  assert outcome.category == 'pass', outcome
  assert capfd.readouterr() == ('', '')


def test_files_in_its_own_folder(sandbox):
  program = """
import os, tempfile
with open('a', 'w') as file:
  file.write('x')
with tempfile.TemporaryFile() as file:
  file.write(b'x')
f = lambda: open('a').read() + str(os.listdir('.'))
"""
  for _ in range(2):  # Each run begins with an empty folder.
    assert _run(sandbox, program, 'assert f() == "x[\'a\']"').category == 'pass'


def test_order_of_sets_is_the_same_in_each_run(sandbox):
  program = 'f = lambda: list({str(i) for i in range(20)})'
  with process.Child(sandbox._plan, sandbox._limits, program) as child:
    child.receive()
    child.send(('value', 'f()', 10000))
    order = plain.decode(child.receive()[1])
  assert order != sorted(order)
  assert _run(sandbox, program, f'assert f() == {order}').category == 'pass'


def test_from_a_pool_of_threads(sandbox):
  programs = [
    (f'f = lambda x: x + {i}', [f'assert f(1) == {1 + i + i % 2}'])
    for i in range(24)
  ]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    outcomes = list(pool.map(lambda p: sandbox.run(*p), programs))
  found = [o.category for o in outcomes]
  assert found == ['pass', 'wrong_answer'] * 12


@pytest.mark.data
def test_reference_solutions_keep_their_verdict(data_root):
  # Patient, since it is the verdicts that count here.
  sandbox = Sandbox(timeout_s=20.0)
  lines = (data_root / 'mbpp' / 'mbpp.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  # Every fifth of the test set, and those that do not compare with a constant
  # or have no plain tests. Number 123 takes about two seconds on its own.
  rows = [
    r
    for r in rows
    if (11 <= r['task_id'] <= 510 and r['task_id'] % 5 == 1)
    or r['task_id'] in (342, 367, 596, 601)
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    outcomes = list(
      pool.map(lambda r: sandbox.run(r['code'], r['test_list']), rows)
    )
  failures = {
    r['task_id']: o.detail
    for r, o in zip(rows, outcomes, strict=True)
    if o.category != 'pass'
  }
  # Its tests need code that stands in another field.
  assert failures == {367: "NameError: name 'root' is not defined"}
  assert len(rows) == 104


def test_walls_are_named(sandbox):
  text = str(sandbox.walls)
  assert sandbox.walls.kind in text
  assert 'memory' in text or sys.platform == 'darwin'
  listed = (*sandbox.walls.up, *sandbox.walls.weak, *sandbox.walls.down)
  assert len(set(listed)) == len(listed) == 13
  assert all(name in text for name in listed)


@pytest.mark.parametrize('kind', plan.KINDS)
def test_each_kind_works_or_says_why_not(kind):
  try:
    sandbox = Sandbox(timeout_s=1.0, isolation=kind)
  except RuntimeError as e:
    reason = str(e)
    assert 'basic walls' in reason
    assert kind in reason
    return
  assert sandbox.walls.kind == kind
  assert _run(sandbox, 'f = lambda x: x * x').category == 'pass'
  if kind != 'basic':
    assert sandbox.walls.hides_files and sandbox.walls.protects_files
    assert sandbox.walls.blocks_network and sandbox.walls.contains_processes


def test_without_basic_walls_nothing_runs(monkeypatch):
  [*_, weakest] = plan.plans('auto')
  broken = dataclasses.replace(weakest, python='/bin/false')
  monkeypatch.setattr(walls, 'plans', lambda kind: [broken])
  with pytest.raises(RuntimeError, match='the child did not start'):
    Sandbox()


def test_a_missing_limit_is_named(monkeypatch, sandbox):
  # As on a platform that accepts limits without keeping them.
  class Unlimited(plan.Plan):
    def setup(self, limits):
      return {**super().setup(limits), 'limits': {}}

  fields = dataclasses.asdict(sandbox._plan)
  monkeypatch.setattr(walls, 'plans', lambda kind: [Unlimited(**fields)])
  with pytest.raises(RuntimeError, match='cpu time; memory; file size; open'):
    Sandbox(memory_bytes=1 << 26)


def test_weaker_walls_say_why(monkeypatch, sandbox):
  broken = dataclasses.replace(sandbox._plan, python='/bin/false')
  monkeypatch.setattr(walls, 'plans', lambda kind: [broken, sandbox._plan])
  second = Sandbox(timeout_s=1.0)
  assert second.walls.kind == sandbox.walls.kind
  assert 'the child did not start' in str(second.walls)


def test_windows_is_refused(monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(os, 'name', 'nt')
    with pytest.raises(RuntimeError, match='only on Linux and macOS'):
      plan.plans('auto')


def test_unknown_kind_and_bad_limits():
  with pytest.raises(ValueError, match='isolation must be auto or one of'):
    Sandbox(isolation='docker')
  with pytest.raises(ValueError, match='timeout_s must be positive'):
    Sandbox(timeout_s=0.0)
  with pytest.raises(ValueError, match='memory_bytes must be at least'):
    Sandbox(memory_bytes=1 << 20)


def test_walls_lost_later_are_an_error_not_a_verdict(monkeypatch):
  sandbox = Sandbox(timeout_s=1.0)
  sandbox._plan = dataclasses.replace(sandbox._plan, python='/bin/false')
  with pytest.raises(RuntimeError, match='did not start'):
    _run(sandbox, 'f = lambda x: x * x')
  sandbox = Sandbox(timeout_s=1.0)
  sandbox.walls = dataclasses.replace(sandbox.walls, layers=('moat',))
  with pytest.raises(RuntimeError, match='moat'):
    _run(sandbox, 'f = lambda x: x * x')


@pytest.mark.skipif(sys.platform != 'linux', reason='signal at parent death')
@pytest.mark.parametrize('when', ['walls go up', 'program runs'])
def test_program_dies_with_the_evaluator(tmp_path, when):
  # Without the rest of the package, which takes seconds to import.
  (tmp_path / 'me_jax').mkdir()
  (tmp_path / 'me_jax' / '__init__.py').touch()
  source = pathlib.Path(process.__file__).parent
  (tmp_path / 'me_jax' / 'sandbox').symlink_to(source)
  # Its threads keep its pipes open for a moment after its death has been told.
  script = (
    'import threading, time\n'
    'from me_jax.sandbox.execute import Sandbox\n'
    'from me_jax.sandbox.process import Child\n'
    'for _ in range(50):\n'
    '  threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n'
    's = Sandbox(timeout_s=3600.0)\n'
    'print("up", flush=True)\n'
    'with Child(s._plan, s._limits, "import time; time.sleep(3600)"):\n'
    '  print("sent", flush=True)\n'
    '  time.sleep(3600)\n'
  )
  evaluator = subprocess.Popen(
    [sys.executable, '-c', script],
    env={'TMPDIR': str(tmp_path)},
    # Where such a script first looks for modules.
    cwd=tmp_path,
    stdout=subprocess.PIPE,
  )
  assert evaluator.stdout.readline() == b'up\n'
  marker = str(tmp_path / 'me_jax_sandbox_').encode()
  if when == 'program runs':
    assert evaluator.stdout.readline() == b'sent\n'
  _wait_until(lambda: _running(marker))
  evaluator.send_signal(signal.SIGKILL)
  evaluator.wait()
  evaluator.stdout.close()
  _wait_until(lambda: not _running(marker), lambda: _running(marker))


def test_a_program_is_sent_when_its_walls_are_up(sandbox):
  # Not before: of an evaluator that dies meanwhile no signal may come.
  said = []

  class Logged(process.Child):
    def send(self, message):
      said.append(message)
      super().send(message)

    def receive(self, *args):
      reply = super().receive(*args)
      said.append(reply[0])
      return reply

  program = 'x = "a program"'
  with Logged(sandbox._plan, sandbox._limits, program) as child:
    assert child.receive() == ['defined']
  setup, *others = said
  assert program not in setup.values()
  assert others == ['ready', program, 'defined']

  said.clear()
  with pytest.raises(RuntimeError, match='moat'):
    Logged(sandbox._plan, sandbox._limits, program, walls=('moat',))
  assert said == [setup, 'ready']


def test_a_child_that_hears_of_no_program_ends(sandbox, tmp_path):
  limits = plan.Limits(timeout_s=60.0, memory_bytes=1 << 30)
  message = marshal.dumps(sandbox._plan.setup(limits))
  child = subprocess.Popen(
    sandbox._plan.command(limits, str(tmp_path)),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    cwd=tmp_path,
    env={},
  )
  child.stdin.write(len(message).to_bytes(4, 'big') + message)
  child.stdin.close()
  try:
    assert child.wait(60) != 0
    replies = child.stdout.read()
    assert replies[4:].startswith(b'["ready",')
    assert len(replies) == 4 + int.from_bytes(replies[:4], 'big')
  finally:
    child.kill()
    child.stdout.close()


def _running(marker: bytes) -> list[str]:
  """The states of the processes with this in their command."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if marker in (path / 'cmdline').read_bytes():
        found.append((path / 'status').read_text())
    except OSError:
      continue
  return found


def _wait_until(condition, explain=lambda: '') -> None:
  # Long, since a test must not fail because the machine is busy.
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline, explain()
    time.sleep(0.02)


def test_any_folder_can_be_removed(tmp_path):
  unreadable = tmp_path / 'unreadable'
  (unreadable / 'a').mkdir(parents=True)
  (unreadable / 'a' / 'b').touch()
  (unreadable / 'a').chmod(0)
  unreadable.chmod(0)
  process.remove(str(unreadable))
  (tmp_path / 'kept').mkdir()
  (tmp_path / 'kept' / 'file').touch()
  linked = tmp_path / 'linked'
  linked.mkdir()
  (linked / 'link').symlink_to(tmp_path / 'kept')
  (linked / 'dangling').symlink_to('nowhere')
  process.remove(str(linked))
  deep = tmp_path / 'deep'
  deep.mkdir()
  here = os.getcwd()
  os.chdir(deep)
  try:
    for _ in range(1100):
      os.mkdir('x' * 100)
      os.chdir('x' * 100)
  finally:
    os.chdir(here)
  process.remove(str(deep))
  process.remove(str(deep))  # Is gone already.
  assert [path.name for path in tmp_path.rglob('*')] == ['kept', 'file']


@pytest.mark.parametrize(
  'value',
  [
    None,
    True,
    -1,
    2**63,
    -(2**200),
    1.5,
    float('-inf'),
    1 + 2j,
    'a"\\\n\ud800',
    b'\xff',
    [],
    [[], ()],
    {1, 'a'},
    {'a': [1], (1,): None},
    collections.deque([1]),
  ],
)
def test_plain_data_survives(value):
  text = plain.encode(value, 1000)
  found = plain.decode(json.loads(text))
  assert found == value and type(found) is type(value)


def test_a_range_survives_as_what_it_holds():
  value = range(-1, 10, 3)
  found = plain.decode(json.loads(plain.encode(value, 1000)))
  assert found == value and found != range(-1, 11, 4)
  assert [x in found for x in (-1, 2.0, True, 3, 2.5, '2', None)] == [
    x in value for x in (-1, 2.0, True, 3, 2.5, '2', None)
  ]


def test_size_and_depth_are_bounded():
  assert plain.decode(json.loads(plain.encode([0] * 20, 100))) == [0] * 20
  deep: list = []
  for _ in range(300):
    deep = [deep]
  for value in ([0] * 100, 'x' * 101, b'x' * 60, 16**200, deep):
    text = plain.encode(value, 100)
    assert len(text) < 200
    assert isinstance(plain.decode(json.loads(text)), plain.Foreign)


@pytest.mark.parametrize(
  'text',
  [
    '1.5',
    '{}',
    '[]',
    '[1]',
    '["unknown"]',
    '[["list"]]',
    '["set",["list"]]',
    '["dict",1]',
    '["int","x"]',
    '["int"]',
    '["float","x"]',
    '["fraction","1","0"]',
    '["decimal","x"]',
    '["range","0","1","0"]',
    '["bytes",1]',
  ],
)
def test_forged_data_is_refused(text):
  with pytest.raises(ValueError):
    plain.decode(json.loads(text))


def test_colliding_values_do_not_hold_up_the_judge():
  items = [f'["int","{i * (2**61 - 1):x}"]' for i in range(4500)]
  start = time.monotonic()
  plain.decode(json.loads(f'["set",{",".join(items)}]'))
  assert time.monotonic() - start < 2.0


def test_expected_values_are_not_asked_for():
  asked = []

  def ask(expression):
    asked.append(expression)
    return 4

  source = 'assert f(2) == 4 and 5 != f(3) and f(1) in set([4]), g(1)'
  [check] = checks.parse([source])
  assert check.holds(ask)
  assert asked == ['(f(2)\n)', '(f(3)\n)', '(f(1)\n)']
