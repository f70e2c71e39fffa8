import dataclasses

import eight_devices
import jax
import numpy as np
import pytest

from me_jax import files, preemption, sharding
from me_jax.config import MendConfig
from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.edits import (
  mend_examples,
  mend_file,
  mend_loop,
  mend_training,
  tensor_file,
)

CONFIG = MendConfig(
  layers=(3,),
  rank=8,
  lr=1e-3,
  alpha_lr=1e-3,
  accumulate=2,
  max_iters=12,
  val_interval=4,
)


@pytest.fixture(scope='module')
def compiled(tiny):
  """Trainings of this file share their compiled functions."""
  return (
    mend_training.make_update(CONFIG, tiny.config),
    mend_training.make_validate(CONFIG, tiny.config),
  )


@pytest.fixture
def job(tiny, compiled, monkeypatch):
  update, validate = compiled
  monkeypatch.setattr(mend_training, 'make_update', lambda *_: update)
  monkeypatch.setattr(mend_training, 'make_validate', lambda *_: validate)
  examples = mend_examples.make_examples(
    tiny.tokenizer,
    [
      EditRequest(
        case_id=name,
        subject=name,
        prompt='Where is {}?',
        target_new=target,
        rephrase_prompts=(f'{name} is in',),
        locality_prompts=(LocalityPrompt(prompt='Who am I', answer='Me'),),
      )
      for name, target in zip(
        ('Ada', 'Bob', 'Cyd', 'Dan', 'Eve'),
        ('Rome', 'Oslo', 'Bari', 'Nice', 'Kiel'),
        strict=True,
      )
    ],
    max_length=40,
  )

  def job(directory, **changes):
    config = changes.pop('config', CONFIG)
    return mend_loop.Training(
      config=config,
      model=tiny,
      training=examples[:3],
      validation=examples[3:],
      directory=directory,
      notes={'facts': 'five'},
      kept_bytes=changes.pop('kept_bytes', 1 << 20),
      **changes,
    )

  return job


def _content(directory):
  """All bits; those of the networks less the order of the file's header."""
  tensors, metadata = tensor_file.read(directory / mend_loop.NETWORK)
  return (
    tensor_file.digest(tensors),
    metadata,
    (directory / mend_loop.CURVE).read_bytes(),
    (directory / mend_loop.EVENTS).read_bytes(),
  )


@pytest.fixture
def undisturbed(job, tmp_path):
  best = mend_loop.train(job(tmp_path / 'whole'))
  return best, tmp_path / 'whole'


def test_what_a_training_leaves(tiny, undisturbed):
  best, directory = undisturbed
  curve = files.read_jsonl(directory / mend_loop.CURVE)
  steps = [r['iteration'] for r in curve if r['part'] == 'train']
  validations = [r for r in curve if r['part'] == 'validation']
  assert steps == list(range(2, 13, 2))
  assert [r['iteration'] for r in validations] == [4, 8, 12]
  assert best == min(validations, key=lambda r: r['loss'])
  assert 0 < validations[0]['reliability'] + validations[0]['locality']
  trained = mend_file.load(
    directory / mend_loop.NETWORK, CONFIG, tiny.config, tiny.fingerprint
  )
  assert trained.notes['iteration'] == best['iteration']
  assert trained.notes['facts'] == 'five'


class _Killed(Exception):
  pass


def _killed_after(iteration):
  def report(at, scores):
    del scores
    if at == iteration:
      raise _Killed

  return report


@pytest.mark.parametrize('kept_bytes', [1 << 20, 0])
def test_a_killed_training_ends_with_the_same_bytes(
  job, undisturbed, tmp_path, kept_bytes
):
  """Killed between the validation and the checkpoint, twice; nothing kept in
  memory from one example to its next turn makes no difference either."""
  directory = tmp_path / 'resumed'
  for iteration in (8, 12):
    with pytest.raises(_Killed):
      mend_loop.train(job(directory, report=_killed_after(iteration)))
  best = mend_loop.train(job(directory, kept_bytes=kept_bytes))
  assert best == undisturbed[0]
  assert _content(directory) == _content(undisturbed[1])
  # A training that is over is not begun again.
  assert mend_loop.train(job(directory, report=_killed_after(12))) == best


