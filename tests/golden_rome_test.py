"""Six sequential ROME edits of SmolLM2 against a PyTorch implementation."""

import numpy as np
import pytest

from me_jax.config import RomeConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits import second_moment_factor
from me_jax.edits.rome import rome
from me_jax.generation import LlamaPredictor
from me_jax.typing import ModelState, ScoreRequest

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.golden]

_EDITS = [
  0,
  1,
  *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 6)),
]


@pytest.fixture(scope='module')
def expected(golden):
  stored, factors = (
    golden('rome_sequential.json'),
    golden('rome_sequential.npz'),
  )
  assert len(stored['edits']) == len(_EDITS)
  for i, edit in enumerate(stored['edits']):
    edit['left'], edit['right'] = factors[f'u{i}'], factors[f'v{i}']
  return stored


@pytest.fixture(scope='module')
def made(smollm2, golden_second_moments, expected):
  """The change of edit i, its log and the targets' NLL after it, by i.

  An edit starts from those before it, which are made when one asks for it.
  """
  # Some factors are stored as whole numbers.
  hparams = {
    name: type(getattr(RomeConfig, name))(value)
    for name, value in expected['hparams'].items()
  }
  editor = rome(
    RomeConfig(layer=expected['layer'], **hparams),
    smollm2.config,
    smollm2.tokenizer,
    templates=tuple(expected['templates']),
    factor=second_moment_factor.factor(
      golden_second_moments[expected['layer']]
    ),
  )
  predictor = LlamaPredictor(smollm2.config, smollm2.tokenizer)
  params, results = smollm2.params, []

  def edit_next():
    nonlocal params
    stored = expected['edits'][len(results)]
    fields = stored['request']
    request = EditRequest(**{**fields, 'case_id': str(fields['case_id'])})
    edit, _, (info,) = editor.edit(params, None, [request])
    params = edit_lib.apply_edit(params, edit)
    joint = token_ids.joint_ids(
      smollm2.tokenizer, request.text, request.target_new
    )
    assert joint.prompt == tuple(stored['prompt_ids'])
    score = ScoreRequest(context=joint.prompt, continuations=(joint.target,))
    ((_, result),) = predictor.score(ModelState(params), [score])
    (change,) = edit.values()
    results.append((change, info, -result.logprobs[0]))

  def made(i):
    while len(results) <= i:
      edit_next()
    return results[i]

  return made


def _cosine(a, b):
  a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize('i', _EDITS)
def test_tokens(made, expected, i):
  _, info, _ = made(i)
  assert info['target_ids'] == expected['edits'][i]['target_ids']
  assert info['lookup_position'] == expected['edits'][i]['lookup_index']


@pytest.mark.parametrize('i', _EDITS)
def test_directions(made, expected, i):
  change, _, _ = made(i)
  stored = expected['edits'][i]
  least_left, least_right = (0.99999, 0.999) if i == 0 else (0.999, 0.97)
  np.testing.assert_allclose(np.linalg.norm(change.left), 1, rtol=1e-6)
  assert _cosine(change.left, stored['left']) >= least_left
  assert _cosine(change.right, stored['right']) >= least_right


def test_losses_of_the_first_edit(made, expected):
  _, info, _ = made(0)
  stored = expected['edits'][0]['loss_nll_kl_wd']
  found = [
    [step[name] for name in ('loss', 'nll', 'kl', 'weight_decay')]
    for step in info['steps']
  ]
  np.testing.assert_allclose(found[:3], stored[:3], rtol=0, atol=1e-2)
  assert len(found) == len(stored)


@pytest.mark.parametrize('i', _EDITS)
def test_norms(made, expected, i):
  change, info, _ = made(i)
  stored = expected['edits'][i]
  found = [
    info['delta_norm'],
    info['change_norm'],
    np.linalg.norm(change.right),
    info['delta_norm'] / np.linalg.norm(change.right),
  ]
  np.testing.assert_allclose(
    found,
    [
      stored['delta_norm'],
      stored['update_norm'],
      stored['update_norm'],
      stored['k_dot_u'],
    ],
    # Later edits start from slightly different weights.
    rtol=0.01 if i == 0 else 0.05,
  )


@pytest.mark.parametrize('i', _EDITS)
def test_the_target_is_learned_as_well(made, expected, i):
  _, _, found = made(i)
  stored = np.array(expected['edits'][i]['post_edit_target_nll'])
  np.testing.assert_allclose(found, stored, rtol=0.1, atol=0.02)
