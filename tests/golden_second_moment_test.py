"""C of SmolLM2 against a PyTorch implementation that takes a row at a time."""

import numpy as np
import pytest

from me_jax.edits import second_moment_factor

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.golden]

_LAYERS = [4, 5, 6, 7, 8]
_RELATIVE = 1e-5


@pytest.fixture(scope='module')
def expected(golden):
  return golden('cov.json')


@pytest.mark.parametrize('layer', _LAYERS)
def test_second_moment(golden_second_moments, expected, layer):
  moment = golden_second_moments[layer]
  stored = expected['layers'][str(layer)]
  eigenvalues = np.linalg.eigvalsh(moment.mean)
  probe = moment.mean @ np.cos(np.arange(moment.mean.shape[0]))

  assert moment.count == expected['n']
  np.testing.assert_allclose(
    [
      np.trace(moment.mean),
      np.linalg.norm(moment.mean),
      eigenvalues[-1],
      eigenvalues[0],
    ],
    [stored[name] for name in ('trace', 'fro', 'max_eig', 'min_eig')],
    rtol=_RELATIVE,
  )
  # Entries of C p cancel: what is left is relative to |C p|, not to the entry.
  first = np.asarray(stored['C_probe_first8'])
  np.testing.assert_allclose(
    probe[:8], first, rtol=0, atol=_RELATIVE * np.abs(first).max()
  )


@pytest.mark.parametrize('layer', [4, 8])
def test_mean_of_quadratic_form_is_f(golden_second_moments, layer):
  moment = golden_second_moments[layer]
  solved = second_moment_factor.factor(moment).solve(moment.mean)
  # mean kᵀ C⁻¹ k = tr(C⁻¹ C)
  np.testing.assert_allclose(np.trace(solved), 1536, rtol=1e-9)


def test_condition_number_is_near_the_eigenvalues(
  golden_second_moments, expected
):
  moment, stored = golden_second_moments[5], expected['layers']['5']
  estimate = second_moment_factor.condition_number(
    moment, second_moment_factor.factor(moment)
  )
  exact = stored['max_eig'] / stored['min_eig']
  assert 0.9 * exact <= estimate <= exact * (1 + 1e-4)
