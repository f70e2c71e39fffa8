"""The programs that write about runs, from workdirs to files."""

import os
import pathlib
import subprocess
import sys

from reporting_workdirs import Made, make, rome

from me_jax.reporting.measured_run import read_run

_REPO = pathlib.Path(__file__).resolve().parent.parent


def _start(program, *args):
  return subprocess.Popen(
    [sys.executable, '-m', program, *args],
    cwd=_REPO,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_it_writes_a_report_or_says_why_not(tmp_path):
  run = make(tmp_path / 'run', Made(method=rome(), edits=(0, 1)))
  out = tmp_path / 'out'
  whole = _start('launch.report', f'--workdirs={run},{run}', f'--output={out}')
  wrong = _start(
    'launch.report',
    f'--workdirs={run},{tmp_path}',
    f'--output={tmp_path / "no"}',
  )
  printed, errors = whole.communicate()
  assert whole.returncode == 0, errors
  assert f'The page: {out / "index.html"}' in printed and errors == ''
  assert (out / 'tables' / 'table1.md').read_text().startswith('### General')
  _, errors = wrong.communicate()
  assert wrong.returncode == 1
  assert errors == (
    f'Error: {tmp_path} is not the workdir of a run: it has no config.json. '
    'Name directories that launch.run or launch.evaluate wrote.\n'
  )
  assert not (tmp_path / 'no').exists()


def test_it_fills_a_document_or_says_why_not(tmp_path):
  run = make(
    tmp_path / 'runs' / 'rome',
    Made(method=rome(), edits=(0, 1), num_edits=1),
  )
  template, out = tmp_path / 'template.md', tmp_path / 'out.md'
  template.write_text("{{ value('rome', 'edit', 'unedited_reliability', 1) }}")
  flags = (f'--template={template}', f'--output={out}')
  whole = _start('launch.document', f'--root={run.parent}', *flags)
  wrong = _start('launch.document', f'--root={run}', *flags)
  printed, errors = whole.communicate()
  assert (whole.returncode, printed, errors) == (0, f'{out}\n', '')
  row = read_run(run).row('edit', 'unedited_reliability', 1)
  assert out.read_text() == f'{row.value:.1f}'
  _, errors = wrong.communicate()
  assert wrong.returncode == 1
  assert errors == f'Error: {run / "rome"} is not a directory.\n'
