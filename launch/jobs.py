"""The commands of a grid: which there are, what became of them, running."""

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from me_jax import files
from me_jax.config import Cell

# Of every program that a grid may hold.
_SHARED_FLAGS = (
  '--data_root',
  '--cache_dir',
  '--config.dtype',
  '--config.model.name',
  '--config.model.path',
)
_TAIL = 4096  # bytes of a log in which the reason of a failure is looked for


@dataclasses.dataclass(frozen=True)
class Job:
  """One command.

  Attributes:
    name: Of its workdir. Jobs of one name are never run at once.
    experiment: Name of the config file, without its ending.
    command: Arguments, the program first.
    after: Names whose jobs must be done before.
  """

  name: str
  experiment: str
  command: tuple[str, ...]
  after: tuple[str, ...]

  @property
  def label(self) -> str:
    """Unique among the jobs of a grid."""
    return f'{self.name}.{self.experiment}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
  """What became of a job.

  Attributes:
    state: 'waiting', 'running', 'done', 'failed' or 'interrupted'.
    reason: Of a failure, or what is waited for.
    seconds: It has taken, this time.
  """

  state: str = 'waiting'
  reason: str = ''
  seconds: float = 0.0


def make_jobs(
  configs: Sequence[str], root: pathlib.Path, flags: Sequence[str]
) -> list[Job]:
  """The jobs of experiments, in their order, each once.

  Args:
    configs: Paths of config files, each with the argument of its `sweep` behind
      a colon, if any.
    root: Where the workdirs are.
    flags: Added to the command of every `launch.run`, as '--name=value'.

  Raises:
    ValueError: A file has no `sweep`, a cell waits for none of the others, or
      a flag has its value apart from it.
    OSError: There is no such file.
  """
  if apart := [flag for flag in flags if not flag.startswith('-')]:
    raise ValueError(
      f'Expected flags of runs as --name=value, got {apart[0]!r} by itself.'
    )
  jobs: dict[str, Job] = {}
  for config in configs:
    path, _, arg = config.partition(':')
    for cell in _sweep(path, arg):
      job = _job(cell, path, root, flags)
      jobs.setdefault(job.label, job)
  names = {job.name for job in jobs.values()}
  for job in jobs.values():
    if missing := set(job.after) - names:
      raise ValueError(
        f'{job.label} waits for {", ".join(sorted(missing))}, which is no cell '
        'of these experiments.'
      )
  return list(jobs.values())


def _sweep(path: str, arg: str) -> Sequence[Cell]:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'--config: cannot read {path!r}, is it a file?')
  spec = importlib.util.spec_from_file_location('experiment', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'sweep'):
    raise ValueError(f'{path} has no sweep(arg): it is one run, not a grid.')
  return module.sweep(arg or None)


def _job(
  cell: Cell, path: str, root: pathlib.Path, flags: Sequence[str]
) -> Job:
  config = cell.config or path
  command = [
    sys.executable,
    '-m',
    cell.module,
    f'--config={config}:{cell.arg}',
    f'--workdir={root / cell.name}',
    *(flag.format(root=root) for flag in cell.flags),
  ]
  if cell.module == 'launch.run':
    command += flags
  else:  # Of a program with other settings, only those that it has, too.
    command += [f for f in flags if f.partition('=')[0] in _SHARED_FLAGS]
  return Job(cell.name, pathlib.Path(config).stem, tuple(command), cell.after)


class Ledger:
  """What became of jobs, in files below the root of their workdirs."""

  def __init__(self, root: pathlib.Path):
    self._directory = root / 'sweep'

  def log(self, job: Job) -> pathlib.Path:
    """What the job prints."""
    return self._directory / f'{job.label}.log'

  def write(self, job: Job, status: Status) -> None:
    """Keeps what became of the job."""
    record = {
      'command': job.command,
      'host': socket.gethostname(),
      'pid': os.getpid(),
      **dataclasses.asdict(status),
    }
    files.write_atomic(self._path(job), json.dumps(record, indent=2) + '\n')

  def read(self, job: Job) -> Status:
    """What became of it. A job whose command has changed was never run."""
    try:
      record = json.loads(self._path(job).read_text())
      if tuple(record.pop('command')) != job.command:
        return Status()
      host, runner = record.pop('host', ''), record.pop('pid')
      status = Status(**record)
    except FileNotFoundError:
      return Status()
    except (ValueError, KeyError, TypeError):
      return Status(reason=f'{self._path(job)} is damaged')
    # Of another host nothing can be known.
    is_here = host in ('', socket.gethostname())
    if status.state == 'running' and is_here and not _is_alive(runner):
      return dataclasses.replace(status, state='interrupted')
    return status

  def _path(self, job: Job) -> pathlib.Path:
    return self._directory / f'{job.label}.json'


