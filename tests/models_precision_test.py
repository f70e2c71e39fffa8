"""Models in bfloat16, and their kernels that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from experiments import base
from me_jax import trees
from me_jax.edits.edit import LowRank, apply_edit, kernel_path
from me_jax.models import convert, load, precision
from me_jax.models.sites import site

IDS = jnp.asarray([80, 97, 114, 105, 115])
EXACT = (kernel_path(2),)


@pytest.fixture(scope='module')
def half(tiny):
  return precision.in_dtype(tiny, 'bfloat16', EXACT)


def test_all_is_rounded_but_what_is_kept(tiny, half):
  before = trees.flatten(tiny.params)
  for path, leaf in trees.flatten(half.params).items():
    if path in EXACT:
      assert leaf is before[path]
    else:
      assert leaf.dtype == jnp.bfloat16
      np.testing.assert_allclose(leaf, before[path], rtol=2**-8)
  assert half.config.dtype == 'bfloat16'
  other = precision.in_dtype(tiny, 'bfloat16')
  prints = {m.fingerprint for m in (tiny, half, other)}
  assert len(prints) == 3


def test_float32_is_what_it_was(tiny):
  assert precision.in_dtype(tiny, 'float32', EXACT) is tiny


def test_what_is_kept_must_be_there(tiny):
  with pytest.raises(KeyError, match='layers/9'):
    precision.in_dtype(tiny, 'bfloat16', (kernel_path(9),))
  with pytest.raises(ValueError, match='float16'):
    precision.in_dtype(tiny, 'float16')


def test_logits_are_float32_and_near(tiny, half):
  found = plain_model.logits(half.config, half.params, IDS)
  exact = plain_model.logits(tiny.config, tiny.params, IDS)
  assert found.dtype == jnp.float32
  error = float(jnp.abs(found - exact).max())
  assert 1e-4 < error < 0.15  # bfloat16 keeps 8 bits


def test_an_edit_too_small_for_bfloat16_acts(half):
  """The kernel's own product is float32, and the residual stream is not."""
  key, out, residual = (site(2, s) for s in ('mlp/key', 'mlp/out', 'resid'))

  @jax.jit
  def look(params):
    taps = (key, out, residual)
    return plain_model.forward(half.config, params, IDS, taps=taps).taps

  kernel = trees.get(half.params, EXACT[0])
  tiny_change = LowRank(
    jnp.full((kernel.shape[0], 1), 1e-3), jnp.full((1, kernel.shape[1]), 1e-2)
  )
  edited = apply_edit(half.params, {EXACT[0]: tiny_change})
  rounded = [
    trees.get(p, EXACT[0]).astype(jnp.bfloat16) for p in (half.params, edited)
  ]
  assert (rounded[0] == rounded[1]).mean() > 0.9
  before, after = look(half.params), look(edited)
  assert before[residual].dtype == before[key].dtype == jnp.bfloat16
  assert before[out].dtype == jnp.float32
  moved = before[key].astype(jnp.float32) @ (
    tiny_change.left @ tiny_change.right
  )
  np.testing.assert_allclose(after[out] - before[out], moved, atol=1e-6)
  assert float(jnp.abs(moved).max()) > 1e-5


def test_files_are_float32(half, tmp_path):
  for write in (
    lambda place: load.save_orbax(place, half),
    lambda place: convert.write_hf(place, half),
  ):
    with pytest.raises(ValueError, match='in_dtype'):
      write(tmp_path / 'm')
  whole = precision.in_dtype(half, 'float32')
  load.save_orbax(tmp_path / 'm', whole)
  found = load.load_model(str(tmp_path / 'm'))
  assert found.fingerprint == whole.fingerprint
  for path, leaf in trees.flatten(found.params).items():
    assert (leaf == trees.get(half.params, path)).all()


def test_a_codebook_wants_float32():
  with pytest.raises(ValueError, match='float32 for GRACE'):
    base.run_config('tiny', base.grace('tiny'), tasks=(), dtype='bfloat16')


def test_logits_keep_the_sums_of_products(half):
  """They are no numbers of bfloat16."""
  found = plain_model.logits(half.config, half.params, IDS)
  rounded = found.astype(jnp.bfloat16).astype(jnp.float32)
  assert (found != rounded).mean() > 0.9
