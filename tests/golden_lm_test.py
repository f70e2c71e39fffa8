"""SmolLM2's logits and greedy text against a PyTorch implementation."""

import numpy as np
import plain_model
import pytest

from me_jax.generation import LlamaPredictor
from me_jax.typing import GenerateRequest, ModelState, ScoreRequest

pytestmark = [pytest.mark.model, pytest.mark.golden]

_NEW = 40


@pytest.fixture(scope='module')
def texts(golden):
  return golden('lm.json')


@pytest.fixture(scope='module')
def predictor(smollm2):
  return LlamaPredictor(smollm2.config, smollm2.tokenizer)


def test_ids(smollm2, texts):
  assert len(texts) == 8
  for stored in texts:
    assert smollm2.tokenizer.encode(stored['text']) == stored['ids']


def test_total_nll(smollm2, predictor, texts):
  requests = [
    ScoreRequest(context=tuple(t['ids']), continuations=(), score_context=True)
    for t in texts
  ]
  results = dict(predictor.score(ModelState(smollm2.params), requests))
  found = [
    -results[i].context_logprobs.astype(np.float64).sum()
    for i in range(len(texts))
  ]
  expected = [t['total_nll'] for t in texts]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_best_next_tokens(smollm2, texts):
  for stored in texts:
    logits = np.asarray(
      plain_model.logits(
        smollm2.config, smollm2.params, np.array(stored['ids'])
      ),
      np.float64,
    )[-1]
    logprobs = logits - np.log(np.exp(logits - logits.max()).sum())
    logprobs -= logits.max()
    ids = stored['last_top8_ids']
    np.testing.assert_allclose(
      logprobs[ids], stored['last_top8_logprobs'], rtol=0, atol=2e-3
    )
    assert logprobs.argmax() == ids[0]
    # No other token is better than the eighth by more than the agreement.
    others = np.delete(logprobs, ids)
    assert others.max() <= stored['last_top8_logprobs'][-1] + 2e-3


def test_greedy_text(smollm2, predictor, texts):
  """All tokens: no ties part the two implementations."""
  requests = [
    GenerateRequest(prompt=tuple(t['ids']), max_new_tokens=_NEW) for t in texts
  ]
  results = dict(predictor.generate(ModelState(smollm2.params), requests))
  for i, stored in enumerate(texts):
    expected, found = list(stored['greedy_40']), results[i]
    # The stored tokens include the end token, ours do not.
    ended = expected[-1] == smollm2.tokenizer.eos_id
    assert ended or len(expected) == _NEW
    assert found.stop_reason == ('eos' if ended else 'length')
    assert found.tokens.tolist() == (expected[:-1] if ended else expected)
    assert found.text == stored['greedy_text']
