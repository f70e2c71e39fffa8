"""Scores the stored answers of a run again, without the model.

    python -m launch.score runs/table1 --data_root=DATA --allow_code_execution
    python -m launch.score runs/table1 --profile=oc-2024-01 --data_root=DATA \
      --allow_code_execution

The run's scores, result rows and report are replaced. Under another profile
than the run's own they go to a directory of their own, `rescored/PROFILE` in
the run.

What cannot be scored is named at the end, with the reason, and the exit code
is 1; all else is scored. MBPP needs `--allow_code_execution`, for it runs the
programs that the model wrote. Answers that ended as soon as the run's own
profile had what it needs are not enough for another that reads on, as
oc-2024-01 does with MBPP: that needs a run with `--evals.early_stop=false`.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags

from launch import evaluation, log
from me_jax import files, results, sequential
from me_jax.config import EvalConfig
from me_jax.evals import runner, samples
from me_jax.evals.task import Task
from me_jax.models import load
from me_jax.reporting import run_report
from me_jax.workdir import Workdir

_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'As for the run that made the answers.'
)
_PROFILE = flags.DEFINE_string(
  'profile', None, "Whose rules: oc-2023-12 or oc-2024-01; else the run's own."
)
_TASKS = flags.DEFINE_list('tasks', [], 'Only these; else all that are stored.')
_ALLOW_CODE_EXECUTION = flags.DEFINE_bool(
  'allow_code_execution',
  False,
  'Programs that the model wrote (MBPP) may be run, in a sandbox.',
)


def main(argv: list[str]) -> None:
  log.show_warnings()
  try:
    if len(argv) != 2:
      raise ValueError(f'Expected one run directory, got {argv[1:]}.')
    failures = score(pathlib.Path(argv[1]))
  except _ERRORS as e:
    sys.exit(f'Error: {_reason(e)}')
  if failures:
    sys.exit('\n'.join(f'Error: not scored: {line}' for line in failures))


def score(run: pathlib.Path) -> list[str]:
  """Everything between the flags and the report.

  Returns:
    What could not be scored, and why.
  """
  if not (run / 'config.json').is_file():
    raise FileNotFoundError(
      f'{run} holds no run: there is no config.json. Give the --workdir of '
      'launch.run or launch.evaluate.'
    )
  workdir = Workdir(run)
  config = workdir.identity()['config']
  settings = EvalConfig(**config['evals'])
  target = workdir
  if _PROFILE.value and _PROFILE.value != settings.profile:
    settings = dataclasses.replace(settings, profile=_PROFILE.value)
    target = Workdir(run / 'rescored' / settings.profile)
  stored = sorted(path.name for path in (run / 'samples').glob('*'))
  names = _TASKS.value or stored
  model = config['model']
  # Stored answers are compared with what is asked, which is made of tokens.
  tokenizer = load.load_tokenizer(model['name'], path=model['path'])

  def make(name: str) -> Task:
    [task] = evaluation.make_tasks(
      [name],
      model=model['name'],
      tokenizer=tokenizer,
      data=evaluation.sources(_DATA_ROOT.value),
      settings=settings,
      allow_code_execution=_ALLOW_CODE_EXECUTION.value,
    )
    return task

  failures = []
  for name in names:
    failures += _score_task(name, make, workdir, target, config)
  rows = results.read_rows(target.results)
  if any(row.task == sequential.EDIT_TASK for row in rows):
    text = run_report.report(rows, sequential.EDIT_TASK, target.all_scores())
  else:
    text = run_report.benchmarks(rows)
  files.write_atomic(target.report, text)
  print(f'\n{text}')
  return failures


def _score_task(
  name: str,
  make: Callable[[str], Task],
  workdir: Workdir,
  target: Workdir,
  config: Mapping[str, Any],
) -> list[str]:
  """Scores a task after every edit step; says what could not be scored."""
  try:
    selection = runner.select(
      make(name), limit=config['limit'] or None, seed=config['seed']
    )
    paths = sorted((workdir.path / 'samples' / name).glob('*.jsonl'))
    if not paths:
      raise FileNotFoundError(f'{workdir.path} holds no answers to it.')
  except _ERRORS as e:
    return [f'{name}: {_reason(e)}']
  failures = []
  for path in paths:
    step = int(path.stem)
    try:
      metrics = runner.score(
        selection, path=path, scores_path=target.scores(name, step)
      )
    except _ERRORS as e:
      failures.append(f'{name}, step {step}: {_reason(e)}')
      continue
    results.replace_rows(
      target.results,
      results.rows(
        metrics,
        run=workdir.path.name,
        method=config['method']['name'],
        model=config['model']['name'],
        edit_step=step,
        num_edits=min(step * config['edit_batch_size'], config['num_edits']),
        task=name,
        state=samples.state_of(path),
      ),
    )
    head = metrics[0]
    print(
      f'{name}, step {step}: {head.name} {head.value:.1f}, '
      f'n {run_report.items(name, head.n)}',
      flush=True,
    )
  return failures


_ERRORS = (OSError, ValueError, KeyError, RuntimeError)


def _reason(error: Exception) -> str:
  return str(error.args[0] if isinstance(error, KeyError) else error)


if __name__ == '__main__':
  app.run(main)
