import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import values
from me_jax.edits.edit import LowRank, apply_edit
from me_jax.edits.rows import build_rows
from me_jax.models import llama, sites

LAYER = 1
TEMPLATES = ('{}', 'So it goes. {}', 'I. {}')
REQUEST = EditRequest(
  case_id='7', subject='Ada', prompt='Where is {} now?', target_new='Ulm'
)
PAPER = values.SearchConfig(
  v_num_grad_steps=25,
  v_lr=0.5,
  v_weight_decay=1e-3,
  clamp_norm_factor=4.0,
  kl_factor=0.0625,
  early_stop_loss=0.05,
)
# Never stops early, never clamps.
FREE = dataclasses.replace(PAPER, early_stop_loss=0.0, clamp_norm_factor=1e6)


@pytest.fixture(scope='module')
def rows(tiny):
  return build_rows(tiny.tokenizer, REQUEST, TEMPLATES)[0]


@pytest.fixture(scope='module')
def prepared(tiny, rows):
  return _prepare(tiny, rows)


def _prepare(model, rows, site='mlp/out'):
  return values.prepare(
    model.config, model.params, rows, layer=LAYER, site=site
  )


def _search(model, rows, prepared, config):
  return jax.device_get(
    values.search(
      model.config,
      model.params,
      rows,
      prepared,
      layer=LAYER,
      search_config=config,
    )
  )


@pytest.fixture(scope='module')
def paper_search(tiny, rows, prepared):
  return _search(tiny, rows, prepared, PAPER)


@pytest.fixture(scope='module')
def free_search(tiny, rows, prepared):
  return _search(tiny, rows, prepared, FREE)


class PlainSearch:
  """The search as it is defined: whole passes over every row, nothing reused.

  Built from the texts, not from `Rows`.
  """

  def __init__(self, model):
    encode = model.tokenizer.encode
    self.model, self.site = model, sites.site(LAYER, 'mlp/out')
    joints = [
      token_ids.joint_ids(
        model.tokenizer, t.replace('{}', REQUEST.text), REQUEST.target_new
      )
      for t in TEMPLATES
    ]
    essence = encode(f'{REQUEST.subject} is a')
    texts = [*(j.full[:-1] for j in joints), tuple(essence)]
    # Padded on the right, where causal attention cannot see it.
    self.ids = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for i, text in enumerate(texts):
      self.ids[i, : len(text)] = text
    ends = [len(encode(t.replace('{}', 'Where is Ada'))) - 1 for t in TEMPLATES]
    self.lookups = np.array([*ends, len(encode('Ada')) - 1])
    self.targets = np.array([j.target for j in joints])
    self.predictors = np.array(
      [np.arange(len(j.target)) + j.num_prompt - 1 for j in joints]
    )
    self.taps, self.before = self._unchanged()
    self.start = self.taps[self.site][0]

  def _forward(self, delta, taps=()):
    c, params = self.model.config, self.model.params
    rows = jnp.arange(len(self.ids))
    add = lambda output, _: output.at[rows, self.lookups].add(delta)
    order = jnp.broadcast_to(jnp.arange(self.ids.shape[1]), self.ids.shape)
    with jax.default_matmul_precision('highest'):
      output = llama.run_layers(
        c,
        params,
        llama.embed(c, params, jnp.asarray(self.ids)),
        positions=order,
        mask=order[:, None, :] <= order[:, :, None],
        taps=taps,
        interventions={self.site: add},
      )
      logits = llama.logits(c, params, output.x)
    return jax.nn.log_softmax(logits), output.taps

  def _unchanged(self):
    """Sites at the lookup positions, and the essence."""
    taps = tuple(sites.site(LAYER, n) for n in ('mlp/key', 'mlp/out', 'resid'))
    zero = jnp.zeros(self.model.config.embed_dim)
    logprobs, tapped = jax.jit(lambda: self._forward(zero, taps))()
    rows = np.arange(len(self.ids))
    at_lookup = {
      s: np.asarray(x)[rows, self.lookups] for s, x in tapped.items()
    }
    return at_lookup, logprobs[-1, self.lookups[-1]]

  def parts(self, delta, config):
    logprobs, _ = self._forward(delta)
    rows = np.arange(len(TEMPLATES))[:, None]
    nll = -logprobs[rows, self.predictors, self.targets].mean(axis=1).mean()
    now = logprobs[-1, self.lookups[-1]]
    kl = config.kl_factor * (jnp.exp(now) * (now - self.before)).sum()
    # Differentiable at zero, where the gradient is then 0.
    norm = jnp.sqrt((delta**2).sum() + 1e-20)
    decay = config.v_weight_decay * norm / (self.start**2).sum()
    return nll, kl, decay

  @functools.cached_property
  def evaluate(self):
    """Loss, its three parts and its gradient."""

    def loss(delta):
      parts = self.parts(delta, PAPER)
      return sum(parts), jnp.stack(parts)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  def search(self, config):
    """The histories [steps, 3] of the parts and [steps, D] of delta."""
    adam = optax.adam(config.v_lr)
    largest = config.clamp_norm_factor * np.linalg.norm(self.start)
    delta = jnp.zeros(self.model.config.embed_dim)
    moments = adam.init(delta)
    history, deltas = [], []
    for it in range(config.v_num_grad_steps):
      (total, parts), grad = self.evaluate(delta)
      history.append(np.asarray(parts))
      deltas.append(np.asarray(delta))
      if total < config.early_stop_loss or it == config.v_num_grad_steps - 1:
        break
      update, moments = adam.update(grad, moments)
      delta = delta + update
      norm = np.linalg.norm(delta)
      if norm > largest:
        delta = delta * (largest / norm)
    return np.array(history), np.array(deltas)

  def gradient_at_zero(self):
    return np.asarray(self.evaluate(jnp.zeros(self.model.config.embed_dim))[1])


