import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import checkpoints as checkpoints_lib
from me_jax import rebuild, trees
from me_jax.edits.edit import LowRank, apply_edit
from me_jax.models import language_model, load
from me_jax.workdir import Workdir

PATH = 'layers/2/mlp/down_proj/kernel'


def _edit(step):
  rng = np.random.default_rng(step)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {PATH: LowRank(draw(64, 1), draw(1, 32))}


@pytest.fixture(scope='module')
def run(tiny, tmp_path_factory):
  """The directory of a run of five facts in three edit steps."""
  workdir = Workdir(tmp_path_factory.mktemp('run'))
  model = {'name': 'tiny', 'path': ''}
  config = {
    'model': model,
    'method': {'name': 'rome'},
    'edit_batch_size': 2,
  }
  identity = {'config': config, 'weights': tiny.fingerprint}
  workdir.claim(identity, {})
  checkpoints = checkpoints_lib.Checkpoints(
    workdir.checkpoints, tiny.fingerprint
  )
  for step in (1, 2, 3):
    facts = [{'case_id': f'{step}-{i}'} for i in range(2 if step < 3 else 1)]
    checkpoints.save(step, _edit(step), {'requests': facts})
  checkpoints.close()
  return workdir.path


def _bytes(params):
  return {p: np.asarray(v).tobytes() for p, v in trees.flatten(params).items()}


CHOICES = [
  ({}, (1, 2, 3)),
  ({'until': 2}, (1, 2)),
  ({'until': 0}, ()),
  ({'without': [1, 3]}, (2,)),
  ({'until': 2, 'without': [1]}, (2,)),
  ({'until': 2, 'without': [2, 3]}, (1,)),
]


@pytest.mark.parametrize('choice, steps', CHOICES)
def test_the_model_after_some_edits(tiny, run, choice, steps):
  expected = tiny.params
  for step in steps:
    expected = apply_edit(expected, _edit(step))
  found = rebuild.edited_model(run, **choice)
  assert _bytes(found.params) == _bytes(expected)
  assert found.fingerprint == language_model.fingerprint(tiny.config, expected)
  assert found.name == 'tiny' and found.config == tiny.config


@pytest.mark.parametrize('choice, steps', CHOICES)
def test_what_was_done_to_it(run, choice, steps):
  found = rebuild.edited_state(run, **choice)
  expected = rebuild.edited_model(run, **choice)
  assert found.model.fingerprint == expected.fingerprint
  assert found.edit_step == max(steps, default=0)
  assert found.num_edits == sum({1: 2, 2: 2, 3: 1}[step] for step in steps)
  assert (found.edit_batch_size, found.method) == (2, 'rome')


@pytest.mark.parametrize('choice, steps', CHOICES)
def test_the_edits_as_one(tiny, run, choice, steps):
  edit, metadata = rebuild.composed_edit(run, **choice)
  assert metadata == {
    'base': 'tiny',
    'base_fingerprint': tiny.fingerprint,
    'edit_steps': ','.join(map(str, steps)),
  }
  assert edit.keys() == ({PATH} if steps else set())
  if steps:
    assert edit[PATH].left.shape == (64, len(steps))
  expected = tiny.params
  for step in steps:
    expected = apply_edit(expected, _edit(step))
  # Entries are about 1, sums of up to four products.
  np.testing.assert_allclose(
    trees.get(apply_edit(tiny.params, edit), PATH),
    trees.get(expected, PATH),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'rebuilt', [rebuild.edited_model, rebuild.composed_edit]
)
@pytest.mark.parametrize(
  'choice, missing',
  [({'until': 4}, '4'), ({'until': -1}, '-1'), ({'without': [5, 2]}, '5')],
)
def test_steps_that_are_not_there(run, rebuilt, choice, missing):
  with pytest.raises(ValueError, match=rf'1 \.\.\. 3; there is no {missing}\.'):
    rebuilt(run, **choice)


def test_no_run(tmp_path):
  with pytest.raises(FileNotFoundError, match='no config.json.*launch.run'):
    rebuild.edited_model(tmp_path / 'none')
  assert not (tmp_path / 'none').exists()


def test_other_weights_than_the_run_began_with(run, tmp_path):
  copy = tmp_path / 'run'
  shutil.copytree(run, copy)
  path = copy / 'config.json'
  config = json.loads(path.read_text())
  config['identity']['weights'] = '0' * 64
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match='began with weights 000000000000, but '):
    rebuild.edited_model(copy)


def test_weights_that_have_moved(tiny, run, tmp_path):
  load.save_orbax(tmp_path / 'moved', tiny)
  found = rebuild.edited_model(run, until=1, weights=str(tmp_path / 'moved'))
  expected = apply_edit(tiny.params, _edit(1))
  assert _bytes(found.params) == _bytes(expected)


def test_a_run_at_work_is_refused(run):
  held = Workdir(run)
  with pytest.raises(OSError, match='Another process is running'):
    rebuild.edited_model(run)
  del held
  rebuild.edited_model(run, until=0)