def run(
  jobs: Sequence[Job],
  ledger: Ledger,
  *,
  others: Sequence[Job] = (),
  at_once: int = 1,
  report: Callable[[Job, Status], None] = lambda job, status: None,
) -> bool:
  """Runs what is not done; whether all is done in the end.

  A job that waits for a failed one is left out. If this process is ended,
  running jobs are told to end, too, and the next call goes on with them.

  Args:
    jobs: In the order in which they are begun.
    ledger: Where it is written down.
    others: Of the same grid, not run now, which may have to be done before.
    at_once: Jobs that may run at the same time.
    report: Called when a job begins and when it ends.
  """
  grid = [*jobs, *others]
  waiting = [job for job in jobs if ledger.read(job).state != 'done']
  running: dict[concurrent.futures.Future, Job] = {}
  children = _Children()
  with children, concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    while waiting or running:
      busy = {job.name for job in running.values()}
      for job in list(waiting):
        if len(running) == at_once:
          break
        unmet = _unmet(job, grid, ledger)
        if job.name in busy or unmet:
          continue
        waiting.remove(job)
        busy.add(job.name)
        future = pool.submit(_run_one, job, ledger, children, report)
        running[future] = job
      if not running:
        break  # What is left waits for what failed.
      done, _ = concurrent.futures.wait(
        running, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        running.pop(future)
        future.result()
  for job in waiting:
    unmet = ', '.join(_unmet(job, grid, ledger))
    ledger.write(job, Status(reason=f'needs {unmet}'))
  return all(ledger.read(job).state == 'done' for job in jobs)


def _unmet(job: Job, jobs: Iterable[Job], ledger: Ledger) -> list[str]:
  """The names that the job waits for."""
  return sorted(
    {
      other.name
      for other in jobs
      if other.name in job.after and ledger.read(other).state != 'done'
    }
  )


class _Children:
  """Processes that end with this one, if that is asked to end."""

  def __init__(self):
    self._lock = threading.Lock()
    self._processes: set[subprocess.Popen] = set()
    self.ending = False

  def __enter__(self) -> '_Children':
    self._before = {
      number: signal.signal(number, self._end)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def start(self, command: Sequence[str], log) -> subprocess.Popen | None:
    """The process; None if this one is ending."""
    with self._lock:
      if self.ending:
        return None
      process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
      )
      self._processes.add(process)
      return process

  def forget(self, process: subprocess.Popen) -> None:
    """It has ended."""
    with self._lock:
      self._processes.discard(process)

  def _end(self, number, frame) -> None:
    del frame
    # Without the lock, which the interrupted code may hold.
    self.ending = True
    for process in list(self._processes):
      process.terminate()
    if number == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _run_one(
  job: Job,
  ledger: Ledger,
  children: _Children,
  report: Callable[[Job, Status], None],
) -> None:
  start = time.monotonic()
  ledger.write(job, Status(state='running'))
  report(job, Status(state='running'))
  with open(ledger.log(job), 'ab') as log:
    process = children.start(job.command, log)
    code = None if process is None else process.wait()
  if process is not None:
    children.forget(process)
  seconds = round(time.monotonic() - start, 1)
  if children.ending:
    status = Status(state='interrupted', seconds=seconds)
  elif code == 0:
    status = Status(state='done', seconds=seconds)
  else:
    status = Status(
      state='failed', reason=_reason(ledger.log(job), code), seconds=seconds
    )
  ledger.write(job, status)
  report(job, status)


def _reason(log: pathlib.Path, code: int) -> str:
  """What the job said last."""
  with open(log, 'rb') as f:
    f.seek(max(0, log.stat().st_size - _TAIL))
    text = f.read().decode(errors='replace')
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('Error:')]
  said = (errors or lines or [''])[-1]
  how = f'signal {-code}' if code < 0 else f'exit {code}'
  return f'{how}: {said}'


def _is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
  """Jobs that must run one after another, in groups that may run anyhow."""
  found: list[list[Job]] = []
  for job in jobs:
    related = {job.name, *job.after}
    joined = [g for g in found if any(related & _names(g))]
    merged = [*(other for g in joined for other in g), job]
    found = [g for g in found if g not in joined] + [merged]
  return found


def line(group: Sequence[Job]) -> str:
  """A shell command that runs the jobs one after another."""
  return ' && '.join(shlex.join(job.command) for job in group)


def _names(group: Sequence[Job]) -> set[str]:
  return {name for job in group for name in (job.name, *job.after)}
