"""Evaluates a model, as it is or after the edits of a run.

    python -m launch.evaluate --model=smollm2_135m --tasks=mmlu,commonsenseqa \
      --limit=200 --data_root=DATA --workdir=runs/smollm2_135m
    python -m launch.evaluate --run=runs/table1 --edit_step=20 --tasks=bbh \
      --workdir=runs/table1_bbh
    python -m launch.evaluate --list_tasks
    python -m launch.evaluate --check_data --data_root=DATA

Running the same command again resumes; with other tasks it adds them.
"""

import dataclasses
import functools
import sys
import time

from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from launch import (
  cache,
  devices,
  evaluation,
  hosts,
  inventory,
  log,
  versions,
)
from me_jax import files, generation, rebuild, results
from me_jax.config import EvalConfig
from me_jax.evals import registry, runner
from me_jax.evals.task import fingerprint
from me_jax.evals.untouched import Room, Untouched
from me_jax.models import load, precision
from me_jax.progress import Progress, duration
from me_jax.reporting import run_report
from me_jax.typing import DTYPES, ModelState, SitePredictor
from me_jax.workdir import Workdir, samples_path

_MODEL = flags.DEFINE_string(
  'model', None, 'A preset, a directory, a GGUF file or a hub id.'
)
_PATH = flags.DEFINE_string(
  'path',
  '',
  'Where the weights of the preset are, if not at their usual place.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', DTYPES, 'Of the weights and activations of --model.'
)
_RUN = flags.DEFINE_string(
  'run', None, 'A workdir of launch.run, whose edited model is evaluated.'
)
_EDIT_STEP = flags.DEFINE_integer(
  'edit_step', None, 'After which edit step of --run; the last one if not set.'
)
_TASKS = flags.DEFINE_list(
  'tasks', [], 'What to measure; --list_tasks shows all.'
)
_LIMIT = flags.DEFINE_integer(
  'limit',
  0,
  'Items per task, a seeded nested subset; 0 for all.',
  lower_bound=0,
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the subset.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where answers and scores go.')
_DATA_ROOT = flags.DEFINE_string(
  'data_root',
  None,
  'Directory with mmlu/, bbh/, ...; else $ME_JAX_DATA, else the public hub.',
)
_CACHE_DIR = flags.DEFINE_string(
  'cache_dir',
  None,
  'Compiled programs; else $ME_JAX_CACHE, else ~/.cache/me_jax.',
)
_ALLOW_CODE_EXECUTION = flags.DEFINE_bool(
  'allow_code_execution',
  False,
  'Programs that the model writes (MBPP) may be run, in a sandbox.',
)
_LIST_TASKS = flags.DEFINE_bool('list_tasks', False, 'Print all tasks and end.')
_CHECK_DATA = flags.DEFINE_bool(
  'check_data', False, 'Print what data is at hand, with hashes, and end.'
)
_EVALS = config_flags.DEFINE_config_dataclass(
  'evals', EvalConfig(), 'Profile and shortcuts, see me_jax.config.EvalConfig.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  log.show_warnings()
  try:
    # Overrides set fields one by one, after the checks of the constructor.
    settings = dataclasses.replace(_EVALS.value)
    if _LIST_TASKS.value:
      print(inventory.task_table())
    elif _CHECK_DATA.value:
      names = _TASKS.value or list(registry.TASKS)
      table, complete = inventory.data_table(
        names, evaluation.sources(_DATA_ROOT.value)
      )
      print(table)
      if not complete:
        sys.exit(1)
    else:
      evaluate(settings)
  except (OSError, ValueError, KeyError, RuntimeError) as e:
    sys.exit(f'Error: {e.args[0] if isinstance(e, KeyError) else e}')


def evaluate(settings: EvalConfig) -> None:
  """Everything between the flags and the report."""
  start = time.monotonic()
  if bool(_MODEL.value) == bool(_RUN.value):
    raise ValueError('Say either --model or --run.')
  if _RUN.value and _DTYPE.value != 'float32':
    raise ValueError('A --run keeps its dtype; --dtype is for a --model.')
  if not _TASKS.value or not _WORKDIR.value:
    raise ValueError('Say --tasks and --workdir; --list_tasks shows all tasks.')
  cache.open_cache(_CACHE_DIR.value)
  hosts.start()
  workdir = Workdir(_WORKDIR.value)
  mesh = devices.from_flag()
  state = _state(mesh)
  model, name = state.model, state.model.name
  print(
    f'Model: {name}, weights {model.fingerprint[:12]}, on '
    f'{devices.describe(model, mesh)}',
    flush=True,
  )
  prompts = evaluation.prompt_kind(name, settings)
  print(f'Prompts: {prompts}', flush=True)
  tasks = evaluation.make_tasks(
    _TASKS.value,
    model=name,
    tokenizer=model.tokenizer,
    data=evaluation.sources(_DATA_ROOT.value),
    settings=settings,
    allow_code_execution=_ALLOW_CODE_EXECUTION.value,
    max_positions=model.config.max_positions,
  )
  identity = {
    'config': {
      'model': {'name': name, 'path': _weights_path()},
      'dtype': model.config.dtype,
      'evals': dataclasses.asdict(settings),
      'limit': _LIMIT.value,
      'seed': _SEED.value,
      'method': {'name': state.method},
      'num_edits': state.num_edits,
      'edit_batch_size': state.edit_batch_size,
    },
    'weights': state.fingerprint,
    'unedited': state.unedited,
    'run_state': state.run_state,
    'tokenizer': model.tokenizer.fingerprint,
    'tasks': {task.name: fingerprint(task) for task in tasks},
    'prompts': prompts,
  }
  workdir.claim(
    identity,
    {**versions.notes(), 'device': devices.describe(model, mesh)},
  )
  predictor = generation.LlamaPredictor(
    model.config,
    model.tokenizer,
    refill=settings.refill,
    **evaluation.acting(state.editor),
  )
  asked = ModelState(model.params, state.editor_state)
  for task in tasks:
    selection = runner.select(
      task,
      limit=_LIMIT.value or None,
      seed=_SEED.value,
      shares_prefixes=settings.shared_prefix,
      stores_prompts=settings.store_prompts,
    )
    known = _known(selection, predictor, state, settings)
    metrics = runner.evaluate(
      selection,
      predictor,
      asked,
      state_fingerprint=state.fingerprint,
      path=workdir.samples(task.name, state.edit_step),
      scores_path=workdir.scores(task.name, state.edit_step),
      known=known,
      progress=functools.partial(Progress, what=task.name, unit='items'),
    )
    results.replace_rows(
      workdir.results,
      results.rows(
        metrics,
        run=workdir.path.name,
        method=state.method,
        model=name,
        edit_step=state.edit_step,
        num_edits=state.num_edits,
        task=task.name,
        state=state.fingerprint,
      ),
    )
  text = run_report.benchmarks(results.read_rows(workdir.results))
  files.write_atomic(workdir.report, text)
  print(f'\n{text}')
  print(
    f'Took {duration(time.monotonic() - start)}. Rows: {workdir.results}. '
    f'Answers: {workdir.path / "samples"}.'
  )


def _state(mesh: Mesh | None) -> rebuild.EditedState:
  """The model, and what was done to it."""
  if _RUN.value:
    return rebuild.edited_state(
      _RUN.value, until=_EDIT_STEP.value, weights=_PATH.value, mesh=mesh
    )
  model = precision.in_dtype(
    load.load_model(_MODEL.value, path=_PATH.value, mesh=mesh), _DTYPE.value
  )
  weights = model.fingerprint
  return rebuild.EditedState(model, 0, 0, 1, 'unedited', weights, weights)


def _known(
  selection: runner.Selection,
  predictor: SitePredictor,
  state: rebuild.EditedState,
  settings: EvalConfig,
) -> runner.Known:
  """The answers of step 0 in the run's own directory that this state leaves as
  they are."""
  probe = state.editor and state.editor.probe
  if probe is None or not settings.copy_untouched:
    return runner.NOTHING
  untouched = Untouched(
    selection,
    predictor,
    probe,
    path=samples_path(_RUN.value, selection.task.name, 0),
    fingerprint=state.model.fingerprint,
    room=Room(0),
  )
  return untouched(ModelState(state.model.params, state.editor_state))


def _weights_path() -> str:
  """Where the base weights are, if not at their usual place."""
  if _RUN.value and not _PATH.value:
    return Workdir(_RUN.value).identity()['config']['model']['path']
  return _PATH.value


if __name__ == '__main__':
  app.run(main)
