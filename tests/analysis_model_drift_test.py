import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import trees
from me_jax.analysis import model_drift, weight_drift
from me_jax.checkpoints import Checkpoints
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Dense, LowRank
from me_jax.models import load
from me_jax.models.checkpoint_leaves import CheckpointLeaves

PATHS = [f'layers/{i}/mlp/down_proj/kernel' for i in (1, 2)]
F, D = 64, 32


def _low_rank(seed, rank=2):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(
    0.05 * rng.standard_normal(shape), jnp.float32
  )
  return LowRank(draw(F, rank), draw(rank, D))


@pytest.fixture(scope='module')
def edits():
  return [
    {PATHS[0]: _low_rank(i), PATHS[1]: _low_rank(9 + i)} for i in range(4)
  ]


@pytest.fixture(scope='module')
def edited(tiny, edits):
  params = tiny.params
  for edit in edits:
    params = edit_lib.apply_edit(params, edit)
  return params


def _assert_close(one, other, rtol=1e-4):
  np.testing.assert_allclose(one[:-1], other[:-1], rtol=rtol)
  assert one.dtype == other.dtype


def test_between_finds_what_was_edited(tiny, edited):
  before, after = trees.flatten(tiny.params), trees.flatten(edited)
  found = dict(model_drift.between(before, after))
  assert list(found) == PATHS
  for path, drift in found.items():
    base = weight_drift.reference(before[path])
    assert drift == weight_drift.of_kernels(base, after[path])
    assert 0 < drift.one_minus_r < 1
  same = 'layers/0/mlp/up_proj/kernel'
  [(path, drift)] = model_drift.between(before, after, [same])
  assert path == same and drift.pearson_r == 1 and drift.rel_fro == 0


def test_a_trajectory_is_what_the_states_show(tiny, edits, edited):
  leaves = trees.flatten(tiny.params)
  found = list(model_drift.trajectory(leaves, iter(edits), (4, 1)))
  assert [f[:2] for f in found] == [(s, p) for s in (1, 4) for p in PATHS]
  last = dict(model_drift.between(leaves, trees.flatten(edited)))
  for step, path, drift in found:
    if step == 4:
      _assert_close(drift, last[path])
  first = edit_lib.apply_edit(tiny.params, edits[0])
  then = dict(model_drift.between(leaves, trees.flatten(first)))
  _assert_close(found[0][2], then[PATHS[0]])


def test_dense_and_low_rank_steps_mix(tiny):
  leaves = trees.flatten(tiny.params)
  dense = Dense(0.01 * leaves[PATHS[1]])
  steps = [_low_rank(0), _low_rank(1), dense, _low_rank(2), dense]
  edits = [{PATHS[0]: change} for change in steps]
  params = tiny.params
  for edit in edits:
    params = edit_lib.apply_edit(params, edit)
  [(_, _, found)] = model_drift.trajectory(leaves, edits, [5])
  [(_, expected)] = model_drift.between(leaves, trees.flatten(params))
  _assert_close(found, expected)


def test_a_trajectory_out_of_checkpoints(tiny, edits, tmp_path):
  checkpoints = Checkpoints(tmp_path, tiny.fingerprint)
  for step, edit in enumerate(edits, start=1):
    checkpoints.save(step, edit, {})
  leaves = trees.flatten(tiny.params)
  stored = (step.edit for step in checkpoints)
  found = list(model_drift.trajectory(leaves, stored, [2, 3]))
  checkpoints.close()
  assert found == list(model_drift.trajectory(leaves, edits, [2, 3]))


def test_a_trajectory_reads_only_as_far_as_it_must(tiny, edits):
  def read():
    yield edits[0]
    raise AssertionError('step 2 was read')

  leaves = {PATHS[i]: trees.get(tiny.params, PATHS[i]) for i in (0, 1)}
  assert len(list(model_drift.trajectory(leaves, read(), [1]))) == 2


@pytest.mark.parametrize('steps', [(), (0, 1)])
def test_steps_count_from_one(steps):
  with pytest.raises(ValueError, match='from 1 on'):
    list(model_drift.trajectory({}, [], steps))


def test_steps_that_are_not_there(tiny, edits):
  leaves = trees.flatten(tiny.params)
  with pytest.raises(ValueError, match=r'no edit steps \[5, 6\]'):
    list(model_drift.trajectory(leaves, edits, [1, 5, 6]))


def test_errors_name_the_leaf(tiny, edited):
  before, after = trees.flatten(tiny.params), trees.flatten(edited)
  after[PATHS[1]] = after[PATHS[1]].at[0, 0].set(np.nan)
  with pytest.raises(FloatingPointError, match=f'^{PATHS[1]}: The edited'):
    list(model_drift.between(before, after))


@pytest.fixture(scope='module')
def directories(tiny, edited, tmp_path_factory):
  root = tmp_path_factory.mktemp('models')
  load.save_orbax(root / 'before', tiny)
  after = load.language_model(tiny.config, edited, tiny.tokenizer, name='after')
  load.save_orbax(root / 'after', after)
  return root / 'before', root / 'after'


def test_leaves_of_a_checkpoint(tiny, directories):
  leaves, expected = (
    CheckpointLeaves(directories[0]),
    trees.flatten(tiny.params),
  )
  assert list(leaves) == list(expected) and len(leaves) == len(expected)
  for path in PATHS:
    assert isinstance(leaves[path], np.ndarray)
    np.testing.assert_array_equal(leaves[path], expected[path])


def test_drift_of_checkpoints_is_that_of_the_trees(tiny, edited, directories):
  found = list(model_drift.between(*map(CheckpointLeaves, directories)))
  assert found == list(
    model_drift.between(trees.flatten(tiny.params), trees.flatten(edited))
  )


def test_a_leaf_is_read_to_the_host(directories):
  before = len(jax.live_arrays())
  leaves = CheckpointLeaves(directories[1])
  kernel = leaves[PATHS[0]]
  assert kernel.shape == (F, D) and len(jax.live_arrays()) == before


def test_no_such_leaf(directories):
  with pytest.raises(KeyError, match='Nearest: layers/1/mlp/down_proj'):
    CheckpointLeaves(directories[0])['layers/1/mlp/down/kernel']


def test_no_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match='no finished checkpoint'):
    CheckpointLeaves(tmp_path)


def test_a_damaged_checkpoint(tiny, tmp_path):
  load.save_orbax(tmp_path / 'model', tiny)
  for file in (tmp_path / 'model' / 'params').rglob('d/*'):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(ValueError, match='is damaged'):
    [CheckpointLeaves(tmp_path / 'model')[path] for path in PATHS]
