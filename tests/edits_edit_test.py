import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from me_jax import trees
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Dense, LowRank

DOWN = 'layers/{}/mlp/down_proj/kernel'  # [64, 32]


def _factor(seed, *shape):
  draw = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(draw / 8, jnp.float32)


def _edit(seed, layers=(1,), rank=2):
  return {
    DOWN.format(l): LowRank(
      _factor([seed, l, 0], 64, rank), _factor([seed, l, 1], rank, 32)
    )
    for l in layers
  }


def _full(seed, layers=(1,)):
  """An edit whose changes are dense."""
  return {DOWN.format(l): Dense(_factor([seed, l], 64, 32)) for l in layers}


def _dense(change):
  if isinstance(change, Dense):
    return np.asarray(change.delta, np.float64)
  return np.asarray(change.left, np.float64) @ np.asarray(
    change.right, np.float64
  )


def _assert_same_bits(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert list(found) == list(expected)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(
      np.asarray(found[path]).view(np.uint32),
      np.asarray(leaf).view(np.uint32),
      err_msg=path,
    )


# Applying


@pytest.mark.parametrize('make', [_edit, _full])
def test_apply_adds_the_change(tiny, make):
  edit = make(0, layers=(0, 3))
  found = edit_lib.apply_edit(tiny.params, edit)
  for path, change in edit.items():
    expected = np.asarray(trees.get(tiny.params, path)) + _dense(change)
    kernel = trees.get(found, path)
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-6)


def test_apply_shares_all_other_leaves_and_leaves_its_input(tiny):
  before = {
    path: np.array(leaf) for path, leaf in trees.flatten(tiny.params).items()
  }
  edit = _edit(0, layers=(0, 3))
  found = trees.flatten(edit_lib.apply_edit(tiny.params, edit))
  for path, leaf in trees.flatten(tiny.params).items():
    np.testing.assert_array_equal(leaf, before[path])
    assert (found[path] is leaf) == (path not in edit)


def test_no_edit_is_no_change(tiny):
  assert edit_lib.apply_edit(tiny.params, {}) is tiny.params


@pytest.mark.parametrize(
  'left, right, message',
  [
    ((63, 1), (1, 32), r'shape \(64, 32\), the edit \(63, 1\) x \(1, 32\)'),
    ((64, 1), (1, 33), 'another model'),
    ((64, 2), (1, 32), 'another model'),
    ((32, 1), (1, 64), 'another model'),
  ],
)
def test_factors_that_do_not_fit(tiny, left, right, message):
  edit = {DOWN.format(1): LowRank(jnp.ones(left), jnp.ones(right))}
  with pytest.raises(ValueError, match=message):
    edit_lib.apply_edit(tiny.params, edit)


@pytest.mark.parametrize('shape', [(64, 33), (63, 32), (32, 64)])
def test_a_change_that_does_not_fit(tiny, shape):
  edit = {DOWN.format(1): Dense(jnp.ones(shape))}
  with pytest.raises(ValueError, match='another model'):
    edit_lib.apply_edit(tiny.params, edit)


def test_unknown_parameter(tiny):
  edit = {DOWN.format(9): _edit(0)[DOWN.format(1)]}
  with pytest.raises(KeyError, match='layers/9.*Nearest'):
    edit_lib.apply_edit(tiny.params, edit)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_refused(tiny, dtype):
  edit, path = _edit(0), DOWN.format(1)
  kernel = trees.get(tiny.params, path).astype(dtype)
  with pytest.raises(ValueError, match='must be float32.*float16'):
    edit_lib.apply_edit(trees.set_leaf(tiny.params, path, kernel), edit)
  left, right = edit[path]
  with pytest.raises(ValueError, match='must be float32.*float16'):
    edit_lib.apply_edit(tiny.params, {path: LowRank(left, right.astype(dtype))})
  with pytest.raises(ValueError, match='must be float32.*float16'):
    edit_lib.apply_edit(
      tiny.params, {path: Dense((left @ right).astype(dtype))}
    )


# Composing


