"""Scores the stored answers of a run again, without the model.

    python -m launch.score runs/table1 --data_root=DATA
    python -m launch.score runs/table1 --profile=oc-2024-01 --data_root=DATA

The run's scores, result rows and report are replaced. Under another profile than the
run's own they go to a directory of their own, `rescored/PROFILE` in the run.
"""

import dataclasses
import pathlib
import sys

from absl import app, flags

from launch import evaluation, log
from me_jax import files, report, results, sequential
from me_jax.config import EvalConfig
from me_jax.evals import runner, samples
from me_jax.models import load
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
    score(pathlib.Path(argv[1]))
  except (OSError, ValueError, KeyError, RuntimeError) as e:
    sys.exit(f'Error: {e.args[0] if isinstance(e, KeyError) else e}')


def score(run: pathlib.Path) -> None:
  """Everything between the flags and the report."""
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
  tasks = evaluation.make_tasks(
    names,
    model=model['name'],
    # Some tasks' items are cut by tokens.
    tokenizer=load.load_tokenizer(model['name'], path=model['path']),
    data=evaluation.sources(_DATA_ROOT.value),
    settings=settings,
    allow_code_execution=_ALLOW_CODE_EXECUTION.value,
  )
  for task in tasks:
    selection = runner.select(
      task, limit=config['limit'] or None, seed=config['seed']
    )
    for path in sorted((run / 'samples' / task.name).glob('*.jsonl')):
      step = int(path.stem)
      metrics = runner.score(
        selection, path=path, scores_path=target.scores(task.name, step)
      )
      results.replace_rows(
        target.results,
        results.rows(
          metrics,
          run=workdir.path.name,
          method=config['method']['name'],
          model=model['name'],
          edit_step=step,
          num_edits=min(step * config['edit_batch_size'], config['num_edits']),
          task=task.name,
          state=samples.state_of(path),
        ),
      )
      head = metrics[0]
      print(
        f'{task.name}, step {step}: {head.name} {head.value:.1f}, n {head.n}',
        flush=True,
      )
  rows = results.read_rows(target.results)
  if any(row.task == sequential.EDIT_TASK for row in rows):
    text = report.report(rows, sequential.EDIT_TASK, target.all_scores())
  else:
    text = report.benchmarks(rows)
  files.write_atomic(target.report, text)
  print(f'\n{text}')


if __name__ == '__main__':
  app.run(main)
