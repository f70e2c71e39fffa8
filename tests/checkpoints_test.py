import json
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from me_jax import checkpoints as checkpoints_lib
from me_jax import trees
from me_jax.checkpoints import Checkpoints
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Dense, LowRank

PATH = 'layers/0/mlp/down_proj/kernel'
OTHER = 'layers/1/mlp/down_proj/kernel'


def _random(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


BASE = trees.unflatten({PATH: _random(1, 48, 32), OTHER: _random(2, 48, 32)})
FINGERPRINT = trees.fingerprint(BASE)


def _edit(step, path=PATH):
  return {path: LowRank(_random(10 + step, 48, 1), _random(90 + step, 1, 32))}


def _bits(params):
  return {p: np.asarray(v).tobytes() for p, v in trees.flatten(params).items()}


@pytest.fixture
def opened(tmp_path):
  """A function that opens the same directory again."""
  managers = []

  def again(fingerprint=FINGERPRINT):
    managers.append(Checkpoints(tmp_path / 'checkpoints', fingerprint))
    return managers[-1]

  yield again
  for manager in managers:
    manager.close()


@pytest.fixture
def three(opened, tmp_path):
  """The directory of three saved steps."""
  checkpoints = opened()
  for step in (1, 2, 3):
    checkpoints.save(step, _edit(step), {'requests': [], 'note': 'ü'})
  return tmp_path / 'checkpoints'


def test_what_is_saved_is_loaded(opened):
  checkpoints = opened()
  assert checkpoints.last_step == 0
  edit = {**_edit(1), OTHER: Dense(_random(3, 48, 32))}
  # Numbers that decimal text or another dtype would change.
  edit[PATH] = edit[PATH]._replace(
    right=edit[PATH].right.at[0, :3].set([-0.0, 1e-45, 3.4e38])
  )
  record = {'info': [{'loss': 0.1, 'text': 'naïve'}], 'seconds': 1.5}
  checkpoints.save(1, edit, record)
  loaded = opened().load(1)
  assert set(loaded.edit) == {PATH, OTHER}
  for path, change in edit.items():
    assert type(loaded.edit[path]) is type(change)
    for saved, found in zip(change, loaded.edit[path], strict=True):
      assert found.dtype == jnp.float32 and found.shape == saved.shape
      assert np.asarray(found).tobytes() == np.asarray(saved).tobytes()
  assert loaded.record.items() >= record.items()
  assert loaded.record['edit_step'] == 1
  assert loaded.record['edit_sha256'] == edit_lib.digest(edit)
  assert loaded.record['previous_fingerprint'] == FINGERPRINT


def test_the_leaves_of_a_state_keep_their_order(opened):
  """Twelve, of which '10' is before '2' in the alphabet."""
  state = tuple(_random(i, i + 1) for i in range(12))
  opened().save(1, _edit(1), {'requests': []}, state)
  found = opened().load(1).editor_state(state)
  for leaf, expected in zip(found, state, strict=True):
    np.testing.assert_array_equal(leaf, expected)


def test_every_state_is_rebuilt_to_the_bit(opened):
  checkpoints = opened()
  states = [BASE]
  for step in range(1, 6):
    edit = _edit(step, PATH if step % 2 else OTHER)
    checkpoints.save(step, edit, {})
    states.append(edit_lib.apply_edit(states[-1], edit))
  again = opened()
  assert again.last_step == 5
  for step, state in enumerate(states):
    assert _bits(again.replay(BASE, until=step)) == _bits(state)
  assert _bits(again.replay(BASE)) == _bits(states[5])
  assert _bits(BASE) != _bits(states[1]) != _bits(states[2])


def test_one_edit_is_left_out(opened, three):
  expected = edit_lib.apply_edit(BASE, _edit(1))
  expected = edit_lib.apply_edit(expected, _edit(3))
  assert _bits(opened().replay(BASE, without=[2])) == _bits(expected)
  assert _bits(opened().replay(BASE, without=[1, 2, 3])) == _bits(BASE)


def test_fingerprints_name_states(opened, three):
  names = [opened().fingerprint(step) for step in range(4)]
  assert names[0] == FINGERPRINT and len(set(names)) == 4
  records = [step.record for step in opened()]
  assert [r['state_fingerprint'] for r in records] == names[1:]
  assert [r['previous_fingerprint'] for r in records] == names[:-1]
  with pytest.raises(ValueError, match=r'steps 1 \.\.\. 3, not 4'):
    opened().fingerprint(4)


def test_other_base_weights_are_refused(opened, three):
  checkpoints = opened('0' * 64)
  with pytest.raises(ValueError, match='step 1 .* was made on weights') as e:
    checkpoints.load(1)
  assert FINGERPRINT[:12] in str(e.value) and '000000000000' in str(e.value)
  assert 'Use the model that the run began with' in str(e.value)


def test_steps_are_saved_in_order(opened, three):
  for step in (3, 5):
    with pytest.raises(ValueError, match=f'expected 4, got {step}'):
      opened().save(step, _edit(step), {})


def test_a_gap_is_refused(opened, three):
  shutil.rmtree(three / '2')
  with pytest.raises(ValueError, match=r'lacks edit steps \[2\] below step 3'):
    opened()
  shutil.rmtree(three / '3')
  assert opened().last_step == 1


def _data_files(step):
  return [p for p in (step / 'edit').rglob('*') if p.parent.name == 'd']


def _truncate(step):
  for path in _data_files(step):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(step):
  for path in _data_files(step):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _swap_content(step):
  """Readable, but of another step."""
  shutil.rmtree(step / 'edit')
  shutil.copytree(step.parent / '1' / 'edit', step / 'edit')


def _other_shapes(step):
  path = step / 'record' / 'metadata'
  record = json.loads(path.read_text())
  record['shapes'][PATH][0] = [48, 2]
  path.write_text(json.dumps(record))


@pytest.mark.parametrize(
  'damage',
  [
    _truncate,
    _flip,
    _swap_content,
    _other_shapes,
    lambda step: (step / 'edit' / 'manifest.ocdbt').unlink(),
    lambda step: (step / 'record' / 'metadata').unlink(),
    lambda step: (step / 'record' / 'metadata').write_text('{"requests": ['),
    lambda step: (step / 'record' / 'metadata').write_text('[]'),
    lambda step: (step / 'record' / 'metadata').write_text('{}'),
    lambda step: shutil.rmtree(step / 'edit'),
    lambda step: shutil.rmtree(step / 'record'),
  ],
  ids=[
    'truncated',
    'flipped',
    'other_content',
    'other_shapes',
    'no_manifest',
    'no_record',
    'cut_record',
    'list_record',
    'empty_record',
    'no_edit_directory',
    'no_record_directory',
  ],
)
def test_a_damaged_step_says_what_to_do(opened, three, damage):
  damage(three / '2')
  checkpoints = opened()
  checkpoints.load(1)
  with pytest.raises(ValueError, match='Edit step 2 in .* is damaged') as e:
    checkpoints.replay(BASE)
  assert 'Delete the directories 2 and above and run the same' in str(e.value)
  assert len(str(e.value)) < 600

  # What it says to do works.
  for step in (2, 3):
    shutil.rmtree(three / str(step))
  repaired = opened()
  repaired.save(2, _edit(2), {})
  assert repaired.load(2).record['edit_step'] == 2


def test_an_unfinished_save_is_ignored_and_cleaned_up(opened, three):
  unfinished = three / '3.orbax-checkpoint-tmp'
  (three / '3').rename(unfinished)
  (unfinished / 'record' / 'metadata').write_text('{"requests"')
  checkpoints = opened()
  assert checkpoints.last_step == 2
  checkpoints.save(3, _edit(3), {})
  assert sorted(p.name for p in three.iterdir()) == ['1', '2', '3']
  assert checkpoints.load(3).record['edit_sha256'] == edit_lib.digest(_edit(3))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_non_finite_edit_is_not_saved(opened, three, bad):
  left, right = _edit(4)[PATH]
  checkpoints = opened()
  with pytest.raises(FloatingPointError, match=f'{PATH} has 1 of 32 .* right'):
    checkpoints.save(4, {PATH: LowRank(left, right.at[0, 5].set(bad))}, {})
  assert sorted(p.name for p in three.iterdir()) == ['1', '2', '3']
  assert checkpoints.last_step == 3
  checkpoints.save(4, _edit(4), {})


def test_a_kernel_that_overflows_is_refused():
  checkpoints_lib.check_finite(BASE, _edit(1))
  params = trees.set_leaf(BASE, PATH, trees.get(BASE, PATH).at[0].set(np.inf))
  checkpoints_lib.check_finite(params, _edit(1, OTHER))
  with pytest.raises(
    FloatingPointError, match=f'{PATH} is not finite.*not sav'
  ):
    checkpoints_lib.check_finite(params, _edit(1))


def test_a_step_of_a_7b_model_is_small(opened, tmp_path):
  left, right = _random(1, 11_008, 1), _random(2, 1, 4096)
  steps = [{'loss': 1.0, 'nll': 1.0, 'kl': 0.0, 'delta_norm': 2.0}] * 25
  record = {'requests': [{'prompt': 'x' * 500}], 'info': [{'steps': steps}]}
  opened().save(1, {PATH: LowRank(left, right)}, record)
  files = [p for p in (tmp_path / 'checkpoints').rglob('*') if p.is_file()]
  assert 60_000 < sum(p.stat().st_size for p in files) < 1_000_000


@pytest.mark.parametrize('free, error', [(0, OSError), (1 << 30, RuntimeError)])
def test_a_full_disk_is_explained(opened, three, monkeypatch, free, error):
  checkpoints = opened()

  def save(manager, step, args):
    raise RuntimeError('RESOURCE_EXHAUSTED: many words')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', save)
  usage = shutil.disk_usage(three)._replace(free=free)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(error) as e:
    checkpoints.save(4, _edit(4), {})
  if error is OSError:
    assert 'the disk is full' in str(e.value) and 'resumes' in str(e.value)
    assert str(three / '4') in str(e.value)
  monkeypatch.undo()
  assert checkpoints.last_step == 3
  checkpoints.save(4, _edit(4), {})
  assert opened().last_step == 4


def test_reading_costs_the_same_for_every_step(opened, monkeypatch):
  checkpoints = opened()
  steps = 12
  for step in range(1, steps + 1):
    checkpoints.save(step, _edit(step), {})
  checkpoints = opened()
  restored = []
  restore = ocp.CheckpointManager.restore

  def counted(manager, step, args):
    restored.append(step)
    return restore(manager, step, args=args)

  monkeypatch.setattr(ocp.CheckpointManager, 'restore', counted)
  checkpoints.replay(BASE)
  # The record and the factors, once each: linear in the number of steps.
  assert restored == [s for step in range(1, steps + 1) for s in (step, step)]
  restored.clear()
  checkpoints.fingerprint(steps)
  assert restored == []


def test_records_are_read_without_opening_the_run(three):
  (three / '4.orbax-checkpoint-tmp').mkdir()
  (three / '5').mkdir()
  before = sorted(three.rglob('*'))
  records = checkpoints_lib.read_records(three)
  assert [r['edit_step'] for r in records] == [1, 2, 3]
  assert records[0]['note'] == 'ü'
  assert sorted(three.rglob('*')) == before
  assert checkpoints_lib.read_records(three / 'nothing') == []
  (three / '2' / 'record' / 'metadata').write_text('{')
  with pytest.raises(ValueError, match='2/record/metadata is damaged'):
    checkpoints_lib.read_records(three)
