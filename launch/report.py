"""Makes a page, tables and figures of what runs measured.

    python -m launch.report --workdirs=runs/rome,runs/memit --output=report

Reads workdirs of launch.run, also while the run goes on, and of
launch.evaluate: unedited models stand beside runs of the same weights, edited
ones are a part of the run that made them.
Nothing is written there. `report/index.html` is the page; `report/tables` has
Markdown, LaTeX and CSV, `report/figures` PNG and PDF, each with the CSV that it
was drawn from.
"""

import sys

from absl import app, flags

from launch import log

_WORKDIRS = flags.DEFINE_list(
  'workdirs', None, 'Directories of runs, as runs/rome,runs/memit.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Where the report goes; files of the same name are replaced.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(
      f'Unexpected arguments: {argv[1:]}. Join several workdirs by commas.'
    )
  log.show_warnings()
  try:
    run()
  except ModuleNotFoundError as e:
    if e.name != 'matplotlib':
      raise
    sys.exit("Error: figures need matplotlib: pip install 'me_jax[report]'.")
  except (OSError, ValueError) as e:
    sys.exit(f'Error: {e}')


def run() -> None:
  """Everything between the flags and the report."""
  # Here, for it needs matplotlib, which is an extra.
  from me_jax.reporting import measured_run, write

  names = list(dict.fromkeys(filter(None, _WORKDIRS.value)))
  if not names:
    raise ValueError('--workdirs names no directory.')
  runs = [measured_run.read_run(name) for name in names]
  paths = write.write(runs, _OUTPUT.value)
  page = next(path for path in paths if path.name == 'index.html')
  print(f'{len(paths)} files. The page: {page}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['workdirs', 'output'])
  app.run(main)
