"""MEMIT's and EMMET's closed forms against their definitions, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.edits import memit_solve
from me_jax.edits import rome as rome_lib
from me_jax.edits.batched_keys import Seen
from me_jax.edits.edit import kernel_path
from me_jax.edits.memit import spread
from me_jax.edits.second_moment_factor import Factor

F, D = 40, 24
RNG = np.random.default_rng(0)
_DRAW = RNG.standard_normal((F, 2 * F))
C = _DRAW @ _DRAW.T / (2 * F) + np.eye(F) / 9
FACTOR = Factor(np.linalg.cholesky(C))
KEYS = RNG.standard_normal((F, 6))
PREVIOUS = RNG.standard_normal((F, 9))
EXACT = 1e-8
STORED = 2e-7  # factors of an edit are float32


def _solve(keys=KEYS, weight=3.0, previous=None):
  if previous is not None:
    solved = FACTOR.solve(previous)
    previous = memit_solve.Solved(solved, previous.T @ solved)
  return memit_solve.solve(keys, FACTOR, weight, previous)


def _primal(keys, weight, *others):
  """(λ C + K Kᵀ + others)⁻¹ K, as the paper has it."""
  total = weight * C + sum(k @ k.T for k in (keys, *others))
  return np.linalg.solve(total, keys)


def _close(found, expected, tolerance=EXACT):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('weight', [1e-3, 1.0, 15_000.0])
@pytest.mark.parametrize('count', [1, 6, 2 * F])
def test_dual_equals_primal(count, weight):
  keys = np.random.default_rng(count).standard_normal((F, count))
  found = _solve(keys, weight)
  expected = _primal(keys, weight)
  _close(found.left, expected)
  _close(found.delivered, np.diag(expected.T @ keys))


def test_one_key_gets_its_fraction():
  """ΔW k = q / (λ + q) E."""
  k, weight = KEYS[:, :1], 7.0
  q = float((k.T @ np.linalg.solve(C, k))[0, 0])
  found = _solve(k, weight)
  residual = RNG.standard_normal(D)
  change = np.outer(residual, found.left[:, 0])
  _close(change @ k[:, 0], q / (weight + q) * residual)
  _close(found.delivered, [q / (weight + q)])


def test_large_lambda_changes_nothing():
  norms = [np.linalg.norm(_solve(weight=w).left) for w in (1.0, 1e6, 1e12)]
  assert norms[0] > 1e3 * norms[1] > 1e6 * norms[2]
  assert norms[2] < 1e-10


def test_no_lambda_interpolates():
  _close(_solve(weight=1e-10).left.T @ KEYS, np.eye(6))
  _close(_solve(weight=0.0).left.T @ KEYS, np.eye(6))


def test_order_of_a_batch_does_not_matter():
  order = np.random.default_rng(3).permutation(KEYS.shape[1])
  found, permuted = _solve(), _solve(KEYS[:, order])
  _close(permuted.left, found.left[:, order], 1e-12)
  residuals = RNG.standard_normal((6, D))
  _close(permuted.left @ residuals[order], found.left @ residuals, 1e-12)


def test_previous_keys_are_kept():
  found = _solve(previous=PREVIOUS)
  _close(found.left, _primal(KEYS, 3.0, PREVIOUS))
  strict = _solve(weight=1e-9, previous=PREVIOUS)
  _close(strict.left.T @ KEYS, np.eye(6), 1e-6)
  assert np.abs(strict.left.T @ PREVIOUS).max() < 1e-6
  assert np.abs(_solve(weight=1e-9).left.T @ PREVIOUS).max() > 0.01


def test_what_the_next_batch_needs():
  found = _solve(previous=PREVIOUS)
  joined = np.concatenate([PREVIOUS, KEYS], axis=1)
  _close(found.keys, np.linalg.solve(C, KEYS))
  _close(found.gram, joined.T @ np.linalg.solve(C, joined))


def test_no_previous_keys_yet():
  found = _solve(previous=np.zeros((F, 0)))
  np.testing.assert_array_equal(found.left, _solve().left)


def test_keys_of_one_subject_may_be_alike():
  keys = np.concatenate([KEYS[:, :1], KEYS[:, :1], KEYS[:, 1:2]], axis=1)
  found = _solve(keys)
  _close(found.left, _primal(keys, 3.0))
  _close(found.left[:, 0], found.left[:, 1])


@pytest.mark.parametrize(
  'keys',
  [KEYS[:, [0, 1, 0]], np.concatenate([KEYS, RNG.standard_normal((F, F))], 1)],
  ids=['equal', 'more than F'],
)
def test_constraints_that_exclude_each_other_are_refused(keys):
  with pytest.raises(ValueError, match='depend on each other.*lambda = 0'):
    _solve(keys, 0.0)


def test_emmet_as_published():
  """ΔW = E (Kᵀ C⁻¹ K + λ_e I)⁻¹ Kᵀ C⁻¹."""
  residuals, inverse = RNG.standard_normal((D, 6)), np.linalg.inv(C)
  expected = residuals @ np.linalg.solve(
    KEYS.T @ inverse @ KEYS + 0.1 * np.eye(6), KEYS.T @ inverse
  )
  _close(residuals @ _solve(weight=0.1).left.T, expected)


def test_emmet_of_one_fact_is_r_rome():
  """The same key and residual, λ_e = 0."""
  keys, residual = RNG.standard_normal((5, F)), RNG.standard_normal(D)
  change, _ = rome_lib.rank_one('r_rome', keys, residual, FACTOR)
  left = _solve(keys.mean(axis=0)[:, None], 0.0).left
  r_rome = np.asarray(change.left, np.float64) @ np.asarray(
    change.right, np.float64
  )
  _close(r_rome, left @ residual[None], STORED)


# Spreading over layers


def _linear_toy(layers, weight):
  """A residual stream to which each layer adds W_l k_l, with fixed keys.

  Returns what is left of the residual before each layer, and after the last.
  """
  rng = np.random.default_rng(1)
  keys = {i: rng.standard_normal((F, 6)) for i in layers}
  before, z = rng.standard_normal((6, D)), rng.standard_normal((6, D))

  def outputs(edit):
    added = [
      keys[i].T @ np.asarray(change.left @ change.right, np.float64)
      for i in layers
      if (change := edit.get(kernel_path(i)))
    ]
    return before + sum(added)

  shares = spread(
    layers,
    z,
    lambda edit, layer: Seen(keys[layer], outputs(edit)),
    lambda layer, keys: _solve(keys, weight),
  )
  edit = {kernel_path(s.layer): s.change for s in shares}
  after = np.linalg.norm(z - outputs(edit), axis=1)
  return shares, np.linalg.norm(z - before, axis=1), after


@pytest.mark.parametrize('layers', [(3,), (0, 1), (4, 5, 6, 7, 8)])
def test_each_layer_gives_its_share_and_the_last_leaves_none(layers):
  shares, whole, after = _linear_toy(layers, 1e-9)
  count = len(layers)
  assert [s.layer for s in shares] == list(layers)
  for h, share in enumerate(shares):
    left = (count - h) / count * whole
    np.testing.assert_allclose(share.residual_norms, left, rtol=1e-5)
    norms = np.linalg.norm(share.change.right, axis=1)
    np.testing.assert_allclose(norms, whole / count, rtol=1e-5)
    np.testing.assert_allclose(share.solution.delivered, 1, rtol=1e-6)
  assert (after < 1e-5 * whole).all()


def test_a_ridge_leaves_something():
  """Every layer delivers less than its share; what follows is asked for it."""
  shares, whole, after = _linear_toy((0, 1, 2), 30.0)
  norms = [s.residual_norms for s in shares]
  assert (norms[1] > 2 / 3 * whole).all() and (norms[2] > 1 / 3 * whole).all()
  assert (after > 0.1 * whole).all()
  assert shares[0].change.left.dtype == jnp.float32
