import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np

from me_jax.checkpoints import Checkpoints
from me_jax.edits.edit import LowRank, apply_edit, load_edit
from me_jax.models import language_model, load
from me_jax.workdir import Workdir

PATH = 'layers/2/mlp/down_proj/kernel'


def _edit(step):
  rng = np.random.default_rng(step)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {PATH: LowRank(draw(64, 1), draw(1, 32))}


def _export(*args):
  """Starts the program; the tests wait for several at once."""
  return subprocess.Popen(
    [sys.executable, '-m', 'launch.export', *args],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )


def test_what_a_run_made_of_the_model(tiny, tmp_path):
  workdir = Workdir(tmp_path / 'run')
  model = {'name': 'tiny', 'path': ''}
  identity = {'config': {'model': model}, 'weights': tiny.fingerprint}
  workdir.claim(identity, {})
  checkpoints = Checkpoints(workdir.checkpoints, tiny.fingerprint)
  for step in (1, 2, 3):
    checkpoints.save(step, _edit(step), {'requests': []})
  checkpoints.close()
  run = f'--workdir={workdir.path}'
  del workdir

  expected = apply_edit(apply_edit(tiny.params, _edit(1)), _edit(3))
  output = tmp_path / 'model'
  done = _export(run, '--without=2', f'--output={output}')
  out, err = done.communicate()
  assert done.returncode == 0, err
  assert language_model.fingerprint(tiny.config, expected)[:12] in out
  found = load.load_model(str(output))
  assert found.fingerprint == language_model.fingerprint(tiny.config, expected)

  output = tmp_path / 'edit.safetensors'
  done = _export(run, '--edit_step=2', '--format=edit', f'--output={output}')
  out, err = done.communicate()
  assert done.returncode == 0, err
  assert 'Wrote the edits of steps 1,2 to' in out
  assert load_edit(output)[PATH].left.shape == (64, 2)
  # The log of the storage is not for the user.
  assert err == ''


def test_refusals(tmp_path):
  (tmp_path / 'there').write_text('')
  run, out = f'--workdir={tmp_path}', f'--output={tmp_path / "out"}'
  there = f'--output={tmp_path / "there"}'
  started = {
    'holds no run: there is no config.json': _export(run, out),
    'is there already': _export(run, there, '--format=edit'),
    '--without: expected numbers': _export(run, out, '--without=1,x'),
  }
  for message, process in started.items():
    _, err = process.communicate()
    assert process.returncode == 1 and message in err, err
    assert 'Traceback' not in err
  assert not (tmp_path / 'out').exists()
