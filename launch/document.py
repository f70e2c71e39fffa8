"""Fills a document with what runs measured.

    python -m launch.document --root=runs/study \\
      --template=docs/results/smollm2_135m.template.md \\
      --output=docs/results/smollm2_135m.md

The template is Markdown; what it may ask for stands in
`me_jax/reporting/document.py`. `--root` holds the workdirs, under the names
that the template calls them.
"""

import sys

from absl import app, flags

from launch import log

_ROOT = flags.DEFINE_string('root', None, 'Directory of the workdirs.')
_TEMPLATE = flags.DEFINE_string('template', None, 'The text with its gaps.')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'The document; one of that name is replaced.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  log.show_warnings()
  try:
    run()
  except ModuleNotFoundError as e:
    if e.name not in ('matplotlib', 'jinja2'):
      raise
    sys.exit(f"Error: {e.name} is missing: pip install 'me_jax[report]'.")
  except (OSError, ValueError) as e:
    sys.exit(f'Error: {e}')


def run() -> None:
  """Everything between the flags and the document."""
  # Here, for it needs what is an extra.
  from me_jax.reporting import document

  for path in document.make(_TEMPLATE.value, _OUTPUT.value, _ROOT.value):
    print(path)


if __name__ == '__main__':
  flags.mark_flags_as_required(['root', 'template', 'output'])
  app.run(main)
