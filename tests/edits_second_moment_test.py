import dataclasses
import json
import os
import random
import shutil

import eight_devices
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from me_jax import sharding
from me_jax.edits import (
  second_moment,
  second_moment_collect,
  second_moment_ensure,
  second_moment_factor,
  tensor_file,
  text_batches,
)
from me_jax.edits.corpus_texts import TextCorpus
from me_jax.edits.second_moment_collect import collect
from me_jax.models import llama, sites

_SPEC = {'corpus': 'random bytes', 'n_samples': 60, 'seed': 0}
_F = 64


@pytest.fixture(scope='module')
def rows():
  draw = random.Random(0)
  return [
    [draw.randrange(256) for _ in range(draw.choice((1, 9, 16, 17, 40)))]
    for _ in range(60)
  ]


@pytest.fixture(scope='module')
def moments(tiny, rows, tmp_path_factory):
  return collect(tiny, rows, [0, 2], tmp_path_factory.mktemp('c'), _SPEC)


def _keys(model, row, layer):
  """Keys of one text alone, float64 [T, F]."""
  site = sites.site(layer, 'mlp/key')
  found = plain_model.tapped(
    model.config, model.params, np.array(row), taps=(site,), stop=layer + 1
  )
  return np.asarray(found[site][0], np.float64)


def _matrix(condition=1e6, count=1000, layer=3):
  q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((_F, _F)))
  mean = (q * np.geomspace(1 / condition, 1, _F)) @ q.T
  return second_moment.SecondMoment(
    layer=layer,
    mean=(mean + mean.T) / 2,
    count=count,
    fingerprint={'mlp_dim': _F, 'layer': layer, 'seed': 1},
  )


def test_equals_one_text_at_a_time(tiny, rows, moments):
  for layer in (0, 2):
    keys = np.concatenate([_keys(tiny, row, layer) for row in rows[:60]])
    assert moments[layer].count == len(keys) == sum(map(len, rows))
    expected = keys.T @ keys / len(keys)
    np.testing.assert_allclose(
      moments[layer].mean, expected, rtol=0, atol=1e-6 * expected.max()
    )


def test_trace_identity(tiny, rows, moments):
  """The mean of kᵀ C⁻¹ k over the calibration tokens is F."""
  factor = second_moment_factor.factor(moments[2])
  keys = np.concatenate([_keys(tiny, row, 2) for row in rows])
  quadratic = np.einsum('TF,FT->T', keys, factor.solve(keys.T))
  # Keys are float32 and batched otherwise; C⁻¹ magnifies the difference.
  np.testing.assert_allclose(quadratic.mean(), _F, rtol=1e-4)


def test_batch_size_changes_nothing_but_rounding(tiny, rows, moments, tmp_path):
  small = collect(tiny, rows, [0, 2], tmp_path, _SPEC, batch_tokens=100)
  for layer, moment in moments.items():
    np.testing.assert_allclose(
      small[layer].mean, moment.mean, rtol=0, atol=1e-6 * moment.mean.max()
    )


@eight_devices.needs_eight
@pytest.mark.parametrize('shape', ['8x1', '2x4'])
def test_on_a_mesh_as_on_one_device(tiny, rows, moments, tmp_path, shape):
  params = sharding.shard(tiny.config, tiny.params, eight_devices.mesh(shape))
  found = collect(
    dataclasses.replace(tiny, params=params), rows, [0, 2], tmp_path, _SPEC
  )
  for layer, moment in moments.items():
    assert found[layer].count == moment.count
    np.testing.assert_allclose(
      found[layer].mean, moment.mean, rtol=0, atol=1e-6 * moment.mean.max()
    )


def test_texts_are_dealt_in_equal_parts():
  lengths = [40, 3, 17, 16, 40, 41, 0, 9, 40]
  plan = text_batches.plan(lengths, 128, groups=4)
  assert all(batch.size % 4 == 0 for batch in plan)
  assert all(batch.size * batch.width <= 4 * 128 for batch in plan)
  taken = sorted(row for batch in plan for row in batch.rows)
  assert taken == [i for i, n in enumerate(lengths) if n]


class _Killed(Exception):
  pass


