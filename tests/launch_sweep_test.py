"""Grids of runs: commands, order, resuming, and what is said of failures."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from launch import jobs as jobs_lib
from launch.jobs import Job, Ledger

_REPO = pathlib.Path(__file__).resolve().parent.parent
_EXPERIMENT = """
from me_jax.config import Cell


def sweep(arg):
  return [
    Cell('a', 'x=1'),
    Cell('train', 'y=1', module='launch.train_mend', config='other.py'),
    Cell('b', f'x=2,{arg}', flags=('--net={root}/train/n',), after=('train',)),
  ]
"""


def _job(tmp_path, name, code='', after=(), experiment='table1'):
  """A job that notes its name, then runs `code`."""
  program = (
    f'open({str(tmp_path / "ran")!r}, "a").write("{name} ")\n'
    f'import sys, time\n{code}'
  )
  return Job(name, experiment, (sys.executable, '-c', program), tuple(after))


def _ran(tmp_path):
  path = tmp_path / 'ran'
  return path.read_text().split() if path.exists() else []


def _states(jobs, ledger):
  return [ledger.read(job).state for job in jobs]


def test_commands_of_an_experiment(tmp_path):
  path = tmp_path / 'table9.py'
  path.write_text(_EXPERIMENT)
  both = ['--data_root=D', '--config.model.path=M', '--config.dtype=bfloat16']
  flags = [*both, '--config.limit=3']
  jobs = jobs_lib.make_jobs([f'{path}:z=3', f'{path}:z=3'], tmp_path, flags)
  assert [job.label for job in jobs] == ['a.table9', 'train.other', 'b.table9']
  assert [job.command[1:] for job in jobs] == [
    (
      '-m',
      'launch.run',
      f'--config={path}:x=1',
      f'--workdir={tmp_path}/a',
      *flags,
    ),
    (
      '-m',
      'launch.train_mend',
      '--config=other.py:y=1',
      f'--workdir={tmp_path}/train',
      *both,
    ),
    (
      '-m',
      'launch.run',
      f'--config={path}:x=2,z=3',
      f'--workdir={tmp_path}/b',
      f'--net={tmp_path}/train/n',
      *flags,
    ),
  ]
  first, second = map(jobs_lib.line, jobs_lib.groups(jobs))
  assert first == shlex.join(jobs[0].command)
  assert second == ' && '.join(shlex.join(j.command) for j in jobs[1:])


def test_what_is_no_grid_is_refused(tmp_path):
  path = tmp_path / 'one.py'
  path.write_text('')
  with pytest.raises(ValueError, match='has no sweep'):
    jobs_lib.make_jobs([str(path)], tmp_path, [])
  with pytest.raises(FileNotFoundError, match='is it a file'):
    jobs_lib.make_jobs([str(tmp_path / 'none.py')], tmp_path, [])
  with pytest.raises(ValueError, match="--name=value, got 'D' by itself"):
    jobs_lib.make_jobs([str(path)], tmp_path, ['--data_root', 'D'])
  path.write_text(_EXPERIMENT.replace("Cell('train'", "Cell('other'"))
  with pytest.raises(ValueError, match='waits for train, which is no cell'):
    jobs_lib.make_jobs([str(path)], tmp_path, [])


def test_failures_are_told_and_only_the_rest_is_run_again(tmp_path):
  broken = tmp_path / 'broken'
  broken.touch()
  fails = (
    'import os\n'
    f'if os.path.exists({str(broken)!r}):\n'
    '  print("Error: no such model.", file=sys.stderr); print("bye")\n'
    '  sys.exit(3)\n'
  )
  jobs = [
    _job(tmp_path, 'fails', fails),
    _job(tmp_path, 'waits', after=['fails']),
    _job(tmp_path, 'works'),
  ]
  ledger = Ledger(tmp_path / 'root')
  assert not jobs_lib.run(jobs, ledger)
  assert _ran(tmp_path) == ['fails', 'works']
  assert _states(jobs, ledger) == ['failed', 'waiting', 'done']
  assert ledger.read(jobs[0]).reason == 'exit 3: Error: no such model.'
  assert ledger.read(jobs[1]).reason == 'needs fails'
  broken.unlink()
  told = []
  assert jobs_lib.run(
    jobs, ledger, report=lambda j, s: told.append((j.name, s.state))
  )
  assert _ran(tmp_path) == ['fails', 'works', 'fails', 'waits']
  assert told == [
    (name, state)
    for name in ('fails', 'waits')
    for state in ('running', 'done')
  ]
  # Another command is another job.
  changed = [_job(tmp_path, 'works', 'print(1)')]
  assert _states(changed, ledger) == ['waiting']


def test_jobs_of_one_workdir_never_meet(tmp_path):
  """Each of a pair fails if the other one is at work."""
  lock = tmp_path / 'lock'
  alone = (
    f'import os\nos.mkdir({str(lock)!r}); time.sleep(0.3)\n'
    f'os.rmdir({str(lock)!r})'
  )
  # Another one is over only when both were begun, so two do run at once.
  beside = (
    f'import os\nend = time.time() + 30\n'
    f'while not os.path.exists({str(lock)!r}):\n'
    '  time.sleep(0.01)\n  assert time.time() < end'
  )
  jobs = [
    _job(tmp_path, 'same', alone, experiment='x'),
    _job(tmp_path, 'same', alone, experiment='y'),
    _job(tmp_path, 'other', beside),
  ]
  ledger = Ledger(tmp_path / 'root')
  assert jobs_lib.run(jobs, ledger, at_once=3), [ledger.read(j) for j in jobs]


def test_a_sweep_that_is_ended_ends_its_runs_and_goes_on(tmp_path):
  pids = tmp_path / 'pid'
  program = (
    'import pathlib\n'
    'from launch import jobs\n'
    f'job = jobs.Job("a", "x", ({sys.executable!r}, "-c", {_SLEEPER!r}, '
    f'{str(pids)!r}), ())\n'
    f'ledger = jobs.Ledger(pathlib.Path({str(tmp_path / "root")!r}))\n'
    'print("done", jobs.run([job], ledger))\n'
  )
  command = [sys.executable, '-c', program]
  first = subprocess.Popen(command, cwd=_REPO, stdout=subprocess.PIPE)
  deadline = time.monotonic() + 60
  while not (pids.exists() and pids.read_text().endswith('\n')):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  first.send_signal(signal.SIGTERM)
  assert b'done' not in first.communicate()[0]
  with pytest.raises(ProcessLookupError):
    os.kill(int(pids.read_text()), 0)
  job = Job('a', 'x', (sys.executable, '-c', _SLEEPER, str(pids)), ())
  assert Ledger(tmp_path / 'root').read(job).state == 'interrupted'
  again = subprocess.run(command, cwd=_REPO, capture_output=True, text=True)
  assert again.stdout == 'done True\n', again.stderr


# Sleeps for ever, but for the second time.
_SLEEPER = """
import os, sys, time
there = os.path.exists(sys.argv[1])
open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')
time.sleep(0 if there else 3600)
"""


def test_the_program(tmp_path):
  path = tmp_path / 'table9.py'
  path.write_text(_EXPERIMENT)

  def start(*args):
    return subprocess.run(
      [
        sys.executable,
        '-m',
        'launch.sweep',
        f'--config={path}',
        f'--root={tmp_path / "it" / "root"}',
        *args,
        '--',
        '--data_root=a b',
      ],
      cwd=_REPO,
      capture_output=True,
      text=True,
      check=True,
    ).stdout

  assert '| b | table9 | waiting |' in start('--status')
  script, commands = tmp_path / 'all.sbatch', tmp_path / 'all.txt'
  said = start(f'--slurm={script}', f'--commands={commands}')
  assert f'2 tasks: sbatch {script}' in said
  subprocess.run(['bash', '-n', script], check=True)
  assert '#SBATCH --array=0-1' in script.read_text()
  first, second = commands.read_text().splitlines()
  assert shlex.split(first)[-1] == '--data_root=a b'
  assert second.count(' -m launch.') == 2
  # The file has no get_config: the task ends, and the grid's table has it.
  task = subprocess.run(
    ['bash', script],
    env={**os.environ, 'SLURM_ARRAY_TASK_ID': '0'},
    capture_output=True,
    text=True,
  )
  assert task.returncode == 1 and '1 runs.' in task.stdout
  status = start('--status')
  assert '| a | table9 | failed |' in status and 'get_config' in status
  assert '| b | table9 | waiting |' in status
  with pytest.raises(subprocess.CalledProcessError) as e:
    start('--only=b.table9')
  assert '| b | table9 | waiting |  | needs train |' in e.value.stdout
  with pytest.raises(subprocess.CalledProcessError) as e:
    start('--status', '--only=c.table9')
  assert 'c.table9 is none of a.table9, train.other, b.' in e.value.stderr
