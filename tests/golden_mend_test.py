"""MEND's normaliser and transform against a PyTorch implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.edits import mend_factors, mend_network, target_texts

pytestmark = [pytest.mark.model, pytest.mark.golden]

LAYERS = (27, 28, 29)
NETWORKS = {'576x1536': 'up', '1536x576': 'down'}


@pytest.fixture(scope='module')
def expected(golden):
  return golden('mend_transform.json')


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('mend_transform.npz')


@pytest.fixture(scope='module')
def params(arrays):
  names = ('u', 'v', 'b', 'scale', 'shift')
  return {
    'networks': {
      name: {
        str(i): {
          n: jnp.asarray(arrays[f'{stored}/layer{i}/{n}']) for n in names
        }
        for i in range(2)
      }
      for name, stored in NETWORKS.items()
    },
    'edit_lrs': jnp.ones(9),
  }


@functools.partial(jax.jit, static_argnums=0)
def _compute(config, params, rows):
  x = mend_factors.entering(config, params, rows, LAYERS[0])
  return mend_factors.raw_factors(
    config, params, x, rows, layers=LAYERS, batch=1
  )


def _raw(model, fact):
  """Factors of one fact, padded, and the loss."""
  prompt, target = fact['prompt_ids'], fact['target_ids']
  text = target_texts.Text((*prompt, *target[:-1]), tuple(target), False)
  rows = target_texts.stack([text])
  raw, losses = _compute(model.config, model.params, rows)
  return raw, float(losses[0])


@pytest.fixture(scope='module')
def statistics(smollm2, expected):
  """After the facts for training."""
  seen = {
    name: mend_network.Statistics(
      jnp.zeros((), jnp.int32),
      *(jnp.zeros(n) for n in (i, i, o, o)),
    )
    for name, (i, o) in {
      '576x1536': (576, 1536),
      '1536x576': (1536, 576),
    }.items()
  }
  for fact in expected['train']:
    raw, loss = _raw(smollm2, fact)
    np.testing.assert_allclose(loss, fact['loss'], rtol=1e-4)
    seen, _ = jax.jit(mend_network.running_moments)(seen, raw)
  return seen


@pytest.fixture(scope='module')
def edit(smollm2, expected, params, statistics):
  raw, loss = _raw(smollm2, expected['edit'])
  np.testing.assert_allclose(loss, expected['edit']['loss'], rtol=1e-4)
  used = mend_network.frozen_moments(statistics, raw)
  return raw, mend_network.transform(params, used, raw)


@pytest.fixture(scope='module')
def stored(expected):
  """By our names of the matrices, in our order."""
  found = {
    name.removeprefix('model.').replace('.', '/') + '/kernel': values
    for name, values in expected['edit']['matrices'].items()
  }
  assert tuple(found) == mend_factors.edited_paths(LAYERS)
  return found


def test_order_and_modes(smollm2, expected):
  for paths in mend_network.matrices(smollm2.config, LAYERS).values():
    for mode, path in enumerate(paths):
      name = 'model.' + path.removesuffix('/kernel').replace('/', '.')
      assert expected['modes'][name] == mode


@pytest.mark.parametrize('name', NETWORKS)
def test_running_statistics(statistics, arrays, name):
  found = mend_network.moments(statistics[name])
  get = lambda key: arrays[f'{NETWORKS[name]}/{key}']
  assert int(statistics[name].count) == int(get('k')[0])
  for side, value in (('u', found.x_mean), ('v', found.g_mean)):
    mean, std = get(f'{side}_mean'), get(f'{side}_std')
    # A mean can be near 0; what counts is its place among the values.
    error = np.abs(value[0] - mean)
    assert (error <= 1e-4 * np.maximum(np.abs(mean), std)).all()
  for key, value in (
    ('u_mean', found.x_mean),
    ('v_mean', found.g_mean),
    ('u_std', found.x_std),
    ('v_std', found.g_std),
  ):
    error = np.linalg.norm(value[0] - get(key))
    assert error <= 1e-4 * np.linalg.norm(get(key))


def _dense(factors):
  """[out, in], as stored."""
  return np.asarray(factors.g[0]).T @ np.asarray(factors.x[0])


def test_kept_rows_and_raw_gradient(edit, stored):
  for path, factors in edit[0].items():
    kept = mend_network.kept_rows(*factors)
    assert int(kept.sum()) == stored[path]['tokens_kept']
    np.testing.assert_allclose(
      np.linalg.norm(_dense(factors)), stored[path]['raw_grad_fro'], rtol=1e-3
    )


def test_pseudo_gradient(edit, stored):
  for path, factors in edit[1].items():
    dense = _dense(factors)
    norm = stored[path]['pseudo_grad_fro']
    np.testing.assert_allclose(np.linalg.norm(dense), norm, rtol=1e-3)
    probe = dense @ np.cos(np.arange(dense.shape[1]))
    np.testing.assert_allclose(
      probe[:8],
      stored[path]['pseudo_grad_probe_first8'],
      rtol=1e-3,
      atol=1e-3 * np.abs(probe).mean(),
    )


def test_transformed_rows(edit, stored):
  for path, factors in edit[1].items():
    row = int(np.flatnonzero(mend_network.kept_rows(*edit[0][path])[0])[0])
    for name, found in (('x', factors.x), ('g', factors.g)):
      np.testing.assert_allclose(
        found[0, row, :4],
        stored[path][f'{name}_tilde_row0_first4'],
        rtol=1e-3,
        atol=1e-4,
      )
