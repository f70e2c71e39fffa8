import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from me_jax.analysis import kernel_difference, weight_drift
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Dense, LowRank

F, D = 48, 32


def _kernel(seed=0, shape=(F, D), mean=0.3):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal(shape) + mean).astype(np.float32)


def _factors(rank, seed=1, scale=1e-2, shape=(F, D)):
  rng = np.random.default_rng(seed)
  left = scale * rng.standard_normal((shape[0], rank))
  right = rng.standard_normal((rank, shape[1]))
  return LowRank(
    jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
  )


def _plain(a, b):
  """The textbook, in extended precision as far as NumPy has it."""
  a, b = np.asarray(a, np.longdouble), np.asarray(b, np.longdouble)
  da, db = (a - a.mean()).ravel(), (b - b.mean()).ravel()
  r = (da * db).sum() / np.sqrt((da * da).sum() * (db * db).sum())
  sigma = lambda x: np.linalg.svd(np.asarray(x, np.float64))[1][0]
  return {
    'one_minus_r': float(1 - r),
    'rel_fro': float(np.sqrt(((b - a) ** 2).sum() / (a**2).sum())),
    'max_abs': float(np.abs(b).max()),
    'sigma1_ratio': sigma(b) / sigma(a),
  }


def _assert_is(drift, expected, rtol):
  for name, value in expected.items():
    np.testing.assert_allclose(
      getattr(drift, name), value, rtol=rtol, err_msg=name
    )
  assert drift.pearson_r == 1 - drift.one_minus_r


def _of_kernels(a, b):
  return weight_drift.of_kernels(weight_drift.reference(a), b)


def _of_change(a, change):
  return weight_drift.of_change(weight_drift.reference(a), change)


@pytest.mark.parametrize('scale', [1e-4, 1e-1, 3.0])
def test_the_weights_themselves(scale):
  a = _kernel()
  b = a + scale * _kernel(seed=2, mean=0.5)
  drift = _of_kernels(a, b)
  _assert_is(drift, _plain(a, b), 1e-9)
  assert drift.dtype == 'float32'


def test_the_difference_form_keeps_the_digits_close_to_one():
  a = np.random.default_rng(0).standard_normal((400, 500))
  b = a + 1e-4 * np.random.default_rng(1).standard_normal(a.shape)
  found = _of_kernels(a, b).one_minus_r
  assert found == pytest.approx(5e-9, rel=0.02)
  direct = 1 - np.corrcoef(a.ravel(), b.ravel())[0, 1]
  np.testing.assert_allclose(found, direct, rtol=1e-7)
  # Where the direct form has no digit left.
  assert _of_kernels(a, a + 1e-4 * (b - a)).one_minus_r == pytest.approx(
    5e-17, rel=0.02
  )


@pytest.mark.parametrize('rank', [1, 5, 31])
@pytest.mark.parametrize('scale', [1e-5, 1e-2, 1.0])
def test_factors_give_what_the_difference_gives(rank, scale):
  a, change = _kernel(), _factors(rank, scale=scale)
  left, right = (np.asarray(x, np.float64) for x in change)
  exact = _of_kernels(a, a + left @ right)
  drift = _of_change(a, change)
  fields = set(drift._fields) - {'pearson_r', 'dtype'}
  # a + left @ right rounds away 1e-16 of a, of which this is left.
  rtol = 1e-10 / scale if scale < 1e-3 else 1e-9
  _assert_is(drift, {name: getattr(exact, name) for name in fields}, rtol)
  rounded = _of_kernels(a, np.asarray(a + change.left @ change.right))
  assert drift.rel_fro == pytest.approx(
    rounded.rel_fro, rel=1e-2 if scale < 1e-3 else 1e-5
  )


def test_many_steps_compose():
  a, total, params = _kernel(), {}, {'w': jnp.asarray(_kernel())}
  for step in range(12):
    edit = {'w': _factors(3, seed=step)}
    total = edit_lib.compose(total, edit)
    params = edit_lib.apply_edit(params, edit)
  assert total['w'].rank == 36 > D  # Multiplied out.
  expected = _plain(a, params['w'])
  _assert_is(_of_change(a, total['w']), expected, 1e-5)