@pytest.fixture(scope='module')
def plain(tiny):
  return PlainSearch(tiny)


def _assert_same_search(found, history, deltas):
  n = int(found.num_evaluations)
  assert n == len(history)
  np.testing.assert_allclose(
    np.stack([found.nll, found.kl, found.weight_decay], axis=1)[:n].sum(axis=1),
    history.sum(axis=1),
    rtol=1e-5,
  )
  np.testing.assert_allclose(found.nll[:n], history[:, 0], rtol=1e-5)
  # Differences of log-probabilities: rounding relative to those.
  np.testing.assert_allclose(found.kl[:n], history[:, 1], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    found.weight_decay[:n], history[:, 2], rtol=1e-5, atol=1e-9
  )
  norms = np.linalg.norm(deltas, axis=1)
  np.testing.assert_allclose(found.delta_norm[:n], norms, rtol=1e-5)
  np.testing.assert_allclose(
    found.delta, deltas[-1], rtol=0, atol=1e-5 * max(norms[-1], 1)
  )


def test_tail_only_search_equals_the_plain_one(plain, paper_search):
  assert paper_search.projected.any()
  _assert_same_search(paper_search, *plain.search(PAPER))


def test_so_it_does_without_a_clamp(plain, free_search):
  assert not free_search.projected.any()
  _assert_same_search(free_search, *plain.search(FREE))


# What is prepared