@pytest.mark.parametrize('calls', [2, 4])
def test_continues_after_a_kill_bit_for_bit(tiny, rows, tmp_path, calls):
  arguments = {'batch_tokens': 200, 'snapshot_seconds': 0.0}
  whole = collect(tiny, rows, [1, 2], tmp_path / 'a', _SPEC, **arguments)
  seen = []

  def killer(tokens):
    seen.append(tokens)
    if len(seen) == calls:
      raise _Killed

  with pytest.raises(_Killed):
    collect(tiny, rows, [1, 2], tmp_path / 'b', _SPEC, killer, **arguments)
  assert not second_moment.stored(tmp_path / 'b', [1])

  again = []
  resumed = collect(
    tiny, rows, [1, 2], tmp_path / 'b', _SPEC, again.append, **arguments
  )
  assert again[0] == seen[-1] > 0
  assert again[-1] == sum(map(len, rows))
  for layer in (1, 2):
    assert resumed[layer].mean.tobytes() == whole[layer].mean.tobytes()
  assert sorted(os.listdir(tmp_path / 'b')) == ['layer_1', 'layer_2']


def test_other_layers_may_be_collected_meanwhile(tiny, rows, tmp_path):
  arguments = {'batch_tokens': 200, 'snapshot_seconds': 0.0}
  seen = []

  def killer(tokens):
    seen.append(tokens)
    if len(seen) == 2:
      raise _Killed

  with pytest.raises(_Killed):
    collect(tiny, rows, [0, 1], tmp_path, _SPEC, killer, **arguments)
  collect(tiny, rows, [2], tmp_path, _SPEC, **arguments)
  again = []
  collect(tiny, rows, [0, 1], tmp_path, _SPEC, again.append, **arguments)
  assert again[0] == seen[-1] > 0


def test_sums_that_lack_a_layer_are_refused(tiny, rows, tmp_path):
  arguments = {'batch_tokens': 200, 'snapshot_seconds': 0.0}
  collect(tiny, rows, [1], tmp_path, _SPEC)

  def killer(tokens):
    if tokens:
      raise _Killed

  with pytest.raises(_Killed):
    collect(tiny, rows, [1, 2], tmp_path, _SPEC, killer, **arguments)
  shutil.rmtree(tmp_path / 'layer_1')
  with pytest.raises(ValueError, match='layer 1: not being collected'):
    collect(tiny, rows, [1, 2], tmp_path, _SPEC, **arguments)


def test_no_snapshot_before_its_time(tiny, rows, tmp_path):
  def killer(tokens):
    if tokens:
      raise _Killed

  with pytest.raises(_Killed):
    collect(tiny, rows, [0], tmp_path, _SPEC, killer, snapshot_seconds=1e6)
  assert not second_moment_collect.snapshot_path(tmp_path, [0]).exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'spec': {**_SPEC, 'seed': 9}}, 'seed: expected 9, found 0'),
    ({'batch_tokens': 300}, 'batch_tokens: expected 300, found 200'),
  ],
)
def test_snapshot_of_another_collection_is_refused(
  tiny, rows, tmp_path, change, message
):
  def killer(tokens):
    if tokens:
      raise _Killed

  arguments = {'layers': [0, 1], 'spec': _SPEC, 'batch_tokens': 200}
  with pytest.raises(_Killed):
    collect(
      tiny,
      rows,
      directory=tmp_path,
      progress=killer,
      snapshot_seconds=0.0,
      **arguments,
    )
  with pytest.raises(ValueError, match=message):
    collect(tiny, rows, directory=tmp_path, **arguments | change)


def test_stored_layers_are_not_collected_again(
  tiny, rows, tmp_path, monkeypatch
):
  first = collect(tiny, rows, [0], tmp_path, _SPEC)
  real, collected = second_moment_collect.grams, []

  def grams(config, layers, *arrays):
    collected.append(layers)
    return real(config, layers, *arrays)

  monkeypatch.setattr(second_moment_collect, 'grams', grams)
  both = collect(tiny, rows, [2, 0], tmp_path, _SPEC)
  assert set(collected) == {(2,)}
  assert both[0].mean.tobytes() == first[0].mean.tobytes()
  collected.clear()
  collect(tiny, rows, [0, 2], tmp_path, _SPEC)
  assert not collected


def test_other_text_is_refused_not_overwritten(tiny, rows, tmp_path):
  first = collect(tiny, rows, [0], tmp_path, _SPEC)
  with pytest.raises(ValueError, match='n_samples: expected 61, found 60'):
    collect(tiny, rows, [0], tmp_path, {**_SPEC, 'n_samples': 61})
  kept = second_moment.load(tmp_path, 0, first[0].fingerprint)
  assert kept.digest == first[0].digest


def test_compiles_once_per_shape(tiny, rows, tmp_path, monkeypatch):
  real, traces = llama.embed, []

  def embed(config, params, ids):
    traces.append(ids.shape)
    return real(config, params, ids)

  monkeypatch.setattr(llama, 'embed', embed)
  # A batch size that no other test has compiled for.
  plan = text_batches.plan([len(row) for row in rows], 170)
  shapes = {(batch.size, batch.width) for batch in plan}
  assert len(plan) > len(shapes) == len({batch.width for batch in plan})
  collect(tiny, rows, [0, 1, 3], tmp_path, _SPEC, batch_tokens=170)
  assert len(traces) == len(shapes) and set(traces) == shapes