def test_compose_equals_one_after_the_other_up_to_rounding(tiny):
  first, second = _edit(0, layers=(0, 1)), _edit(1, layers=(1, 2), rank=3)
  composed = edit_lib.compose(first, second)
  assert {p: c.rank for p, c in composed.items()} == {
    DOWN.format(0): 2,
    DOWN.format(1): 5,
    DOWN.format(2): 3,
  }
  one_by_one = edit_lib.apply_edit(
    edit_lib.apply_edit(tiny.params, first), second
  )
  at_once = edit_lib.apply_edit(tiny.params, composed)
  for path, leaf in trees.flatten(one_by_one).items():
    np.testing.assert_allclose(
      trees.get(at_once, path), leaf, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
  'makes', [(_full, _full), (_full, _edit), (_edit, _full)]
)
def test_what_is_dense_stays_dense(makes):
  first, second = (make(i, layers=(i, 1)) for i, make in enumerate(makes))
  composed = edit_lib.compose(first, second)
  assert composed[DOWN.format(0)] is first[DOWN.format(0)]
  change = composed[DOWN.format(1)]
  assert isinstance(change, Dense) and change.delta.dtype == jnp.float32
  expected = sum(_dense(e[DOWN.format(1)]) for e in (first, second))
  np.testing.assert_allclose(change.delta, expected, rtol=0, atol=1e-6)


def test_compose_leaves_its_arguments():
  first, second = _edit(0), _edit(1, layers=(1, 2))
  digests = edit_lib.digest(first), edit_lib.digest(second)
  edit_lib.compose(first, second)
  assert digests == (edit_lib.digest(first), edit_lib.digest(second))


def test_nothing_is_the_neutral_element_of_compose():
  edit = _edit(0)
  assert edit_lib.compose({}, edit) == edit == edit_lib.compose(edit, {})


# Undoing: always a replay


def _replay(params, edits):
  for edit in edits:
    params = edit_lib.apply_edit(params, edit)
  return params


def test_undo_is_a_replay_bit_for_bit(tiny):
  edits = [_edit(seed, layers=(1, seed % 4)) for seed in range(5)]
  states = [tiny.params]
  for edit in edits:
    states.append(edit_lib.apply_edit(states[-1], edit))
  for t, state in enumerate(states):
    _assert_same_bits(_replay(tiny.params, edits[:t]), state)


def test_leaving_one_out_is_a_replay_bit_for_bit(tiny):
  edits = [_edit(seed) for seed in range(3)]
  never_made = edit_lib.apply_edit(
    edit_lib.apply_edit(tiny.params, edits[0]), edits[2]
  )
  _assert_same_bits(
    _replay(tiny.params, [e for i, e in enumerate(edits) if i != 1]), never_made
  )


def test_subtracting_does_not_give_the_old_bits_back(tiny):
  """Why there is no such function."""
  path = DOWN.format(1)
  edit = _edit(0)
  minus = {path: LowRank(-edit[path].left, edit[path].right)}
  found = _replay(tiny.params, [edit, minus])
  base = trees.get(tiny.params, path)
  assert (trees.get(found, path) != base).any()
  np.testing.assert_allclose(trees.get(found, path), base, rtol=0, atol=1e-6)


# Norms and identity


@pytest.mark.parametrize('rank', [1, 3, 40])
def test_norm_equals_the_dense_one(rank):
  (change,) = _edit(0, rank=rank).values()
  norm = float(edit_lib.frobenius_norm(change))
  np.testing.assert_allclose(norm, np.linalg.norm(_dense(change)), rtol=1e-5)


def test_norm_of_a_dense_change():
  (change,) = _full(0).values()
  norm = float(edit_lib.frobenius_norm(change))
  np.testing.assert_allclose(norm, np.linalg.norm(_dense(change)), rtol=1e-5)


def test_norm_of_nothing_is_zero():
  (change,) = _edit(0, rank=1).values()
  cancelling = LowRank(
    jnp.concatenate([change.left, -change.left], axis=1),
    jnp.concatenate([change.right, change.right], axis=0),
  )
  assert float(edit_lib.frobenius_norm(cancelling)) < 1e-3


def test_digest_sees_every_bit():
  edit, path = _edit(0), DOWN.format(1)
  left, right = edit[path]
  flipped = LowRank(left.at[5, 1].multiply(1 + 2e-7), right)
  assert (flipped.left != left).sum() == 1
  digests = {
    edit_lib.digest(e)
    for e in (
      edit,
      {path: flipped},
      {DOWN.format(2): edit[path]},
      {path: LowRank(left.reshape(32, 4), right)},
      {},
    )
  }
  assert len(digests) == 5
  assert edit_lib.digest(edit) == edit_lib.digest(_edit(0))


@pytest.mark.parametrize(
  'make, factor', [(_edit, 'left'), (_edit, 'right'), (_full, 'delta')]
)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused(make, factor, bad):
  edit, path = make(0), DOWN.format(1)
  edit_lib.check_finite(edit)
  broken = getattr(edit[path], factor).at[1, 1].set(bad)
  edit[path] = edit[path]._replace(**{factor: broken})
  with pytest.raises(
    FloatingPointError, match=f'{path} has 1 of .* in {factor}.*not saved'
  ):
    edit_lib.check_finite(edit)


