import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from me_jax.analysis import saliency as saliency_lib
from me_jax.analysis import saliency_summary
from me_jax.analysis.saliency import Prompt, saliency
from me_jax.models import llama, sites

LABELS = (10, 200)

# Prompts of few lengths, for few compilations.
_matrices = jax.jit(
  saliency_lib.saliency_matrices, static_argnums=0, static_argnames='loss'
)


def _prompts(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Prompt(
      ids=tuple(rng.integers(0, 256, size=n).tolist()),
      label_positions=(n // 3, n - 3),
      gold=int(rng.integers(2)),
    )
    for n in lengths
  ]


def _one(tiny, prompt, **kwargs):
  """The matrices [layers, T, T], logits and loss of a prompt alone."""
  matrices, logits, losses = _matrices(
    tiny.config,
    tiny.params,
    *map(jnp.array, ([prompt.ids], [len(prompt.ids)], LABELS, [prompt.gold])),
    **kwargs,
  )
  return np.stack([m[0] for m in matrices]), logits[0], losses[0]


def _scores(matrix, label_positions, target, **kwargs):
  """S_wp, S_pq, S_ww of one matrix."""
  is_label = np.isin(np.arange(len(matrix)), label_positions)
  found = saliency_lib.scores(
    jnp.asarray(matrix)[None],
    is_label=jnp.asarray(is_label)[None],
    target=jnp.array([target]),
    **kwargs,
  )
  return np.asarray(found[0])


def test_the_scores_of_the_specification():
  i, j = np.indices((6, 6))
  matrix = np.where(j <= i, 10.0 * i + j + 1, 0)
  found = _scores(matrix, (2, 4), 5)
  np.testing.assert_allclose(found, [213 / 6, 108 / 2, 264 / 7], rtol=1e-6)
  without = _scores(matrix, (2, 4), 5, exclude_bos=True)
  # Without column 0: of row 2 one, of row 4 three, of the others (3, 1),
  # (3, 2), (5, 1) and (5, 3).
  expected = [(22 + 42 + 43 + 44) / 4, 108 / 2, (32 + 33 + 52 + 54) / 4]
  np.testing.assert_allclose(without, expected, rtol=1e-6)


def test_padding_counts_for_nothing():
  matrix = np.abs(np.random.default_rng(0).standard_normal((9, 9)))
  np.testing.assert_allclose(
    _scores(matrix, (2, 4), 5), _scores(matrix[:6, :6], (2, 4), 5), rtol=1e-6
  )


@pytest.mark.parametrize('loss', saliency_lib.LOSSES)
def test_the_loss(tiny, loss):
  [prompt] = _prompts([12])
  _, logits, found = _one(tiny, prompt, loss=loss)
  all_logits = np.asarray(
    plain_model.logits(tiny.config, tiny.params, np.array(prompt.ids))
  )[-1]
  np.testing.assert_allclose(logits, all_logits[list(LABELS)], rtol=1e-5)
  among = all_logits[list(LABELS)] if loss == 'label_words' else all_logits
  expected = jax.nn.logsumexp(among) - all_logits[LABELS[prompt.gold]]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('layer', range(4))
def test_finite_differences(tiny, layer):
  """Against a forward pass with one pair's probabilities made larger, in all
  heads: sums of heads come before the absolute value."""
  [prompt] = _prompts([12], seed=1)
  matrices, *_ = _one(tiny, prompt)
  matrix = matrices[layer]
  ids = np.array(prompt.ids)

  @jax.jit
  def loss(scale):
    x = plain_model.forward(
      tiny.config,
      tiny.params,
      ids,
      interventions={
        sites.site(layer, 'attn/probs'): lambda probs, _: probs * scale
      },
    ).x[0, -1]
    logits = llama.logits(tiny.config, tiny.params, x)[jnp.array(LABELS)]
    return jax.nn.logsumexp(logits) - logits[prompt.gold]

  step = 0.05
  above = np.triu(np.ones_like(matrix), 1).astype(bool)
  assert not matrix[above].any()
  largest = np.argsort(matrix.ravel())[-6:]
  for i, j in zip(*np.unravel_index(largest, matrix.shape), strict=True):
    bump = np.zeros_like(matrix)
    bump[i, j] = step
    slope = float(loss(1 + bump) - loss(1 - bump)) / (2 * step)
    # The loss has seven digits, and the third derivative its share.
    np.testing.assert_allclose(
      abs(slope), matrix[i, j], rtol=1e-2, atol=2e-6 / step
    )


def test_heads_are_added_before_the_absolute_value(tiny):
  """By the definition: a mask for each head, and its gradient."""
  [prompt] = _prompts([12], seed=2)
  layer, ids = 1, np.array(prompt.ids)

  @jax.jit
  @jax.grad
  def flow(ones):
    x = plain_model.forward(
      tiny.config,
      tiny.params,
      ids,
      interventions={sites.site(layer, 'attn/probs'): lambda p, _: p * ones},
    ).x[0, -1]
    logits = llama.logits(tiny.config, tiny.params, x)[jnp.array(LABELS)]
    return jax.nn.logsumexp(logits) - logits[prompt.gold]

  by_head = np.asarray(flow(jnp.ones((1, tiny.config.num_heads, 12, 12))))[0]
  found = _one(tiny, prompt)[0][layer]
  np.testing.assert_allclose(
    found, np.abs(by_head.sum(0)), rtol=1e-4, atol=1e-7
  )
  assert not np.allclose(found, np.abs(by_head).sum(0), rtol=0.1)


def test_batches_of_any_length_give_what_each_gives_alone(tiny):
  prompts = _prompts([12, 20, 12, 12])
  found = saliency(tiny.config, label_ids=LABELS, batch_size=2)(
    tiny.params, prompts
  )
  assert found.scores.shape == (4, 3, 4) and found.scores.dtype == np.float64
  for i, prompt in enumerate(prompts):
    matrices, logits, loss = _one(tiny, prompt)
    expected = [
      _scores(m, prompt.label_positions, len(prompt.ids) - 1) for m in matrices
    ]
    np.testing.assert_allclose(
      found.scores[i].T, expected, rtol=1e-4, atol=1e-8
    )
    np.testing.assert_allclose(
      found.label_logits[i], logits, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found.losses[i], loss, rtol=1e-4)


def test_it_compiles_once_per_bucket(tiny):
  traces = []
  measure = saliency(
    tiny.config,
    label_ids=LABELS,
    batch_size=2,
    on_trace=lambda: traces.append(1),
  )
  first = measure(tiny.params, _prompts([12, 20, 14, 16, 11]))
  assert len(traces) == 2
  other = jax.tree.map(lambda leaf: 1.01 * leaf, tiny.params)
  measure(other, _prompts([15, 21, 22, 32, 9, 10]))
  assert len(traces) == 2
  again = measure(tiny.params, _prompts([12, 20, 14, 16, 11]))
  np.testing.assert_array_equal(first.scores, again.scores)


def test_exclude_bos(tiny):
  [prompt] = _prompts([12])
  matrices, *_ = _one(tiny, prompt)
  found = saliency(
    tiny.config, label_ids=LABELS, batch_size=1, exclude_bos=True
  )(tiny.params, [prompt])
  # What is left is a text of one token less.
  labels = [p - 1 for p in prompt.label_positions]
  expected = [_scores(m[1:, 1:], labels, 10) for m in matrices]
  np.testing.assert_allclose(found.scores[0].T, expected, rtol=1e-4)


@pytest.mark.parametrize(
  'changes',
  [
    {'label_positions': ()},
    {'label_positions': (0, 4)},
    {'label_positions': (4, 3)},
    {'label_positions': (3, 3)},
    {'label_positions': (3, 11)},
    {'gold': 2},
    {'gold': -1},
  ],
)
def test_prompts_that_make_no_sense(tiny, changes):
  [prompt] = _prompts([12])
  measure = saliency(tiny.config, label_ids=LABELS)
  with pytest.raises(ValueError, match='label'):
    measure(tiny.params, [prompt._replace(**changes)])


def test_settings_that_make_no_sense(tiny):
  with pytest.raises(ValueError, match='loss must be one of label_words'):
    saliency(tiny.config, label_ids=LABELS, loss='words')
  for label_ids in [(3,), (3, 3)]:
    with pytest.raises(ValueError, match='at least two labels'):
      saliency(tiny.config, label_ids=label_ids)
  with pytest.raises(ValueError, match='at least one prompt'):
    saliency(tiny.config, label_ids=LABELS)(tiny.params, [])


def test_a_collapsed_model_is_right_nowhere(tiny):
  broken = jax.tree.map(lambda leaf: leaf * np.nan, tiny.params)
  prompts = _prompts([12])
  found = saliency(tiny.config, label_ids=LABELS, batch_size=1)(broken, prompts)
  assert np.isnan(found.scores).all()
  first = [p._replace(gold=0) for p in prompts]
  flow = saliency_summary.summarise([(first, found)])
  assert flow.label_accuracy == 0.0 and np.isnan(flow.late_pq_share)
  assert flow.crossover_layer is None