def test_plan_holds_every_text_once():
  lengths = [5, 0, 16, 17, 40, 100, 3000, 24, 25, 1]
  plan = text_batches.plan(lengths, 128)
  assert sorted(i for b in plan for i in b.rows) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
  for batch in plan:
    assert len(batch.rows) <= batch.size
    assert batch.size == 1 or batch.size * batch.width <= 128
    longest = max(lengths[i] for i in batch.rows)
    assert longest <= batch.width <= max(16, 1.5 * longest)
  assert [b.width for b in plan] == sorted(
    (b.width for b in plan), reverse=True
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'layers': [4]}, r'layers from 0 to 3, got \[4\]'),
    ({'layers': []}, 'got none'),
    ({'token_rows': []}, 'longest has 0'),
    ({'token_rows': [[1] * 2049]}, 'longest has 2049'),
    ({'token_rows': [[1, 257]]}, '257.*vocabulary has 257'),
  ],
)
def test_collect_refuses(tiny, rows, tmp_path, change, message):
  arguments = {'token_rows': rows, 'layers': [0]} | change
  with pytest.raises(ValueError, match=message):
    collect(tiny, directory=tmp_path, spec=_SPEC, **arguments)


def test_save_and_load(tmp_path):
  moment = _matrix()
  second_moment.save(tmp_path, moment)
  loaded = second_moment.load(tmp_path, 3, moment.fingerprint)
  assert loaded.mean.tobytes() == moment.mean.tobytes()
  assert loaded.count == 1000 and loaded.fingerprint == moment.fingerprint
  # Fields that the caller does not know are not compared.
  second_moment.load(tmp_path, 3, {'seed': 1})


def test_load_names_each_difference(tmp_path):
  second_moment.save(tmp_path, _matrix())
  expected = {'mlp_dim': 128, 'layer': 3, 'seed': 2, 'dtype': 'float32'}
  with pytest.raises(ValueError) as e:
    second_moment.load(tmp_path, 3, expected)
  message = str(e.value)
  assert 'mlp_dim: expected 128, found 64' in message
  assert 'seed: expected 2, found 1' in message
  assert "dtype: expected 'float32', not recorded" in message
  assert 'layer:' not in message


def test_load_says_how_to_collect(tmp_path):
  with pytest.raises(FileNotFoundError, match='launch.second_moment'):
    second_moment.load(tmp_path, 7, {})


def _cut(path):
  path.write_bytes(path.read_bytes()[:-8])


def _flip(path):
  content = bytearray(path.read_bytes())
  content[-100] ^= 1
  path.write_bytes(content)


def _other_matrix(path):
  moment = _matrix(condition=10.0)
  tensor_file.write(path, {'mean': moment.mean, 'count': np.int64(1000)}, {})


def _other_shape(path):
  tensor_file.write(path, {'mean': np.eye(3), 'count': np.int64(1000)}, {})


@pytest.mark.parametrize(
  ('name', 'damage', 'message'),
  [
    ('second_moment.safetensors', _cut, 'damaged'),
    ('second_moment.safetensors', _flip, 'damaged'),
    ('second_moment.safetensors', os.unlink, 'No file'),
    ('second_moment.safetensors', _other_matrix, 'not of the same collection'),
    ('second_moment.safetensors', _other_shape, r'shape \(64, 64\).*\(3, 3\)'),
    ('second_moment.json', _cut, 'damaged'),
    ('second_moment.json', lambda p: p.write_text('[]'), 'damaged'),
  ],
)
def test_damaged_files(tmp_path, name, damage, message):
  second_moment.save(tmp_path, _matrix())
  damage(tmp_path / 'layer_3' / name)
  with pytest.raises(ValueError, match=message) as e:
    second_moment.load(tmp_path, 3, {})
  assert 'collect it again' in str(e.value)


@pytest.mark.parametrize('shape', [(_F,), (_F, 1), (_F, 5)])
def test_solve_is_float64(shape):
  moment = _matrix(condition=1e8)
  factor = second_moment_factor.factor(moment)
  k = np.random.default_rng(1).standard_normal(shape)
  solved = factor.solve(k)
  assert solved.shape == shape and solved.dtype == np.float64
  # Backward stable: the residual is small, whatever the condition number.
  np.testing.assert_allclose(
    moment.mean @ solved, k, rtol=0, atol=1e-14 * np.abs(solved).max() * _F
  )
  exact = np.linalg.solve(moment.mean, k)
  np.testing.assert_allclose(
    solved, exact, rtol=0, atol=1e-7 * abs(exact).max()
  )


