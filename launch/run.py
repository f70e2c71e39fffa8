"""Edits a model one fact after another and measures what became of it.

    python -m launch.run --config=experiments/quickstart.py --workdir=runs/quick

Settings of the config are overridden as --config.method.layer=10. Running the
same command again resumes. See docs/runs.md for what a run prints and keeps.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from launch import (
  cache,
  command_line,
  devices,
  evaluation,
  hosts,
  log,
  plan,
  versions,
)
from me_jax import files, generation, processes, sequential
from me_jax.analysis import in_loop
from me_jax.config import RunConfig
from me_jax.data import facts, sample
from me_jax.data.sources import DataSources
from me_jax.edits import (
  corpus_texts,
  registry,
  second_moment_ensure,
  templates,
)
from me_jax.edits.second_moment_factor import Factor, load_factor
from me_jax.engines.lower_layers import Activations
from me_jax.evals.task import fingerprint
from me_jax.evals.unedited import UneditedAnswers
from me_jax.models import load, precision
from me_jax.models.language_model import LanguageModel
from me_jax.progress import duration
from me_jax.reporting import run_report
from me_jax.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file with get_config(arg), e.g. experiments/table1.py:method=rome.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Directory of this run. One that holds another run is refused.',
)
_DATA_ROOT = flags.DEFINE_string(
  'data_root',
  None,
  'Directory with zsre/, mmlu/, ...; else $ME_JAX_DATA, else the public hub.',
)
_CACHE_DIR = flags.DEFINE_string(
  'cache_dir',
  None,
  'Second moments, answers of unedited models and compiled programs, shared '
  'by all runs; else '
  '$ME_JAX_CACHE, else ~/.cache/me_jax. Deleting it costs time, no numbers.',
)
_SECOND_MOMENTS = flags.DEFINE_string(
  'second_moments',
  None,
  'The --directory of launch.second_moment; what it holds must be what '
  'config.second_moment describes. Else they are collected into --cache_dir.',
)
_ALLOW_CODE_EXECUTION = flags.DEFINE_bool(
  'allow_code_execution',
  False,
  'Programs that the model writes (MBPP) may be run, in a sandbox.',
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print what would be done: states, items, tokens.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  config: RunConfig = _CONFIG.value
  directory = cache.open_cache(_CACHE_DIR.value)
  log.show_warnings()
  try:
    hosts.start()
    run(config, directory)
  except jax.errors.JaxRuntimeError as e:
    sys.exit(
      f'Error: the device gave up ({str(e)[:200]}). If it is out of memory, '
      'take one with more, or a smaller model; of many processes another may '
      'have ended, and said why. The same command resumes.'
    )
  except (
    OSError,
    ValueError,
    KeyError,
    FloatingPointError,
    RuntimeError,
  ) as e:
    if logging.level_debug():
      raise
    sys.exit(f'Error: {e.args[0] if isinstance(e, KeyError) else e}')


def run(config: RunConfig, cache_dir: pathlib.Path) -> None:
  """Everything between the flags and the report."""
  start = time.monotonic()
  sequential.eval_steps(config)
  sources = evaluation.sources(_DATA_ROOT.value)
  pool = facts.load_facts(config.facts.name, sources, config.facts.target)
  drawn = facts.draw(
    pool,
    config.num_edits,
    seed=config.facts.seed,
    subjects=config.facts.subjects,
  )
  counts = ', '.join(f'{name} {n}' for name, n in drawn.counts.items() if n)
  print(f'Facts: {config.facts.name} ({counts})', flush=True)
  if _DRY_RUN.value:
    print(plan.describe(config, drawn.requests, sources))
    return
  workdir = Workdir(_WORKDIR.value)

  mesh = devices.from_flag()
  whole = load.load_model(config.model.name, path=config.model.path, mesh=mesh)
  model = precision.in_dtype(
    whole, config.dtype, exact=registry.edited_paths(config.method)
  )
  print(
    f'Model: {model.name}, weights {model.fingerprint[:12]}, on '
    f'{devices.describe(model, mesh)}',
    flush=True,
  )
  prompts = evaluation.prompt_kind(config.model.name, config.evals)
  if config.tasks:
    print(f'Prompts: {prompts}', flush=True)
  # What is missing or does not belong here is found before the slow work.
  tasks = evaluation.make_tasks(
    config.tasks,
    model=config.model.name,
    tokenizer=model.tokenizer,
    data=sources,
    settings=config.evals,
    allow_code_execution=_ALLOW_CODE_EXECUTION.value,
    max_positions=model.config.max_positions,
  )
  identity = {
    'config': dataclasses.asdict(config),
    'weights': model.fingerprint,
    'tokenizer': model.tokenizer.fingerprint,
    'facts': drawn.sha256,
    'tasks': {task.name: fingerprint(task) for task in tasks},
    'prompts': prompts,
    **registry.trained(config.method),
  }
  workdir.check(identity)
  # Statistics of float32 keys, the same for every dtype.
  factors, moments = _factors(config, whole, sources, cache_dir)
  del whole
  context_templates = _templates(config, model, workdir)
  workdir.claim(
    identity
    | {
      'second_moments': moments,
      'context_templates': files.short_hash(context_templates),
    },
    {
      'case_ids': drawn.case_ids,
      'facts_counts': drawn.counts,
      **versions.notes(),
      'device': devices.describe(model, mesh),
    },
  )
  if not workdir.facts.exists():
    lines = [
      json.dumps(r.to_json(), ensure_ascii=False) for r in drawn.requests
    ]
    files.write_atomic(workdir.facts, '\n'.join(lines) + '\n')
  editor = registry.make_editor(
    config.method,
    model,
    templates=context_templates,
    factors=factors,
  )

  def write_report(rows):
    if processes.is_first():
      text = run_report.report(rows, sequential.EDIT_TASK, workdir.all_scores())
      files.write_atomic(workdir.report, text)

  activations = (
    Activations(
      registry.first_edited_layer(config.method),
      int(config.evals.lower_layers_gb * 1e9),
    )
    if config.evals.lower_layers_gb
    else None
  )
  predictor = functools.partial(
    generation.LlamaPredictor,
    model.config,
    model.tokenizer,
    shown=editor.shown,
    whole_prompts=editor.needs_whole_prompts,
    refill=config.evals.refill,
    activations=activations,
  )
  sequential.run(
    sequential.Run(
      config=config,
      workdir=workdir,
      model=model,
      editor=editor,
      predictor=predictor(interventions=editor.interventions),
      task_predictor=predictor(interventions=editor.task_interventions)
      if editor.task_interventions
      else None,
      requests=drawn.requests,
      tasks=tasks,
      unedited=UneditedAnswers(cache_dir / 'unedited', model.fingerprint),
      analyses=in_loop.make(
        config,
        model=model,
        editor=editor,
        tasks=tasks,
        sources=sources,
        workdir=workdir,
      ),
      probe=sample.sample_prose(),
      report=write_report,
    )
  )
  if processes.is_first() and workdir.report.exists():
    print(f'\n{workdir.report.read_text()}')
  print(
    f'Took {duration(time.monotonic() - start)}. Rows: {workdir.results}. '
    f'Edits: {workdir.checkpoints}.'
  )


def _factors(
  config: RunConfig,
  model: LanguageModel,
  sources: DataSources,
  cache_dir: pathlib.Path,
) -> tuple[dict[int, Factor], dict[str, str]]:
  """Cholesky factors by layer, and the hashes of what they are factors of."""
  layers = registry.second_moment_layers(config.method)
  if not layers:
    return {}, {}
  wanted = config.second_moment
  name = files.short_hash([model.fingerprint, dataclasses.asdict(wanted)])
  directory = pathlib.Path(
    _SECOND_MOMENTS.value
    or cache_dir / 'second_moments' / f'{model.name}-{name}'
  )
  moments = second_moment_ensure.ensure(
    model,
    corpus_texts.open_corpus(wanted.corpus, model, sources),
    layers,
    directory,
    max_length=wanted.max_length,
    seed=wanted.seed,
    n_samples=wanted.n_samples,
    min_tokens=wanted.min_tokens,
  )
  tokens = {moment.count for moment in moments.values()}
  print(
    f'Second moment: {wanted.corpus}, {max(tokens):,} tokens, layers '
    f'{", ".join(map(str, layers))}, in {directory}',
    flush=True,
  )
  return (
    {layer: load_factor(directory, m) for layer, m in moments.items()},
    {str(layer): m.digest for layer, m in moments.items()},
  )


def _templates(
  config: RunConfig, model: LanguageModel, workdir: Workdir
) -> tuple[str, ...]:
  """The run's context templates: given, stored, or drawn now and stored; none
  for a method that uses none."""
  if not registry.uses_templates(config.method):
    return ()
  if config.method.context_templates:
    return tuple(config.method.context_templates)
  stored = processes.from_first(lambda: _stored_templates(workdir))
  if stored is not None:
    return stored
  drawn = templates.draw_templates(
    model.config,
    model.params,
    model.tokenizer,
    length_params=config.method.context_template_length_params,
    seed=config.seed,
  )
  text = json.dumps(drawn, indent=2, ensure_ascii=False)
  files.write_atomic(workdir.templates, text + '\n')
  return drawn


def _stored_templates(workdir: Workdir) -> tuple[str, ...] | None:
  if not workdir.templates.exists():
    return None
  try:
    stored = json.loads(workdir.templates.read_text())
    return tuple(templates.fill(text, templates.BARE) for text in stored)
  except (ValueError, TypeError, AttributeError) as e:
    raise ValueError(
      f'{workdir.templates} is damaged ({e}). Restore it, or start again in '
      'an empty --workdir.'
    ) from e


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main, flags_parser=command_line.parse)
