"""Writes a model for use elsewhere: as it is, or after the edits of a run.

    python -m launch.export --model=smollm2_135m --output=/tmp/smollm2
    python -m launch.export --workdir=runs/quickstart --edit_step=5 \
      --without=2,3 --output=/tmp/edited

The directory then loads with transformers' AutoModelForCausalLM and
AutoTokenizer, or here by its path. `--format=edit` writes the edits alone, as
one small safetensors file for `me_jax.load_edit`.
"""

import pathlib
import sys

from absl import app, flags

from launch import log
from me_jax import rebuild
from me_jax.edits.edit import save_edit
from me_jax.models import convert, language_model, load, precision

_MODEL = flags.DEFINE_string(
  'model',
  None,
  'A preset, a Hugging Face directory or hub id, a .gguf file or a checkpoint. '
  'Not with --workdir, which knows its model.',
)
_PATH = flags.DEFINE_string(
  'path', '', "Where to find a preset's weights instead of its own source."
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'A run whose edits to apply; it must not be at work.'
)
_EDIT_STEP = flags.DEFINE_integer(
  'edit_step', None, 'The last edit step to apply; all if not given.'
)
_WITHOUT = flags.DEFINE_list(
  'without',
  [],
  'Edit steps to leave out, as 2,3; later ones were made in their presence.',
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Directory to write, new or empty: files of two models never mix. With '
  '--format=edit a new file.',
  required=True,
)
_FORMAT = flags.DEFINE_enum(
  'format',
  'hf',
  ['hf', 'orbax', 'edit'],
  'hf: config.json, safetensors and tokenizer.json. orbax: a checkpoint that '
  'only this project reads. edit: what a run changed, without the model.',
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  if (_MODEL.value is None) == (_WORKDIR.value is None):
    raise app.UsageError('Give either --model or --workdir.')
  if _MODEL.value and (_FORMAT.value == 'edit' or _EDIT_STEP.value is not None):
    raise app.UsageError('A --model has no edits; give a --workdir.')
  try:
    without = [int(step) for step in _WITHOUT.value]
  except ValueError as e:
    raise app.UsageError(f'--without: expected numbers: {e}.') from e
  log.show_warnings()
  try:
    output = pathlib.Path(_OUTPUT.value)
    if _FORMAT.value == 'edit':
      print(_write_edit(output, without))
    else:
      print(_write_model(output, without))
  except (OSError, ValueError) as e:
    sys.exit(f'Error: {e}')


def _write_model(output: pathlib.Path, without: list[int]) -> str:
  # Before the slow part.
  language_model.require_empty(output)
  if _WORKDIR.value is None:
    model = load.load_model(_MODEL.value, path=_PATH.value)
  else:
    model = rebuild.edited_model(
      _WORKDIR.value,
      until=_EDIT_STEP.value,
      without=without,
      weights=_PATH.value,
    )
  model = precision.in_dtype(model, 'float32')
  if _FORMAT.value == 'hf':
    convert.write_hf(output, model)
  else:
    load.save_orbax(output, model)
  return f'Wrote {model.name} (weights {model.fingerprint[:12]}) to {output}'


def _write_edit(output: pathlib.Path, without: list[int]) -> str:
  if output.exists():
    raise FileExistsError(f'{output} is there already: choose another --output')
  edit, metadata = rebuild.composed_edit(
    _WORKDIR.value, until=_EDIT_STEP.value, without=without
  )
  save_edit(output, edit, metadata)
  steps = metadata['edit_steps'] or 'none'
  return f'Wrote the edits of steps {steps} to {output}'


if __name__ == '__main__':
  app.run(main)
