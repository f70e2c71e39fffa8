"""Which walls stand on this machine, found out by running against them."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Iterator

from me_jax.sandbox.inside import plain
from me_jax.sandbox.plan import Limits, Plan, plans
from me_jax.sandbox.process import Child

_PROBE = pathlib.Path(__file__).parent / 'inside' / 'probe.py'
_START_S = 10.0


# Names of walls, in the order in which they are listed.
_HIDES = 'files outside its folder cannot be read'
_PROTECTS = 'files outside its folder cannot be changed'
_NETWORK = 'no network'
_PROCESSES = 'no new processes'
_SIGNALS = 'no signals to other processes'
_DEADLINE = 'ended as a group at the deadline'
_OWN = 'empty environment, no descriptors'
_BASIC = (_DEADLINE, _OWN, 'cpu time', 'memory', 'file size', 'open files')
_CONTAINED = 'nothing outlives it'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walls:
  """What a program meets here; each wall was tried, not assumed.

  Attributes:
    kind: 'namespaces', 'bubblewrap', 'landlock' or 'basic'.
    layers: What the child reports of itself, such as 'seccomp'.
    up: What the operating system keeps up, in words.
    weak: What only a hook in the program's own interpreter keeps up.
    down: What is not there.
    reasons: Why stronger kinds were not taken.
  """

  kind: str
  layers: tuple[str, ...]
  up: tuple[str, ...]
  weak: tuple[str, ...]
  down: tuple[str, ...]
  reasons: tuple[str, ...]

  @property
  def hides_files(self) -> bool:
    """Files of the user cannot be read."""
    return _HIDES in self.up

  @property
  def protects_files(self) -> bool:
    """Files of the user cannot be changed."""
    return _PROTECTS in self.up

  @property
  def blocks_network(self) -> bool:
    """Nothing can be connected to, this machine included."""
    return _NETWORK in self.up

  @property
  def contains_processes(self) -> bool:
    """Nothing that a program starts outlives it, whatever it does."""
    return _CONTAINED in self.up

  def __str__(self) -> str:
    weak = 'up only against carelessness (a hook in the same interpreter)'
    lines = [f'Sandbox: one process a program, {self.kind}.']
    for title, names in (
      ('layers', self.layers),
      ('up', self.up),
      (weak, self.weak),
      ('down', self.down),
      ('stronger walls not available', self.reasons),
    ):
      if names:
        lines.append(f'  {title}: {"; ".join(names)}')
    return '\n'.join(lines)


def put_up(limits: Limits, isolation: str) -> tuple[Plan, Walls]:
  """The strongest plan that works, and what stands then.

  Raises:
    RuntimeError: Not even the basic walls stand; names what is missing.
  """
  reasons: list[str] = []
  for plan in plans(isolation):
    try:
      walls = _measure(plan, limits, tuple(reasons))
    except RuntimeError as e:
      reasons.append(f'{_name(plan)} ({e})')
      continue
    return plan, walls
  if not reasons:
    reasons.append(
      f'{isolation} is not available: namespaces and landlock need Linux, '
      'bubblewrap needs the program bwrap'
    )
  raise RuntimeError(
    'Programs written by a model are not run here, since the basic walls (a '
    'process of its own, resource limits, an end at the deadline) are not '
    f'all up: {"; ".join(reasons)}.'
  )


def _name(plan: Plan) -> str:
  options = []
  if plan.drop_root:
    options.append('as a user without rights')
  if plan.user_namespace:
    options.append('with a user namespace')
  return ' '.join((plan.kind, *options))


def _measure(plan: Plan, limits: Limits, reasons: tuple[str, ...]) -> Walls:
  # RuntimeError where a wall that belongs to this kind is missing.
  layers, done = _attempt(plan, limits)
  stands = {
    _DEADLINE: _ends(plan, limits),
    _OWN: not done['environment'] and not done['descriptors'],
    'cpu time': not done['cpu time'],
    'memory': not done['memory'],
    'file size': not done['file size'],
    'open files': not done['open files'],
    _HIDES: not done['read'],
    _PROTECTS: not done['write'],
    _NETWORK: not done['network'],
    _PROCESSES: not done['fork'],
    _CONTAINED: not done['fork'] or done['first process'],
    _SIGNALS: not done['signal'],
    'disk space': plan.kind in ('namespaces', 'bubblewrap'),
  }
  # macOS accepts a limit on memory and does not keep it.
  basic = [n for n in _BASIC if n != 'memory' or sys.platform != 'darwin']
  needed = list(basic)
  if plan.kind != 'basic':
    needed += [_HIDES, _PROTECTS, _NETWORK, _CONTAINED]
  missing = [name for name in needed if not stands[name]]
  if not done['home']:
    missing.append('a folder of its own')
  if missing:
    raise RuntimeError(f'missing: {"; ".join(missing)}')
  hooked: tuple[str, ...] = ()
  if 'hook' in layers:
    hooked = (_HIDES, _PROTECTS)
    if 'seccomp' not in layers:
      hooked += (_NETWORK, _PROCESSES, _CONTAINED, _SIGNALS)
  return Walls(
    kind=plan.kind,
    layers=layers,
    up=tuple(n for n, s in stands.items() if s and n not in hooked),
    weak=tuple(n for n, s in stands.items() if s and n in hooked),
    down=tuple(n for n, s in stands.items() if not s),
    reasons=reasons,
  )


def _attempt(plan: Plan, limits: Limits) -> tuple[tuple[str, ...], dict]:
  # What the child says of itself, and what its program got done.
  patient = dataclasses.replace(limits, timeout_s=_START_S)
  with _bait() as (canary, port):
    arguments = (
      str(canary),
      str(canary.parent),
      port,
      os.getpid(),
      limits.memory_bytes,
      limits.file_bytes,
      limits.open_files,
    )
    with Child(plan, patient, _PROBE.read_text()) as child:
      try:
        verb, *rest = child.receive()
        if verb == 'defined':
          child.send(('value', f'attempts{arguments!r}', 1 << 14))
          verb, *rest = child.receive()
      except (EOFError, OSError) as e:
        raise RuntimeError(f'a harmless program: {child.ending()}') from e
      if verb != 'value':
        raise RuntimeError(f'a harmless program: {rest[-1]}')
      return child.walls, plain.decode(rest[0])


@contextlib.contextmanager
def _bait() -> Iterator[tuple[pathlib.Path, int]]:
  # A file that everybody may read in a folder where everybody may write, and
  # the number of an open port of this machine.
  with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
    path = pathlib.Path(folder)
    path.chmod(0o777)
    (path / 'canary').write_text('alive')
    (path / 'canary').chmod(0o666)
    server.bind(('127.0.0.1', 0))
    server.listen()
    yield path / 'canary', server.getsockname()[1]


def _ends(plan: Plan, limits: Limits) -> bool:
  # Whether a program that does not end is ended.
  short = dataclasses.replace(limits, timeout_s=0.05)
  with Child(plan, short, 'while True: pass') as child:
    try:
      child.receive()
    except TimeoutError:
      child.stop()
    except EOFError:
      return False
  try:
    os.killpg(child.pid, 0)
  except ProcessLookupError:
    return True
  return False
