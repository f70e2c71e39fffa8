"""The parent's side of one child process, from start to removal."""

import contextlib
import itertools
import json
import marshal
import os
import pathlib
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from me_jax.sandbox.plan import Limits, Plan

_START_S = 30.0
_END_S = 5.0
_REPLY_BYTES = 1 << 16


class Child:
  """A fresh interpreter behind the walls of a plan, with a program in it.

  The program begins to run at once; it is waited for by `receive`. Use it as a
  context manager: at the end nothing of it is left, neither processes nor
  files.

  Attributes:
    walls: What the child says it could put up.
    folder: The program's folder as seen from outside.
    pid: The child; also the number of its process group.
  """

  def __init__(
    self,
    plan: Plan,
    limits: Limits,
    code: str,
    walls: tuple[str, ...] | None = None,
  ):
    """Returns when the walls are up and the program was sent.

    Args:
      plan: Which walls.
      limits: What the program may use.
      code: The program.
      walls: What the child must say it could put up, else the program is not
        sent; None where that is to be found out.

    Raises:
      RuntimeError: The walls could not be put up, which names the call that
        failed, or they are others.
      OSError: No process could be started.
    """
    self._plan = plan
    self.folder = tempfile.mkdtemp(prefix='me_jax_sandbox_')
    try:
      self._process = subprocess.Popen(
        plan.command(limits, self.folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=self.folder,
        # The order of sets of strings, and with it a verdict, must not change
        # from run to run. The child clears it.
        env={'PYTHONHASHSEED': '0'},
        start_new_session=True,
        close_fds=True,
      )
    except BaseException:
      remove(self.folder)
      raise
    self.pid = self._process.pid
    self.returncode: int | None = None
    os.set_blocking(self._process.stdin.fileno(), False)
    os.set_blocking(self._process.stdout.fileno(), False)
    self._deadline = time.monotonic() + _START_S
    try:
      self.walls = self._put_up(plan.setup(limits), walls)
      self.send(code)
    except (OSError, EOFError, TimeoutError, ValueError) as e:
      self.stop()
      raise RuntimeError(
        'the child did not start, or ended before the program was sent: '
        f'{type(e).__name__}: {e}, status {self.returncode}'
      ) from e
    except BaseException:
      self.stop()
      raise
    self._deadline = time.monotonic() + limits.timeout_s

  def __enter__(self) -> 'Child':
    return self

  def __exit__(self, *exception) -> None:
    self.stop()

  def send(self, message: Any) -> None:
    """Sends one request.

    Raises:
      BrokenPipeError: The child has gone or closed its end.
      TimeoutError: The deadline passed first.
    """
    data = marshal.dumps(message)
    data = len(data).to_bytes(4, 'big') + data
    while data:
      self._wait(self._process.stdin.fileno(), select.POLLOUT)
      try:
        data = data[os.write(self._process.stdin.fileno(), data) :]
      except BlockingIOError:
        continue

  def receive(self, limit: int = _REPLY_BYTES) -> list[Any]:
    """The next reply: a verb and what belongs to it, as parsed JSON.

    Raises:
      EOFError: The child has gone or closed its end.
      TimeoutError: The deadline passed first.
      ValueError: This is not a reply, or one of more than `limit` bytes.
    """
    size = int.from_bytes(self._exactly(4), 'big')
    if size > limit:
      raise ValueError(f'a reply of {size} bytes, at most {limit} are allowed')
    try:
      reply = json.loads(self._exactly(size))
    except RecursionError as e:
      raise ValueError('a reply nested too deeply') from e
    if not isinstance(reply, list) or not reply:
      raise ValueError('not a reply')
    return reply

  def ending(self) -> str:
    """How the child, which has closed its pipe, ended. Stops it."""
    # Its files are closed a moment before its status is set.
    time.sleep(0.02)
    self.stop()
    status = self.returncode
    if self._plan.kind in ('namespaces', 'bubblewrap') and status > 128:
      status = 128 - status
    if status == -signal.SIGKILL:
      return 'killed, or closed its pipes'
    if status < 0:
      return f'killed by {_signal_name(-status)}'
    return f'exit with status {status} before the last assert'

  def stop(self) -> None:
    """Ends the child with all its processes and removes its folder."""
    if self.returncode is not None:
      return
    inside = self._inside() if self._plan.kind == 'bubblewrap' else []
    if self._plan.kind == 'namespaces':
      # The guard outside ends the namespace, and leaves when all are dead.
      self._process.terminate()
    elif inside:
      # Bubblewrap leaves when the process inside, the last of all, is dead.
      for pid in inside:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
    else:
      self._kill_group()
    try:
      self._process.wait(_END_S)
    except subprocess.TimeoutExpired:
      self._kill_group()
    self.returncode = self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()
    remove(self.folder)

  def _put_up(
    self, setup: dict[str, Any], expected: tuple[str, ...] | None
  ) -> tuple[str, ...]:
    self.send(setup)
    verb, *rest = self.receive()
    if verb != 'ready':
      raise RuntimeError(' '.join(map(str, rest)))
    walls = tuple(rest[0][1:])
    if expected is not None and walls != expected:
      raise RuntimeError(
        f'The sandbox now has {walls}, at the start it had {expected}.'
      )
    return walls

  def _inside(self) -> list[int]:
    path = pathlib.Path(f'/proc/{self.pid}/task/{self.pid}/children')
    try:
      return [int(pid) for pid in path.read_text().split()]
    except OSError:  # A kernel built without this list.
      return []

  def _kill_group(self) -> None:
    # Before the child is waited for: until then nobody else has its number.
    # No permission is what macOS says of a group that has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.pid, signal.SIGKILL)

  def _exactly(self, size: int) -> bytes:
    data = b''
    while len(data) < size:
      self._wait(self._process.stdout.fileno(), select.POLLIN)
      try:
        piece = os.read(self._process.stdout.fileno(), size - len(data))
      except BlockingIOError:
        continue
      if not piece:
        raise EOFError('closed')
      data += piece
    return data

  def _wait(self, descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    remaining = self._deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(max(1, remaining * 1000)):
      raise TimeoutError


def remove(folder: str) -> None:
  """Removes a folder, whatever a program left in it.

  Folders may be unreadable, and nested more deeply than a path can be long or
  a recursion can go: each is brought to the top before it is emptied.
  """
  if not os.path.lexists(folder):
    return
  fresh = (f'{folder}/{secrets.token_hex(8)}.{i}' for i in itertools.count())
  os.chmod(folder, 0o700)
  while os.listdir(folder):
    for name in os.listdir(folder):
      _empty(f'{folder}/{name}', fresh)
  os.rmdir(folder)


def _empty(path: str, fresh: Iterator[str]) -> None:
  if os.path.islink(path) or not os.path.isdir(path):
    os.unlink(path)
    return
  os.chmod(path, 0o700)
  with os.scandir(path) as entries:
    for entry in entries:
      if entry.is_dir(follow_symlinks=False):
        # To be moved, a folder must be writable itself.
        os.chmod(entry.path, 0o700)
        os.rename(entry.path, next(fresh))
      else:
        os.unlink(entry.path)
  os.rmdir(path)


def _signal_name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'
