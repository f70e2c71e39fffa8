"""Collects and factors the second moment of the MLP keys of some layers.

Quick, on a machine without any corpus:

  python -m launch.second_moment --quick --corpus=generated --layers=5 \
    --directory=second_moments/smollm2_135m

As in the papers (hours on one accelerator):

  python -m launch.second_moment --model=llama2_7b --layers=4,5,6,7,8 \
    --directory=second_moments/llama2_7b
"""

import os
import pathlib
import sys
import time

from absl import app, flags

from launch import devices, hosts, log
from me_jax.data import sources
from me_jax.edits import (
  corpus_texts,
  second_moment_ensure,
  second_moment_factor,
)
from me_jax.models import load
from me_jax.progress import duration

_MODEL = flags.DEFINE_string(
  'model',
  'smollm2_135m',
  'Name or path of the unedited model. A second moment serves exactly the '
  'weights it was collected with: with any others it is refused.',
)
_LAYERS = flags.DEFINE_list(
  'layers',
  ['5'],
  'Layers from 0, e.g. 4,5,6,7,8. All share one pass; an editor refuses to '
  'start if a layer it edits is missing.',
)
_CORPUS = flags.DEFINE_string(
  'corpus',
  'wikipedia',
  f'One of {", ".join(corpus_texts.NAMES)}. The papers used wikipedia. With '
  'another text, edits reach other prompts than theirs did; with `generated`, '
  'results are a trial and must be labelled so.',
)
_N_SAMPLES = flags.DEFINE_integer(
  'n_samples',
  100_000,
  'Number of texts (articles, not tokens). With fewer tokens than the MLP is '
  'wide there is no inverse; below ten times as many, edits get worse.',
  lower_bound=1,
)
_QUICK = flags.DEFINE_bool(
  'quick',
  False,
  'Take only as many texts as hold ten tokens per MLP unit, instead of '
  '--n_samples. Edits keep most of their quality, but numbers are not '
  "comparable with the papers': label them.",
)
_MAX_LENGTH = flags.DEFINE_integer(
  'max_length',
  4096,
  'Tokens after which a text is cut. Cut short, texts hold more first tokens, '
  'whose keys are unlike all others; too long, memory runs out.',
  lower_bound=1,
)
_SEED = flags.DEFINE_integer(
  'seed',
  1,
  'Of the draw of texts. With another seed, stored second moments do not match '
  'and are refused.',
)
_BATCH_TOKENS = flags.DEFINE_integer(
  'batch_tokens',
  3 * 4096,
  'Padded tokens in one batch, of each copy of the weights. Lower it if memory '
  'runs out; an unfinished collection goes on only with the same number.',
  lower_bound=1,
)
_DATA_ROOT = flags.DEFINE_string(
  'data_root',
  None,
  'Directory with wikitext/ in it, else $ME_JAX_DATA. Without either, only '
  'wikipedia, file:PATH and generated can be used.',
)
_DIRECTORY = flags.DEFINE_string(
  'directory',
  None,
  'Where the results go, one directory per layer. Layers that are there are '
  'not collected again; those of another model or text are refused, never '
  'overwritten.',
  required=True,
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  try:
    layers = sorted({int(layer) for layer in _LAYERS.value})
  except ValueError as e:
    raise app.UsageError(f'--layers: expected numbers: {e}.') from e
  if not layers:
    raise app.UsageError('--layers: expected at least one.')
  log.show_warnings()
  try:
    _collect(layers, pathlib.Path(_DIRECTORY.value))
  except (OSError, ValueError, RuntimeError) as e:
    sys.exit(f'Error: {e}')


def _collect(layers: list[int], directory: pathlib.Path) -> None:
  hosts.start()
  directory.mkdir(parents=True, exist_ok=True)
  mesh = devices.from_flag()
  model = load.load_model(_MODEL.value, mesh=mesh)
  print(f'Model: {model.name}, on {devices.describe(model, mesh)}', flush=True)
  dim = model.config.mlp_dim
  data = sources.DataSources(
    data_root=_path(_DATA_ROOT.value),
    env_root=_path(os.environ.get('ME_JAX_DATA')),
  )
  number = (
    {'min_tokens': 10 * dim}
    if _QUICK.value
    else {'n_samples': _N_SAMPLES.value}
  )
  source = corpus_texts.open_corpus(_CORPUS.value, model, data)
  print(f'Text: {source.id}', flush=True)
  start = time.monotonic()
  moments = second_moment_ensure.ensure(
    model,
    source,
    layers,
    directory,
    max_length=_MAX_LENGTH.value,
    seed=_SEED.value,
    batch_tokens=_BATCH_TOKENS.value,
    **number,
  )
  print(f'Collected or found in {duration(time.monotonic() - start)}')
  print('layer     tokens      trace   condition number')
  for layer, moment in moments.items():
    chol = second_moment_factor.load_factor(directory, moment)
    condition = second_moment_factor.condition_number(moment, chol)
    print(
      f'{layer:5} {moment.count:10,} {moment.mean.trace():10.4f} '
      f'{condition:18.3g}',
      flush=True,
    )


def _path(value: str | None) -> pathlib.Path | None:
  return pathlib.Path(value) if value else None


if __name__ == '__main__':
  app.run(main)