# Files


def test_file_round_trip_is_bit_exact(tiny, tmp_path):
  path = tmp_path / 'new' / 'edit.safetensors'
  edit = _edit(0, layers=(0, 2), rank=3)
  # Values that a text format, or half precision, would lose.
  odd = jnp.asarray([[-0.0, 1e-42, np.float32(1) / 3] * 21 + [3e38]]).T
  edit[DOWN.format(1)] = LowRank(odd.astype(jnp.float32), _factor(7, 1, 32))
  edit |= _full(5, layers=(3,))
  edit_lib.save_edit(path, edit, {'step': '3'})
  found = edit_lib.load_edit(path)
  assert edit_lib.digest(found) == edit_lib.digest(edit)
  assert {p: type(c) for p, c in found.items()} == {
    p: type(c) for p, c in edit.items()
  }
  _assert_same_bits(
    edit_lib.apply_edit(tiny.params, found),
    edit_lib.apply_edit(tiny.params, edit),
  )
  with safetensors.safe_open(path, framework='numpy') as f:
    assert f.metadata() == {'format': 'me_jax.edit.v1', 'step': '3'}


def test_an_empty_edit_can_be_kept(tmp_path):
  path = tmp_path / 'edit.safetensors'
  edit_lib.save_edit(path, {})
  assert edit_lib.load_edit(path) == {}


def test_a_7b_edit_is_small(tmp_path):
  path = tmp_path / 'edit.safetensors'
  change = LowRank(jnp.ones((11_008, 1)), jnp.ones((1, 4096)))
  edit_lib.save_edit(path, {DOWN.format(5): change})
  assert path.stat().st_size < 61_000


@pytest.mark.parametrize('keep', [0, 4, 100, -1])
def test_truncated_file(tmp_path, keep):
  path = tmp_path / 'edit.safetensors'
  edit_lib.save_edit(path, _edit(0))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=f'{path} is damaged.*again'):
    edit_lib.load_edit(path)


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    edit_lib.load_edit(tmp_path / 'edit.safetensors')


_FACTOR = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
  'tensors, metadata',
  [
    ({'model.embed_tokens.weight': _FACTOR}, {'format': 'pt'}),
    ({'a/left': _FACTOR, 'a/right': _FACTOR}, None),
    ({}, None),
    ({'a/left': _FACTOR}, {'format': 'me_jax.edit.v1'}),
    ({'a/right': _FACTOR}, {'format': 'me_jax.edit.v1'}),
    ({'a/kernel': _FACTOR}, {'format': 'me_jax.edit.v1'}),
    (
      {f'a/{name}': _FACTOR for name in ('left', 'right', 'delta')},
      {'format': 'me_jax.edit.v1'},
    ),
  ],
  ids=[
    'model',
    'no format',
    'empty',
    'left only',
    'right only',
    'name',
    'both',
  ],
)
def test_foreign_file(tmp_path, tensors, metadata):
  path = tmp_path / 'edit.safetensors'
  safetensors.numpy.save_file(tensors, path, metadata=metadata)
  with pytest.raises(ValueError, match='is not an edit.*me_jax.edit.v1'):
    edit_lib.load_edit(path)


@pytest.mark.parametrize('rank, kind', [(2, LowRank), (3, Dense)])
def test_the_smallest_form(rank, kind):
  """Of [6, 4]: two factors have 20 numbers for a rank of 2, 30 of 3."""
  rng = np.random.default_rng(rank)
  factors = LowRank(
    *(
      jnp.asarray(rng.standard_normal(shape), jnp.float32)
      for shape in ((6, rank), (rank, 4))
    )
  )
  found = edit_lib.smallest(factors)
  assert type(found) is kind
  kernel = {'a': jnp.ones((6, 4), jnp.float32)}
  np.testing.assert_allclose(
    edit_lib.apply_edit(kernel, {'a': found})['a'],
    edit_lib.apply_edit(kernel, {'a': factors})['a'],
    rtol=1e-6,
    atol=1e-6,
  )
  halves = [
    LowRank(factors.left[:, p], factors.right[p])
    for p in np.eye(rank, dtype=bool)[:2]
  ]
  assert edit_lib.compose({'a': halves[0]}, {'a': halves[1]})['a'].rank == 2
