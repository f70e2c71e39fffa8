"""Eight GRACE edits of SmolLM2 against a PyTorch implementation."""

import numpy as np
import pytest

from me_jax.config import GraceConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits.grace import grace

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.golden]

_EDITS = [
  *range(3),
  *(pytest.param(i, marks=pytest.mark.slow) for i in range(3, 8)),
]
_COUNTS = [3, pytest.param(8, marks=pytest.mark.slow)]


@pytest.fixture(scope='module')
def expected(golden):
  stored = golden('grace_eps1.json')
  assert len(stored['edits']) == len(_EDITS)
  return stored | golden('grace_eps1.npz')


@pytest.fixture(scope='module')
def requests(expected):
  """The facts as they were written; the stored prompts hold their subject."""
  return [
    EditRequest.from_question(
      fields['prompt'],
      fields['subject'],
      case_id=str(fields['case_id']),
      target_new=fields['target_new'],
    )
    for fields in (edit['request'] for edit in expected['edits'])
  ]


@pytest.fixture(scope='module')
def made(smollm2, expected, requests):
  """The state after edit i and its log, by i; made when one asks for it."""
  settings = ('n_iter', 'val_init', 'replacement', 'eps_expand')
  editor = grace(
    GraceConfig(
      layer=expected['layer'],
      eps=expected['eps'],
      edit_lr=expected['lr'],
      **{name: expected[name] for name in settings},
    ),
    smollm2.config,
    smollm2.tokenizer,
  )
  state, results = editor.init(smollm2.params), []

  def made(i):
    nonlocal state
    while len(results) <= i:
      request = requests[len(results)]
      edit, state, (info,) = editor.edit(smollm2.params, state, [request])
      assert edit == {}
      results.append((state, info))
    return results[i]

  return made


@pytest.mark.parametrize('i', _EDITS)
def test_tokens(smollm2, expected, requests, i):
  stored = expected['edits'][i]
  joint = token_ids.joint_ids(
    smollm2.tokenizer, requests[i].text, requests[i].target_new
  )
  assert joint.full == tuple(stored['input_ids'])
  masked = [-100] * joint.num_prompt
  assert [*masked, *joint.target] == stored['labels']


@pytest.mark.parametrize('count', _COUNTS)
def test_keys(made, expected, count):
  state, _ = made(count - 1)
  found = np.asarray(state.codebook.keys)[:count]
  np.testing.assert_allclose(found, expected['keys'][:count], rtol=0, atol=1e-4)


@pytest.mark.parametrize('i', _EDITS)
def test_entries_and_radii(made, expected, i):
  stored, book = expected['edits'][i], made(i)[0].codebook
  assert int(book.count) == stored['n_keys']
  found = np.asarray(book.radii)[: int(book.count)]
  np.testing.assert_allclose(found, stored['epsilons'], rtol=0, atol=1e-4)


@pytest.mark.parametrize('i', _EDITS)
def test_losses(made, expected, i):
  stored, losses = expected['edits'][i], made(i)[1]['steps']
  assert len(losses) == expected['n_iter']
  assert losses[0]['loss'] == pytest.approx(stored['first_loss'], abs=1e-3)
  assert losses[-1]['loss'] == pytest.approx(stored['last_loss'], abs=0.02)


@pytest.mark.parametrize('count', _COUNTS)
def test_values(made, expected, count):
  """Fifty sign-like steps amplify rounding: the direction is what agrees."""
  state, _ = made(count - 1)
  found = np.asarray(state.codebook.values)[:count]
  for value, stored in zip(found, expected['values'][:count], strict=True):
    cosine = value @ stored / np.linalg.norm(value) / np.linalg.norm(stored)
    assert cosine > 0.99
