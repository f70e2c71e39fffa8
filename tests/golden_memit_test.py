"""One MEMIT batch of ten facts on SmolLM2 against a PyTorch implementation."""

import dataclasses

import numpy as np
import pytest

from me_jax.config import MemitConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import batched_values, memit_solve, second_moment_factor
from me_jax.edits import memit as memit_lib
from me_jax.edits import rows as rows_lib
from me_jax.edits.edit import apply_edit, frobenius_norm, kernel_path
from me_jax.generation import LlamaPredictor
from me_jax.typing import ModelState, ScoreRequest

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.golden]

CONFIG = MemitConfig()
LAYERS = CONFIG.layers


@dataclasses.dataclass
class Golden:
  """The stored numbers, and the inputs that they were made from."""

  json: dict
  arrays: dict
  requests: list
  templates: tuple


@pytest.fixture(scope='module')
def expected(golden):
  stored = golden('memit_batch.json')
  assert tuple(stored['layers']) == LAYERS
  return Golden(
    stored,
    golden('memit_batch.npz'),
    [
      EditRequest(**{**fields, 'case_id': str(fields['case_id'])})
      for fields in stored['requests']
    ],
    tuple(t for group in stored['templates'] for t in group),
  )


@pytest.fixture(scope='module')
def factors(golden_second_moments):
  return {
    layer: second_moment_factor.factor(golden_second_moments[layer])
    for layer in LAYERS
  }


@pytest.fixture(scope='module')
def rows(smollm2, expected):
  return [
    rows_lib.build_rows(smollm2.tokenizer, r, expected.templates)[0]
    for r in expected.requests
  ]


@pytest.fixture(scope='module')
def given_z(smollm2, expected, factors, rows):
  """Per layer, what is written for the stored targets."""

  def solve(layer, keys):
    return memit_solve.solve(keys, factors[layer], CONFIG.mom2_update_weight)

  return memit_lib.write_targets(
    CONFIG,
    smollm2.config,
    smollm2.params,
    rows,
    expected.arrays['z'],
    solve,
    layers=LAYERS,
    case_ids=[r.case_id for r in expected.requests],
  )


@pytest.fixture(scope='module')
def own_z(smollm2, rows):
  """The targets of our search."""
  return batched_values.find_targets(
    smollm2.config,
    smollm2.params,
    rows,
    layer=LAYERS[-1],
    search_config=memit_lib.search_config(CONFIG),
    batch_size=CONFIG.search_batch_size,
  )


def _relative(found, stored):
  return np.linalg.norm(found - stored) / np.linalg.norm(stored)


@pytest.mark.parametrize('h', range(len(LAYERS)))
def test_factors_for_the_stored_targets(given_z, expected, h):
  share, layer = given_z[h], LAYERS[h]
  left, right = expected.arrays[f'adj_k_{layer}'], expected.arrays
  assert _relative(share.change.left, left) < 1e-4
  assert _relative(share.change.right.T, right[f'resid_{layer}']) < 1e-4


@pytest.mark.parametrize('h', range(len(LAYERS)))
def test_norms_for_the_stored_targets(given_z, expected, h):
  stored = expected.json['per_layer'][h]
  np.testing.assert_allclose(
    [frobenius_norm(given_z[h].change), given_z[h].residual_norms.mean()],
    [stored['update_fro'], expected.json['z_error_means'][h]],
    rtol=1e-4,
  )


def test_targets_are_learned_as_well(smollm2, given_z, expected):
  edit = {kernel_path(s.layer): s.change for s in given_z}
  state = ModelState(apply_edit(smollm2.params, edit))
  predictor = LlamaPredictor(smollm2.config, smollm2.tokenizer)
  scores = []
  for request in expected.requests:
    joint = token_ids.joint_ids(
      smollm2.tokenizer, request.text, request.target_new
    )
    scores.append(
      ScoreRequest(context=joint.prompt, continuations=(joint.target,))
    )
  results = dict(predictor.score(state, scores))
  for i, stored in enumerate(expected.json['post_edit_target_nll']):
    found = -results[i].logprobs[0]
    np.testing.assert_allclose(found, stored, rtol=1e-3, atol=1e-3)


def test_first_losses_of_the_searches(own_z, expected):
  """Of the lines of one search after another, rounded to 3 decimals."""
  lines = np.array(expected.json['loss_lines'])
  # Only before its first update has a search no divergence at all.
  (starts,) = np.nonzero(lines[:, 2] == 0)
  assert len(starts) == len(own_z)
  evaluations = np.diff([*starts, len(lines)])
  for target, start, count in zip(own_z, starts, evaluations, strict=True):
    found = target.search
    losses = found.nll + found.kl + found.weight_decay
    np.testing.assert_allclose(
      losses[:3], lines[start : start + 3, 0], rtol=0, atol=1e-2
    )
    assert found.num_evaluations == count


def test_own_targets(own_z, expected):
  stored = expected.arrays['z'].astype(np.float64)
  found = np.stack([t.z for t in own_z]).astype(np.float64)
  norms = np.linalg.norm(found, axis=1), np.linalg.norm(stored, axis=1)
  cosines = (found * stored).sum(axis=1) / norms[0] / norms[1]
  assert (cosines >= 0.98).all()
  np.testing.assert_allclose(*norms, rtol=0.02)
