r"""Runs the grid of an experiment, or writes it down for a cluster.

    python -m launch.sweep --config=experiments/table1.py:model=smollm2_135m \
      --root=runs/study -- --data_root=DATA
    python -m launch.sweep --config=experiments/figure4.py \
      --config=experiments/figure6.py --root=runs/study --commands=all.txt \
      -- --data_root=DATA
    python -m launch.sweep --config=experiments/figure4.py --root=runs/study \
      --slurm=all.sbatch -- --data_root=DATA

What stands behind `--` is added to the command of every run. The same command
again goes on with what is not done; `--status` only says what is, of an array
job, too. What becomes of a list of commands is not written down: there, ask
`launch.report`. Runs of several experiments with the same model, method and
layer share a workdir: edits are made once, and what each experiment measures is
added.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import app, flags

from launch import jobs as jobs_lib
from launch.jobs import Job, Ledger, Status
from me_jax import files
from me_jax.progress import duration

_CONFIGS = flags.DEFINE_multi_string(
  'config',
  [],
  'A file with sweep(arg), as experiments/table1.py:model=smollm2_135m; may be '
  'given several times.',
)
_ROOT = flags.DEFINE_string(
  'root', None, 'Directory of all workdirs and of sweep/, where the logs are.'
)
_JOBS = flags.DEFINE_integer(
  'jobs',
  1,
  'Runs at once. Each wants the memory of a run; on one accelerator that is 1.',
  lower_bound=1,
)
_ONLY = flags.DEFINE_multi_string(
  'only', [], 'Only this run, as RUN.EXPERIMENT; may be given several times.'
)
_STATUS = flags.DEFINE_bool('status', False, 'Only print what is done.')
_COMMANDS = flags.DEFINE_string(
  'commands',
  None,
  'Write the commands into this file, a line for each that may run by itself, '
  'and run nothing.',
)
_SLURM = flags.DEFINE_string(
  'slurm', None, 'Write an array job into this file, and run nothing.'
)

_SBATCH = """#!/bin/bash
#SBATCH --job-name=me_jax
#SBATCH --array=0-{last}
#SBATCH --output={root}/sweep/%A_%a.log
#SBATCH --requeue
# Add what your cluster wants: --partition, --gres=gpu:1, --time, --mem. A run
# that is ended resumes when the array is submitted again.
set -euo pipefail
cd {here}
commands=(
{commands}
)
eval "${{commands[$SLURM_ARRAY_TASK_ID]}}"
"""


def main(argv: list[str]) -> None:
  root = pathlib.Path(_ROOT.value).absolute()
  try:
    if not _CONFIGS.value:
      raise ValueError('Say --config, at least once.')
    grid = jobs_lib.make_jobs(_CONFIGS.value, root, argv[1:])
    jobs = _chosen(grid)
    ledger = Ledger(root)
    if _STATUS.value:
      print(table(jobs, ledger))
    elif _COMMANDS.value or _SLURM.value:
      write(jobs_lib.groups(jobs), root, argv[1:])
    elif not run(jobs, [job for job in grid if job not in jobs], ledger):
      sys.exit(1)
  except (OSError, ValueError) as e:
    sys.exit(f'Error: {e}')


def _chosen(jobs: list[Job]) -> list[Job]:
  labels = [job.label for job in jobs]
  if unknown := set(_ONLY.value) - set(labels):
    raise ValueError(
      f'--only: {", ".join(sorted(unknown))} is none of {", ".join(labels)}.'
    )
  return [job for job in jobs if not _ONLY.value or job.label in _ONLY.value]


def run(jobs: list[Job], others: list[Job], ledger: Ledger) -> bool:
  """Runs them, says so, and prints the table; whether all is done."""

  def report(job: Job, status: Status) -> None:
    took = f', {duration(status.seconds)}' if status.seconds else ''
    why = f': {status.reason}' if status.reason else ''
    print(f'{job.label}: {status.state}{took}{why}', flush=True)

  print(f'{len(jobs)} runs. Logs: {ledger.log(jobs[0]).parent}', flush=True)
  try:
    return jobs_lib.run(
      jobs, ledger, others=others, at_once=_JOBS.value, report=report
    )
  finally:
    print(f'\n{table(jobs, ledger)}')


def table(jobs: list[Job], ledger: Ledger) -> str:
  """Markdown: a line per run."""
  lines = ['| run | experiment | state | took | why |', '|---|---|---|--:|---|']
  for job in jobs:
    status = ledger.read(job)
    took = duration(status.seconds) if status.seconds else ''
    why = status.reason.replace('|', '\\|')
    lines.append(
      f'| {job.name} | {job.experiment} | {status.state} | {took} | {why} |'
    )
  return '\n'.join(lines)


def write(
  groups: list[list[Job]], root: pathlib.Path, more: Sequence[str]
) -> None:
  """Writes the commands, as a list or as an array job."""
  if _COMMANDS.value:
    commands = map(jobs_lib.line, groups)
    files.write_atomic(_COMMANDS.value, '\n'.join(commands) + '\n')
    print(f'{len(groups)} commands: {_COMMANDS.value}')
  if _SLURM.value:
    (root / 'sweep').mkdir(parents=True, exist_ok=True)
    tasks = [_task(group, root, more) for group in groups]
    quoted = '\n'.join(f'  {shlex.quote(task)}' for task in tasks)
    text = _SBATCH.format(
      last=len(groups) - 1,
      root=root,
      here=pathlib.Path.cwd(),
      commands=quoted,
    )
    files.write_atomic(_SLURM.value, text)
    print(f'{len(groups)} tasks: sbatch {_SLURM.value}')


def _task(group: list[Job], root: pathlib.Path, more: Sequence[str]) -> str:
  """A sweep of these jobs alone, which writes down what becomes of them."""
  return shlex.join(
    [
      *(sys.executable, '-m', 'launch.sweep', f'--root={root}'),
      *(f'--config={config}' for config in _CONFIGS.value),
      *(f'--only={job.label}' for job in group),
      *('--', *more),
    ]
  )


if __name__ == '__main__':
  flags.mark_flags_as_required(['root'])
  app.run(main)
