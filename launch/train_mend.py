"""Trains the networks with which MEND edits a model.

    python -m launch.train_mend \\
      --config=experiments/train_mend.py:model=smollm2_135m \\
      --workdir=runs/train_mend --data_root=DATA

Settings of the config are overridden as --config.method.lr=1e-5. Running the
same command again resumes. The workdir holds `network.safetensors` (the best
networks so far), `curve.jsonl`, the same for TensorBoard (`tensorboard
--logdir=WORKDIR`) and `checkpoints/`. An editing run takes the networks as
--config.method.network=WORKDIR/network.safetensors.
"""

import dataclasses
import pathlib
import sys
import time

import jax
import tqdm
from absl import app, flags, logging
from ml_collections import config_flags

from launch import (
  cache,
  command_line,
  devices,
  evaluation,
  hosts,
  log,
  versions,
)
from me_jax import processes
from me_jax.config import MendTrainingConfig
from me_jax.data import facts, training_facts
from me_jax.edits import mend_examples, mend_loop, registry
from me_jax.models import load, precision
from me_jax.progress import duration
from me_jax.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file with get_config(arg), e.g. experiments/train_mend.py.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Directory of this training. One that holds another training is refused.',
)
_DATA_ROOT = flags.DEFINE_string(
  'data_root',
  None,
  'Directory with zsre/ and counterfact/; else $ME_JAX_DATA.',
)
_CACHE_DIR = flags.DEFINE_string(
  'cache_dir',
  None,
  'Compiled programs, shared by all runs; else $ME_JAX_CACHE, else '
  '~/.cache/me_jax. Deleting it costs time, no numbers.',
)
_KEPT_GB = flags.DEFINE_float(
  'kept_gb',
  4.0,
  'Host memory of each process for what enters the first edited layer. Beyond '
  'it that is computed again each time an example comes: slower, the same '
  'numbers.',
  lower_bound=0,
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  cache.open_cache(_CACHE_DIR.value)
  log.show_warnings()
  try:
    hosts.start()
    train(_CONFIG.value)
  except jax.errors.JaxRuntimeError as e:
    sys.exit(
      f'Error: the device gave up ({str(e)[:200]}). If it is out of memory, '
      'lower config.method.accumulate; of many processes another may have '
      'ended, and said why. The same command resumes.'
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


def train(config: MendTrainingConfig) -> None:
  """Everything between the flags and the networks."""
  start = time.monotonic()
  sources = evaluation.sources(_DATA_ROOT.value)
  split = training_facts.split(
    [facts.load_facts(name, sources) for name in config.facts],
    facts_per_pool=config.facts_per_pool,
    val_facts=config.val_facts,
    seed=config.method.seed,
    evaluation=[
      fact
      for name in config.evaluation
      for fact in facts.load_facts(name, sources)
    ],
  )
  counts = ', '.join(f'{name} {n}' for name, n in split.counts.items() if n)
  print(f'Facts: {" and ".join(config.facts)} ({counts})', flush=True)
  workdir = Workdir(_WORKDIR.value)
  mesh = devices.from_flag()
  model = precision.in_dtype(
    load.load_model(config.model.name, path=config.model.path, mesh=mesh),
    config.dtype,
    exact=registry.edited_paths(config.method),
  )
  print(
    f'Model: {model.name}, weights {model.fingerprint[:12]}, on '
    f'{devices.describe(model, mesh)}',
    flush=True,
  )
  identity = {
    'config': dataclasses.asdict(config),
    'weights': model.fingerprint,
    'tokenizer': model.tokenizer.fingerprint,
    'facts': split.sha256,
  }
  workdir.claim(
    identity,
    {
      'facts_counts': split.counts,
      **versions.notes(),
    },
  )
  training, validation = (
    mend_examples.make_examples(
      model.tokenizer,
      part,
      max_length=config.method.max_length,
    )
    for part in (split.training, split.validation)
  )
  print(
    f'Examples of at most {config.method.max_length} tokens: {len(training)} '
    f'to learn from, {len(validation)} for validation',
    flush=True,
  )
  best = mend_loop.train(
    mend_loop.Training(
      config=config.method,
      model=model,
      training=training,
      validation=validation,
      directory=workdir.path,
      notes=identity | {'config': dataclasses.asdict(config.method)},
      kept_bytes=int(_KEPT_GB.value * 1e9),
      report=_report,
    )
  )
  network: pathlib.Path = workdir.path / mend_loop.NETWORK
  print(
    f'Took {duration(time.monotonic() - start)}. Best after '
    f'{best["iteration"]} examples. Networks: {network}'
  )


def _report(iteration: int, scores: dict[str, float]) -> None:
  if processes.is_first():
    values = ', '.join(f'{name} {v:.4g}' for name, v in scores.items())
    tqdm.tqdm.write(f'After {iteration} examples: {values}', file=sys.stderr)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main, flags_parser=command_line.parse)