def test_keys_and_outputs_are_those_of_whole_texts(plain, prepared):
  for found, name in (
    (prepared.keys, 'mlp/key'),
    (prepared.outputs, 'mlp/out'),
  ):
    expected = plain.taps[sites.site(LAYER, name)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_block_output_can_be_searched_too(tiny, rows, plain):
  """MEMIT's site: only the vector that the search starts from differs."""
  found = _prepare(tiny, rows, site='resid')
  expected = plain.taps[sites.site(LAYER, 'resid')]
  np.testing.assert_allclose(found.outputs, expected, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(found.tail[:, 0], found.outputs)


def test_essence_is_what_the_model_says_after_the_subject(plain, prepared):
  np.testing.assert_allclose(prepared.essence, plain.before, rtol=0, atol=1e-5)


# Identity 7: the search itself


def test_starts_without_divergence_and_decay(paper_search):
  found = paper_search
  assert abs(found.kl[0]) < 1e-6
  assert found.weight_decay[0] == 0 and found.delta_norm[0] == 0
  assert not found.projected[0]


def test_delta_never_leaves_the_clamp(prepared, paper_search):
  found = paper_search
  n = int(found.num_evaluations)
  largest = 4 * np.linalg.norm(prepared.outputs[0])
  assert (found.delta_norm[:n] <= largest * (1 + 1e-6)).all()
  np.testing.assert_allclose(
    found.delta_norm[:n][found.projected[:n]], largest, rtol=1e-6
  )


def test_one_update_is_adams_sign_step(tiny, rows, prepared, plain):
  config = dataclasses.replace(FREE, v_num_grad_steps=2)
  found = _search(tiny, rows, prepared, config)
  gradient = plain.gradient_at_zero()
  # Adam's 1e-8 turns the sign into g / (|g| + 1e-8).
  assert (np.abs(gradient) > 1e-5).all()
  np.testing.assert_allclose(found.delta, -0.5 * np.sign(gradient), rtol=2e-3)
  np.testing.assert_allclose(
    found.delta_norm[1], 0.5 * tiny.config.embed_dim**0.5, rtol=2e-3
  )
  assert not found.projected[1]


def test_the_first_update_is_projected(tiny, rows, prepared, plain):
  config = dataclasses.replace(FREE, v_num_grad_steps=2, clamp_norm_factor=1.0)
  found = _search(tiny, rows, prepared, config)
  step = -np.sign(plain.gradient_at_zero())
  start = np.linalg.norm(prepared.outputs[0])
  assert start < 0.5 * np.linalg.norm(step)
  np.testing.assert_allclose(
    found.delta, step * start / np.linalg.norm(step), rtol=2e-3
  )
  assert found.projected[1]


def test_25_evaluations_are_24_updates(plain, free_search):
  assert free_search.num_evaluations == 25
  # What is returned was evaluated, not updated again.
  norm = np.linalg.norm(free_search.delta)
  np.testing.assert_allclose(free_search.delta_norm[24], norm, rtol=1e-6)
  _, deltas = plain.search(FREE)
  distances = np.linalg.norm(deltas - free_search.delta, axis=1)
  assert distances.argmin() == 24
  assert distances[24] < 1e-3 * distances[23]


def test_the_loss_falls(free_search):
  assert free_search.nll[24] < free_search.nll[0] - 0.5
  rise = free_search.target_probability[24] / free_search.target_probability[0]
  assert rise > 1.5


def test_stops_below_the_loss_without_another_update(
  tiny, rows, prepared, free_search
):
  losses = free_search.nll + free_search.kl + free_search.weight_decay
  threshold = float(losses[2:4].mean())
  stop = int(np.argmax(losses < threshold))
  assert stop == 3
  config = dataclasses.replace(FREE, early_stop_loss=threshold)
  found = _search(tiny, rows, prepared, config)
  assert found.num_evaluations == stop + 1
  np.testing.assert_allclose(
    found.delta_norm[stop], np.linalg.norm(found.delta), rtol=1e-6
  )
  assert not found.nll[stop + 1 :].any()


# Compilation


def test_edits_of_one_bucket_share_the_compiled_functions(tiny, paper_search):
  counts = values.prepare._cache_size(), values.search._cache_size()
  assert min(counts) >= 1

  # Another fact, on other weights.
  request = EditRequest(
    case_id='8', subject='Bob', prompt='Where is {} now?', target_new='Rom'
  )
  other = build_rows(tiny.tokenizer, request, TEMPLATES)[0]
  path = 'layers/1/mlp/down_proj/kernel'
  change = LowRank(jnp.ones((64, 1)), jnp.ones((1, 32)) / 64)
  edited = dataclasses.replace(
    tiny, params=apply_edit(tiny.params, {path: change})
  )
  found = _search(edited, other, _prepare(edited, other), PAPER)
  assert np.isfinite(found.delta).all()
  assert counts == (values.prepare._cache_size(), values.search._cache_size())
