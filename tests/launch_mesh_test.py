"""The programs on eight devices, with a random model of four layers."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from me_jax import results

_REPO = pathlib.Path(__file__).resolve().parent.parent
_RUN = (
  'launch.run',
  '--config=experiments/quickstart.py:model=tiny',
  '--config.method.layer=1',
  '--config.method.mom2_adjustment=False',
  '--config.method.v_num_grad_steps=4',
  "--config.method.context_templates=('{}', 'So it goes. {}')",
  '--config.num_edits=2',
  '--config.eval_steps=(0,2)',
  '--config.limit=2',
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('mesh')


@pytest.fixture(scope='module')
def finish(root):
  """A function that runs a program to its end on so many devices."""

  def finish(devices, module, *args):
    env = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      # Compiling takes most of the time here.
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      # Not one for all: the unedited model would be asked once for all runs.
      'ME_JAX_CACHE': str(root / f'cache{devices}'),
    }
    return subprocess.run(
      [sys.executable, '-m', module, *args],
      capture_output=True,
      text=True,
      env=env,
      cwd=_REPO,
    )

  return finish


@pytest.fixture(scope='module')
def run(finish, root):
  """A run on one device."""
  found = finish(1, *_RUN, f'--workdir={root / "run"}')
  assert found.returncode == 0, found.stderr
  assert 'on 1 x cpu\n' in found.stdout
  return root / 'run'


def _values(workdir, step):
  return {
    (row.task, row.metric): row.value
    for row in results.read_rows(workdir / 'results.jsonl')
    if row.edit_step == step and row.task == 'sample_ppl'
  }


def _assert_near(found, expected, tolerance=1e-5):
  assert found.keys() == expected.keys() and found
  for key, value in expected.items():
    np.testing.assert_allclose(found[key], value, rtol=tolerance, err_msg=key)


def test_a_run_on_a_mesh_measures_the_same(finish, run, root):
  found = finish(8, *_RUN, '--mesh=4x2', f'--workdir={root / "mesh"}')
  assert found.returncode == 0, found.stderr
  holds = 'of which each holds all of embed_tokens, lm_head\n'
  assert f'on 8 x cpu as 4x2, {holds}' in found.stdout
  _assert_near(_values(root / 'mesh', 0), _values(run, 0))
  # What rounding makes of four steps of a search.
  _assert_near(_values(root / 'mesh', 2), _values(run, 2), tolerance=1e-4)


def test_a_run_is_evaluated_on_another_mesh(finish, run, root):
  """By default each device has a copy."""
  found = finish(
    8,
    'launch.evaluate',
    f'--run={run}',
    '--tasks=sample_ppl',
    '--limit=2',
    f'--workdir={root / "evaluation"}',
  )
  assert found.returncode == 0, found.stderr
  assert 'on 8 x cpu as 8x1\n' in found.stdout
  _assert_near(_values(root / 'evaluation', 2), _values(run, 2))


@pytest.mark.parametrize(
  'mesh, words', [('3x2', 'Take one of 8x1, 4x2'), ('8', 'DATAxMODEL')]
)
def test_a_wrong_mesh_is_refused(finish, root, mesh, words):
  found = finish(8, *_RUN, f'--mesh={mesh}', f'--workdir={root / "wrong"}')
  assert found.returncode == 1
  assert found.stderr.splitlines()[-1].startswith('Error: A mesh')
  assert words in found.stderr
