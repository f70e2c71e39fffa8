import jax
import jax.numpy as jnp
import numpy as np
import plain_model

from me_jax import sampling

PROMPT = [5, 200, 17]


def _sample(model, seed=0, batch=6, num_new_tokens=5, top_k=3):
  found = sampling.sample(
    model.config,
    model.params,
    jnp.asarray([PROMPT] * batch, jnp.int32),
    jax.random.key(seed),
    num_new_tokens=num_new_tokens,
    top_k=top_k,
  )
  assert found.shape == (batch, num_new_tokens)
  return np.asarray(found)


def test_seed_decides(tiny):
  first = _sample(tiny)
  np.testing.assert_array_equal(first, _sample(tiny))
  assert (first != _sample(tiny, seed=1)).any()
  assert len({tuple(row) for row in first}) > 1  # rows are independent


def test_only_the_most_probable_tokens(tiny):
  for row in _sample(tiny):
    ids = np.array([*PROMPT, *row])
    logits = np.asarray(plain_model.logits(tiny.config, tiny.params, ids))
    for position, token in enumerate(row, start=len(PROMPT) - 1):
      better = (logits[position] > logits[position][token]).sum()
      assert better < 3


def test_one_candidate_is_greedy(tiny):
  """Also says that the cached steps equal whole passes."""
  expected = plain_model.greedy(tiny.config, tiny.params, PROMPT, 5)
  np.testing.assert_array_equal(_sample(tiny, top_k=1), [expected] * 6)


def test_probabilities_are_those_of_the_model_renormalised(tiny):
  draws = _sample(tiny, batch=4000, num_new_tokens=1)[:, 0]
  logits = np.asarray(
    plain_model.logits(tiny.config, tiny.params, np.array(PROMPT))
  )[-1].astype(np.float64)
  top = np.argsort(-logits)[:3]
  expected = np.exp(logits[top]) / np.exp(logits[top]).sum()
  found = [(draws == token).mean() for token in top]
  # Four standard deviations of a frequency over 4000 draws.
  np.testing.assert_allclose(found, expected, rtol=0, atol=4 * 0.5 / 4000**0.5)
  assert expected.max() - expected.min() > 0.05  # far from uniform


def test_one_token_and_one_row(tiny):
  found = _sample(tiny, batch=1, num_new_tokens=1, top_k=1)
  expected = plain_model.greedy(tiny.config, tiny.params, PROMPT, 1)
  assert found.tolist() == [expected]