def test_a_training_that_is_told_to_stop_resumes_at_its_step(
  job, undisturbed, tmp_path, monkeypatch
):
  """While validation is prepared, between two validations, and at one."""
  directory = tmp_path / 'stopped'
  examples = len(job(directory).validation)
  for steps in (0, 3, 1):
    told = iter([*[False] * (examples + steps - 1), True])
    monkeypatch.setattr(preemption, 'is_told', lambda told=told: next(told))
    with pytest.raises(SystemExit) as stopped:
      mend_loop.train(job(directory))
    assert stopped.value.code == preemption.EXIT_CODE
  newest = max(int(p.name) for p in (directory / 'checkpoints').iterdir())
  assert newest == 2 * (3 + 1)
  monkeypatch.setattr(preemption, 'is_told', lambda: False)
  assert mend_loop.train(job(directory)) == undisturbed[0]
  assert _content(directory) == _content(undisturbed[1])


@eight_devices.needs_eight
def test_on_a_mesh_as_on_one_device(
  tiny, job, undisturbed, tmp_path, monkeypatch
):
  """Killed and taken up there, and nothing traced again for a later step."""
  monkeypatch.undo()  # What was compiled for one device.
  params = sharding.shard(tiny.config, tiny.params, eight_devices.mesh('2x4'))
  on_mesh = dataclasses.replace(tiny, params=params)
  made = {}
  for name in ('make_update', 'make_validate'):
    make = getattr(mend_training, name)
    monkeypatch.setattr(
      mend_training,
      name,
      lambda *args, name=name, make=make: made.setdefault(name, make(*args)),
    )
  again = lambda **changes: mend_loop.train(
    dataclasses.replace(job(tmp_path / 'mesh', **changes), model=on_mesh)
  )
  with pytest.raises(_Killed):
    again(report=_killed_after(8))
  again()
  curves = [
    files.read_jsonl(directory / mend_loop.CURVE)
    for directory in (undisturbed[1], tmp_path / 'mesh')
  ]
  for expected, found in zip(*curves, strict=True):
    assert found.pop('part') == expected.pop('part')
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
  # Texts of one shape: one program each.
  assert made['make_update']._cache_size() == 1
  assert made['make_validate']._cache_size() == 1


def test_the_best_networks_are_kept(job, tmp_path, monkeypatch, tiny):
  losses = iter([3.0, 1.0, 2.0])
  real = mend_training.validate_all
  monkeypatch.setattr(
    mend_training,
    'validate_all',
    lambda *args: {**real(*args), 'loss': next(losses)},
  )
  best = mend_loop.train(job(tmp_path))
  assert (best['iteration'], best['loss']) == (8, 1.0)
  trained = mend_file.load(
    tmp_path / mend_loop.NETWORK, CONFIG, tiny.config, tiny.fingerprint
  )
  assert trained.notes['validation']['loss'] == 1.0
  rows = int(jax.tree.leaves(trained.statistics)[0])
  assert rows == int(trained.statistics['32x64'].count) > 0


@pytest.mark.parametrize('patience', [6, 8])
def test_patience(job, tmp_path, monkeypatch, patience):
  """Ends where there was nothing better for so many examples."""
  losses = iter([3.0, 1.0, 2.0, 2.0, 0.0])
  real = mend_training.validate_all
  monkeypatch.setattr(
    mend_training,
    'validate_all',
    lambda *args: {**real(*args), 'loss': next(losses)},
  )
  config = dataclasses.replace(CONFIG, max_iters=40, patience=patience)
  best = mend_loop.train(job(tmp_path, config=config))
  assert best['iteration'] == 8
  curve = files.read_jsonl(tmp_path / mend_loop.CURVE)
  assert curve[-1]['iteration'] == 16
  assert mend_loop.train(job(tmp_path, config=config)) == best


@pytest.mark.parametrize('patience', [-8, 0, 2])
def test_patience_that_ends_before_a_validation(patience):
  with pytest.raises(ValueError, match='before the first validation, after'):
    dataclasses.replace(CONFIG, patience=patience)


def test_networks_that_are_gone(job, undisturbed):
  best, directory = undisturbed
  (directory / mend_loop.NETWORK).unlink()
  message = f'the best networks, those after {best["iteration"]} examples'
  with pytest.raises(FileNotFoundError, match=message):
    mend_loop.train(job(directory))


def test_a_loss_that_is_not_finite_ends_the_training(
  job, tmp_path, monkeypatch
):
  update = mend_training.make_update(None, None)

  def broken(*args):
    state, scores = update(*args)
    return state, {**scores, 'loss': np.float32(np.nan)}

  monkeypatch.setattr(mend_training, 'make_update', lambda *_: broken)
  with pytest.raises(FloatingPointError, match='loss is nan'):
    mend_loop.train(job(tmp_path))


def test_damaged_checkpoint(job, tmp_path, undisturbed):
  directory = undisturbed[1]
  newest = directory / 'checkpoints' / '12'
  for path in newest.rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(ValueError, match='checkpoints/12 is damaged.*Delete'):
    mend_loop.train(job(directory))