def test_factors_that_cancel_leave_next_to_nothing():
  change = _factors(4)
  gone = LowRank(
    jnp.concatenate([change.left, change.left], axis=1),
    jnp.concatenate([change.right, -change.right], axis=0),
  )
  drift = _of_change(_kernel(), gone)
  assert drift.one_minus_r < 1e-15 and drift.rel_fro < 1e-7


def test_dense_changes():
  a, delta = _kernel(), 0.1 * _kernel(seed=3)
  drift = _of_change(a, Dense(jnp.asarray(delta)))
  _assert_is(drift, _plain(a, a.astype(np.float64) + delta), 1e-9)


@pytest.mark.parametrize(
  'change',
  [
    LowRank(jnp.zeros((F, 1)), jnp.zeros((1, D))),
    LowRank(jnp.zeros((F, 0)), jnp.zeros((0, D))),
    Dense(jnp.zeros((F, D))),
  ],
)
def test_no_change(change):
  a = _kernel()
  drift = _of_change(a, change)
  assert drift == weight_drift.Drift(
    1.0, 0.0, 0.0, float(np.abs(a).max()), 1.0, 'float32'
  )
  assert _of_kernels(a, a) == drift


@pytest.mark.parametrize('factor', [2.0, 0.5, -1.0])
def test_r_is_blind_to_scale_and_the_others_are_not(factor):
  a = _kernel()
  drift = _of_kernels(a, factor * a)
  assert drift.one_minus_r == pytest.approx(0 if factor > 0 else 2, abs=1e-14)
  assert drift.rel_fro == pytest.approx(abs(factor - 1))
  assert drift.sigma1_ratio == pytest.approx(abs(factor))
  assert drift.max_abs == pytest.approx(abs(factor) * np.abs(a).max())


def test_r_does_not_mind_transposition_and_shift():
  a, b = _kernel(), _kernel() + _kernel(seed=4)
  drift = _of_kernels(a, b)
  assert _of_kernels(a.T, b.T).one_minus_r == pytest.approx(
    drift.one_minus_r, rel=1e-12
  )
  shifted = b.astype(np.float64) + 7
  assert _of_kernels(a, shifted).one_minus_r == pytest.approx(
    drift.one_minus_r, rel=1e-9
  )


def test_blocks_of_rows(monkeypatch):
  a, b = _kernel(), _kernel(seed=5)
  whole = _of_kernels(a, b), _of_change(a, _factors(3))
  monkeypatch.setattr(kernel_difference, '_BLOCK', 7 * D)
  assert len(kernel_difference.row_blocks((F, D))) == math.ceil(F / 7)
  pieces = _of_kernels(a, b), _of_change(a, _factors(3))
  for one, other in zip(whole, pieces, strict=True):
    _assert_is(one, {n: getattr(other, n) for n in one._fields[1:5]}, 1e-11)


def test_half_precision_is_read_as_it_is():
  a = _kernel().astype(ml_dtypes.bfloat16)
  b = (_kernel() * 1.01).astype(ml_dtypes.bfloat16)
  drift = _of_kernels(a, b)
  exact = _plain(a.astype(np.float64), b.astype(np.float64))
  _assert_is(drift, exact, 1e-9)
  assert drift.dtype == 'bfloat16'


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_collapse_is_named(value):
  bad = _kernel()
  bad[3, 4] = value
  with pytest.raises(FloatingPointError, match='unedited kernel has entries'):
    weight_drift.reference(bad)
  with pytest.raises(FloatingPointError, match='edited kernel has entries'):
    _of_kernels(_kernel(), bad)


def test_what_has_no_correlation():
  with pytest.raises(ValueError, match='All entries of the kernel are 0.1'):
    weight_drift.reference(np.full((F, D), 0.1, np.float32))
  with pytest.raises(ValueError, match='edited kernel are equal'):
    _of_kernels(_kernel(), np.zeros((F, D), np.float32))


def test_shapes_that_do_not_fit():
  base = weight_drift.reference(_kernel())
  with pytest.raises(ValueError, match='of the same model'):
    weight_drift.of_kernels(base, _kernel().T)
  with pytest.raises(ValueError, match='for another model'):
    weight_drift.of_change(base, _factors(1, shape=(D, F)))
  with pytest.raises(ValueError, match='two rows'):
    weight_drift.reference(np.ones(3))
