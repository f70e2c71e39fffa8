"""Writes a model for use elsewhere.

    python -m launch.export --model=smollm2_135m --output=/tmp/smollm2

The directory then loads with transformers' AutoModelForCausalLM and
AutoTokenizer, or here by its path.
"""

import sys

from absl import app, flags, logging

from me_jax.models import convert, language_model, load

_MODEL = flags.DEFINE_string(
  'model',
  None,
  'A preset, a Hugging Face directory or hub id, a .gguf file or a checkpoint.',
  required=True,
)
_PATH = flags.DEFINE_string(
  'path', '', "Where to find a preset's weights instead of its own source."
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Directory to write, new or empty: files of two models never mix.',
  required=True,
)
_FORMAT = flags.DEFINE_enum(
  'format',
  'hf',
  ['hf', 'orbax'],
  'hf: config.json, safetensors and tokenizer.json. orbax: a checkpoint that '
  'only this project reads.',
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  logging.set_verbosity(logging.WARNING)
  try:
    # Before the slow part.
    language_model.require_empty(_OUTPUT.value)
    model = load.load_model(_MODEL.value, path=_PATH.value)
    if _FORMAT.value == 'hf':
      convert.write_hf(_OUTPUT.value, model)
    else:
      load.save_orbax(_OUTPUT.value, model)
  except (OSError, ValueError) as e:
    sys.exit(f'{e}')
  print(
    f'Wrote {model.name} (weights {model.fingerprint[:12]}) to {_OUTPUT.value}'
  )


if __name__ == '__main__':
  app.run(main)