def test_float64_does_not_leak():
  factor = second_moment_factor.factor(_matrix())
  k = jnp.ones(_F)
  factor.solve(k)
  assert (k + np.ones(_F)).dtype == jnp.float32
  assert jnp.asarray(np.ones(3)).dtype == jnp.float32


def test_solve_refuses():
  factor = second_moment_factor.factor(_matrix())
  with pytest.raises(ValueError, match=r'\[64\].*got \[65\]'):
    factor.solve(np.ones(65))
  with pytest.raises(ValueError, match='NaN'):
    factor.solve(np.full(_F, np.nan))


def test_too_few_tokens():
  with pytest.raises(ValueError, match='63 tokens.*F = 64 .* 10 F = 640'):
    second_moment_factor.factor(_matrix(count=63))


@pytest.mark.parametrize('rank', [1, 40])
def test_singular_is_refused(rank):
  half = np.random.default_rng(0).standard_normal((_F, rank))
  moment = second_moment.SecondMoment(
    layer=0, mean=half @ half.T, count=1000, fingerprint={}
  )
  with pytest.raises(ValueError, match='1,000 tokens.*(definite|singular)'):
    second_moment_factor.factor(moment)


def test_factor_is_cached_with_the_hash_of_its_matrix(tmp_path, monkeypatch):
  moment = _matrix()
  made = second_moment_factor.load_factor(tmp_path, moment)
  path = tmp_path / 'layer_3' / 'factor.safetensors'
  computed = []
  real = second_moment_factor.factor
  monkeypatch.setattr(
    second_moment_factor,
    'factor',
    lambda m: computed.append(m) or real(m),
  )
  cached = second_moment_factor.load_factor(tmp_path, moment)
  assert cached.chol.tobytes() == made.chol.tobytes() and not computed

  other = second_moment_factor.load_factor(tmp_path, _matrix(condition=10.0))
  assert len(computed) == 1
  assert not np.array_equal(other.chol, made.chol)
  _cut(path)
  again = second_moment_factor.load_factor(tmp_path, moment)
  assert len(computed) == 2
  np.testing.assert_array_equal(again.chol, made.chol)
  np.testing.assert_array_equal(np.triu(made.chol, 1), 0)


def test_condition_number():
  moment = _matrix(condition=1e6)
  estimate = second_moment_factor.condition_number(
    moment, second_moment_factor.factor(moment)
  )
  assert 0.9e6 <= estimate <= 1.0001e6


def test_fingerprint_changes_with_the_weights(tiny):
  other = dataclasses.replace(tiny, fingerprint='other')
  one = second_moment.fingerprint(tiny, 1, _SPEC)
  two = second_moment.fingerprint(other, 1, _SPEC)
  assert second_moment.differences(one, two) == [
    f"weights: expected 'other', found {tiny.fingerprint!r}"
  ]


def test_ensure_draws_only_when_a_layer_is_missing(tiny, tmp_path, capsys):
  drawn = []

  def encode(text):
    drawn.append(text)
    return tiny.tokenizer.encode(text)

  draw = random.Random(1)
  texts = [''.join(draw.choices('abcdefghij klmnop', k=30)) for _ in range(50)]
  corpus = TextCorpus('letters', lambda: texts, encode)
  arguments = {'max_length': 25, 'seed': 1, 'min_tokens': 10 * _F}
  ensure = lambda layers, **change: second_moment_ensure.ensure(
    tiny, corpus, layers, tmp_path, **arguments | change
  )
  first = ensure([1])
  assert first[1].count == 650 and len(drawn) == 26
  assert '650/650 tokens (100%)' in capsys.readouterr().err
  drawn.clear()
  ensure([1])
  assert not drawn
  both = ensure([1, 0])
  assert len(drawn) == 26 and list(both) == [0, 1]
  assert (
    both[0].fingerprint['corpus_sha256']
    == (first[1].fingerprint['corpus_sha256'])
  )
  with pytest.raises(ValueError, match='max_length: expected 24, found 25'):
    ensure([1], max_length=24)
  with pytest.raises(ValueError, match='50 tokens.*64 units.*640 tokens'):
    ensure([3], min_tokens=0, n_samples=2)


def test_record_is_readable(tmp_path):
  second_moment.save(tmp_path, _matrix())
  record = json.loads((tmp_path / 'layer_3/second_moment.json').read_text())
  assert record['count'] == 1000 and record['fingerprint']['seed'] == 1
