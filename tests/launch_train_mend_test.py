"""Whole trainings by the program, on a random model of four layers."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import small_training

from me_jax import files
from me_jax.edits import mend_loop, tensor_file

_REPO = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A function that starts the program; all share compiled functions."""
  root = tmp_path_factory.mktemp('train')
  small_training.write(root)
  unset = ('ME_JAX_DATA', 'ME_JAX_CACHE')
  env = {k: v for k, v in os.environ.items() if k not in unset}
  env |= {
    'JAX_PLATFORMS': 'cpu',
    # Compiling takes most of the time here; all are compiled alike.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }

  def start(workdir, *arguments):
    return subprocess.Popen(
      [
        *(sys.executable, '-m', 'launch.train_mend'),
        f'--config={root / "config.py"}',
        f'--data_root={root}',
        f'--cache_dir={root / "cache"}',
        f'--workdir={workdir}',
        *arguments,
      ],
      cwd=_REPO,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def _await_validation(process, workdir):
  deadline = time.monotonic() + 600
  while not (workdir / mend_loop.CURVE).is_file():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.02)


def _assert_same(workdir, whole):
  """All bits; those of the networks less the order of the file's header."""
  for name in (mend_loop.CURVE, mend_loop.EVENTS):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()
  found, expected = (
    tensor_file.read(directory / mend_loop.NETWORK)
    for directory in (workdir, whole)
  )
  assert tensor_file.digest(found[0]) == tensor_file.digest(expected[0])
  assert found[1] == expected[1]


def _finish(process):
  out, err = process.communicate(timeout=600)
  return process.returncode, out, err


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, *_finish(start(workdir))


def test_what_it_says_and_leaves(whole):
  workdir, code, out, err = whole
  assert code == 0, err
  counts = '(dropped_prompt_in_evaluation 1, training 6, validation 2)'
  assert f'Facts: zsre_train and counterfact_train {counts}' in out
  assert 'at most 40 tokens: 6 to learn from, 2 for validation' in out
  assert f'Networks: {workdir / mend_loop.NETWORK}' in out
  assert 'After 4 examples: ' in err and 'reliability' in err
  curve = files.read_jsonl(workdir / mend_loop.CURVE)
  assert len(curve) == 20 + 10
  assert (workdir / mend_loop.EVENTS).stat().st_size > 1000
  _, metadata = tensor_file.read(workdir / mend_loop.NETWORK)
  notes = json.loads(metadata['notes'])
  identity = json.loads((workdir / 'config.json').read_text())['identity']
  assert notes['facts'] == identity['facts']
  assert notes['config']['layers'] == [3]


def test_a_killed_training_ends_with_the_same_networks(start, whole, tmp_path):
  process = start(tmp_path)
  _await_validation(process, tmp_path)
  process.kill()
  code, *_ = _finish(process)
  assert code == -signal.SIGKILL
  code, _, err = _finish(start(tmp_path))
  assert code == 0, err
  _assert_same(tmp_path, whole[0])


def test_sigterm_ends_it_and_the_same_command_goes_on(start, whole, tmp_path):
  process = start(tmp_path)
  _await_validation(process, tmp_path)
  process.terminate()
  code, _, err = _finish(process)
  assert code == 128 + signal.SIGTERM
  assert 'Stopped by SIGTERM. The same command resumes.\n' in err
  code, _, err = _finish(start(tmp_path))
  assert code == 0, err
  _assert_same(tmp_path, whole[0])


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--config.method.lr=0.5', 'config.method.lr: 0.001 there, 0.5 now'),
    ('--config.method.rnk=4', "no setting 'method.rnk'. Nearest: method.rank"),
    ('--config.facts=zsre,x', "Unknown facts 'x'; expected one"),
    ('--config.method.step_sign=up', 'step_sign must be one of minus, plus'),
  ],
)
def test_what_is_refused(start, whole, argument, message):
  code, _, err = _finish(start(whole[0], argument))
  assert code == 1
  assert message in err and err.count('\n') == 1
