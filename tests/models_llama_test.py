import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from me_jax import trees
from me_jax.models import attention, convert, llama, load, sites
from me_jax.models import cache as cache_lib
from me_jax.models import config as config_lib

IDS = [5, 200, 17, 17, 93, 0, 41]
TOLERANCE = 1e-5  # float32, activations and logits of order 1


@pytest.fixture(scope='module')
def small(tiny):
  """Shape and weights of two layers: quicker to compile."""
  config = dataclasses.replace(tiny.config, num_layers=2)
  return config, load.init_params(config)


@pytest.fixture(scope='module')
def tied(small):
  config = dataclasses.replace(small[0], tie_embeddings=True)
  return config, load.init_params(config)


def _batch(config, params, rows, length, side):
  """Logits [T, V] of each row, padded with ones to `length` on one side."""
  ids = np.ones((len(rows), length), np.int32)
  valid = np.zeros((len(rows), length), bool)
  spans = []
  for i, row in enumerate(rows):
    first = length - len(row) if side == 'left' else 0
    spans.append(slice(first, first + len(row)))
    ids[i, spans[i]] = row
    valid[i, spans[i]] = True
  ids, valid = jnp.asarray(ids), jnp.asarray(valid)
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  x = llama.run_layers(
    config,
    params,
    llama.embed(config, params, ids),
    positions=positions,
    mask=attention.causal_mask(positions, positions, valid),
  ).x
  found = np.asarray(llama.logits(config, params, x))
  assert np.isfinite(found).all()  # padding included
  return [found[i, span] for i, span in enumerate(spans)]


# Stopping and starting


@pytest.mark.parametrize('k', [0, 1, 3, 4])
def test_two_parts_equal_the_whole_bit_for_bit(tiny, k):
  order = jnp.arange(len(IDS))[None]
  run = functools.partial(
    llama.run_layers,
    tiny.config,
    tiny.params,
    positions=order,
    mask=order[:, None, :] <= order[:, :, None],
  )
  x = llama.embed(tiny.config, tiny.params, jnp.asarray([IDS]))
  whole = run(x)
  below = run(x, stop=k)
  above = run(below.x, start=k)
  np.testing.assert_array_equal(above.x, whole.x)
  caches = below.cache | above.cache
  assert set(caches) == set(whole.cache) == {'0', '1', '2', '3'}
  for name, pair in whole.cache.items():
    for ours, expected in zip(caches[name], pair, strict=True):
      np.testing.assert_array_equal(ours, expected)


def test_no_layers_is_the_identity(tiny):
  x = llama.embed(tiny.config, tiny.params, jnp.asarray([IDS]))
  output = plain_model.forward(tiny.config, tiny.params, IDS, start=2, stop=2)
  np.testing.assert_array_equal(output.x, x)
  assert output.cache == {} and output.taps == {}


def test_cached_tokens_equal_the_whole(tiny):
  config, params = tiny.config, tiny.params
  whole = plain_model.forward(config, params, IDS).x[0]
  cache = cache_lib.empty_cache(config, 1, 10)
  slots = jnp.arange(10)
  found = []
  for first, ids in ((0, IDS[:4]), (4, IDS[4:5]), (5, IDS[5:])):
    positions = jnp.arange(first, first + len(ids))[None]
    x, _, cache = llama.run_layers(
      config,
      params,
      llama.embed(config, params, jnp.asarray([ids])),
      positions=positions,
      mask=slots <= positions[..., None],
      cache=cache,
      cache_index=first,
    )
    found.extend(x[0])
  np.testing.assert_allclose(found, whole, rtol=0, atol=TOLERANCE)


# Sites


def _site_shapes(config, t):
  return {
    'mlp/in': (1, t, config.embed_dim),
    'mlp/gate': (1, t, config.mlp_dim),
    'mlp/up': (1, t, config.mlp_dim),
    'mlp/key': (1, t, config.mlp_dim),
    'mlp/out': (1, t, config.embed_dim),
    'resid': (1, t, config.embed_dim),
    'attn/probs': (1, config.num_heads, t, t),
  }


def test_taps_hold_what_their_names_say(tiny):
  config, params = tiny.config, tiny.params
  shapes = _site_shapes(config, len(IDS))
  assert set(shapes) == set(sites.NAMES)
  taps = tuple(sites.site(l, name) for l in (1, 2) for name in shapes)
  output = plain_model.forward(config, params, IDS, taps=taps)
  assert set(output.taps) == set(taps)
  for name, shape in shapes.items():
    assert output.taps[f'layers/2/{name}'].shape == shape

  # Site by site, from the weights.
  probs = output.taps['layers/2/attn/probs']
  np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
  assert not np.triu(probs[0, 0], 1).any()
  down = trees.get(params, 'layers/2/mlp/down_proj/kernel')
  np.testing.assert_allclose(
    output.taps['layers/2/mlp/key'] @ down,
    output.taps['layers/2/mlp/out'],
    rtol=0,
    atol=1e-6,
  )
  of = lambda name: output.taps[f'layers/2/mlp/{name}']
  for name in ('gate', 'up'):
    kernel = trees.get(params, f'layers/2/mlp/{name}_proj/kernel')
    np.testing.assert_allclose(of('in') @ kernel, of(name), rtol=0, atol=1e-6)
  np.testing.assert_allclose(
    jax.nn.silu(of('gate')) * of('up'), of('key'), rtol=0, atol=1e-6
  )
  below = plain_model.forward(config, params, IDS, stop=3)
  # Taps are compiled in, so only equal up to rounding.
  np.testing.assert_allclose(
    output.taps['layers/2/resid'], below.x, rtol=0, atol=TOLERANCE
  )


@pytest.mark.parametrize('name', sites.NAMES)
def test_identity_intervention_changes_nothing(tiny, name):
  seen = []

  def identity(output, site_input):
    seen.append((output.shape, site_input.shape))
    return output

  plain = plain_model.forward(tiny.config, tiny.params, IDS).x
  found = plain_model.forward(
    tiny.config,
    tiny.params,
    IDS,
    interventions={sites.site(1, name): identity},
  ).x
  # Compiled as a part of something else, so only equal up to rounding.
  np.testing.assert_allclose(found, plain, rtol=0, atol=TOLERANCE)
  ((output_shape, input_shape),) = seen
  assert output_shape == _site_shapes(tiny.config, len(IDS))[name]
  assert input_shape[:2] == output_shape[:2]


@pytest.mark.parametrize('name', sites.NAMES)
def test_intervention_gets_the_input_of_its_site(tiny, name):
  """Computing the site again from its input changes nothing."""
  layer = tiny.params['layers']['1']

  def again(output, site_input):
    mlp = layer['mlp']
    scale = layer['post_attention_layernorm']['scale']
    variance = (site_input**2).mean(axis=-1, keepdims=True)
    return {
      'mlp/in': lambda h: h / jnp.sqrt(variance + tiny.config.norm_eps) * scale,
      'mlp/gate': lambda x: x @ mlp['gate_proj']['kernel'],
      'mlp/up': lambda x: x @ mlp['up_proj']['kernel'],
      'mlp/key': lambda x: (
        jax.nn.silu(x @ mlp['gate_proj']['kernel'])
        * (x @ mlp['up_proj']['kernel'])
      ),
      'mlp/out': lambda x: x @ mlp['down_proj']['kernel'],
      'attn/probs': lambda x: jax.nn.softmax(x, axis=-1),
      'resid': lambda x: output + 0 * x,
    }[name](site_input)

  plain = plain_model.forward(tiny.config, tiny.params, IDS).x
  found = plain_model.forward(
    tiny.config, tiny.params, IDS, interventions={sites.site(1, name): again}
  ).x
  np.testing.assert_allclose(found, plain, rtol=0, atol=TOLERANCE)


def test_adding_to_mlp_out_equals_adding_to_resid(tiny):
  vector = jax.random.normal(jax.random.key(1), (tiny.config.embed_dim,))
  add = lambda output, _: output.at[0, 3].add(vector)
  run = lambda name: (
    plain_model.forward(
      tiny.config, tiny.params, IDS, interventions={sites.site(1, name): add}
    ).x
  )
  plain = plain_model.forward(tiny.config, tiny.params, IDS).x
  found = run('mlp/out')
  np.testing.assert_allclose(found, run('resid'), rtol=0, atol=TOLERANCE)
  # Nothing before token 3 sees it; what comes after does.
  np.testing.assert_allclose(found[0, :3], plain[0, :3], rtol=0, atol=TOLERANCE)
  assert (jnp.abs(found - plain)[0, 3:].max(axis=-1) > 1e-2).all()


def test_taps_see_the_intervention(tiny):
  zeros = lambda output, _: jnp.zeros_like(output)
  taps = ('layers/1/mlp/key', 'layers/1/mlp/out')
  output = plain_model.forward(
    tiny.config,
    tiny.params,
    IDS,
    taps=taps,
    interventions={'layers/1/mlp/key': zeros},
  )
  assert not output.taps['layers/1/mlp/key'].any()
  assert not output.taps['layers/1/mlp/out'].any()


@pytest.mark.parametrize('argument', ['taps', 'interventions'])
@pytest.mark.parametrize(
  'name',
  ['layers/4/resid', 'layers/0/resid', 'layers/1/mlp', 'layers/x/resid', 'x'],
)
def test_unknown_site(tiny, argument, name):
  given = (name,) if argument == 'taps' else {name: lambda output, _: output}
  with pytest.raises(ValueError, match=r'No site .*layers \[1, 4\)'):
    plain_model.forward(
      tiny.config, tiny.params, IDS, start=1, **{argument: given}
    )


def test_site_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="No site 'mlp'; there are mlp/in"):
    sites.site(0, 'mlp')


# Padding


@pytest.mark.parametrize(
  'side, length', [('left', 8), ('left', 31), ('right', 8), ('right', 16)]
)
def test_padding_and_company_change_nothing(small, side, length):
  rows = [IDS, IDS[2:4], list(range(8))]
  found = _batch(*small, rows, length, side)
  for row, logits in zip(rows, found, strict=True):
    alone = plain_model.logits(*small, jnp.asarray(row))
    np.testing.assert_allclose(logits, alone, rtol=0, atol=TOLERANCE)


def test_rows_that_see_nothing_are_finite(small):
  config, params = small
  shape = (2, 4)

  @jax.jit
  @jax.grad
  def gradient(params):
    x = llama.run_layers(
      config,
      params,
      llama.embed(config, params, jnp.zeros(shape, jnp.int32)),
      positions=jnp.zeros(shape, jnp.int32),
      mask=jnp.zeros((*shape, 4), bool).at[0].set(True),
    ).x
    logits = llama.logits(config, params, x)
    return jax.nn.logsumexp(logits[0], axis=-1).sum() + 0 * logits[1].sum()

  for path, leaf in trees.flatten(gradient(params)).items():
    assert jnp.isfinite(leaf).all(), path


def test_causal_mask():
  positions = jnp.array([[0, 0, 1]])
  valid = jnp.array([[False, True, True]])
  mask = attention.causal_mask(positions, positions, valid)
  expected = [[0, 1, 0], [0, 1, 0], [0, 1, 1]]
  np.testing.assert_array_equal(mask[0], np.array(expected, bool))


# Architecture


@pytest.mark.parametrize('num_kv_heads', [1, 2])
def test_grouped_queries_equal_repeated_keys_and_values(tiny, num_kv_heads):
  """Key head j serves the query heads j * groups ... (j + 1) * groups - 1."""
  config = dataclasses.replace(
    tiny.config, num_kv_heads=num_kv_heads, num_layers=2
  )
  params = load.init_params(config)
  groups = config.num_heads // num_kv_heads
  every_head = dataclasses.replace(config, num_kv_heads=config.num_heads)
  leaves = trees.flatten(params)
  for path, leaf in leaves.items():
    if path.endswith(('k_proj/kernel', 'v_proj/kernel')):
      heads = leaf.reshape(config.embed_dim, num_kv_heads, config.head_dim)
      leaves[path] = jnp.repeat(heads, groups, axis=1).reshape(
        config.embed_dim, -1
      )
  ids = jnp.asarray(IDS)
  np.testing.assert_allclose(
    plain_model.logits(config, params, ids),
    plain_model.logits(every_head, trees.unflatten(leaves), ids),
    rtol=0,
    atol=TOLERANCE,
  )


def test_rope_depends_on_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  turned = lambda x, position: attention.rope(x, jnp.array([[position]]), 100.0)
  product = lambda a, b: float((turned(q, a) * turned(k, b)).sum())
  np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
  assert abs(product(9, 4) - product(9, 5)) > 1e-2
  np.testing.assert_array_equal(turned(q, 0), q)


def test_tied_logits_use_the_embedding(tied):
  config, params = tied
  assert 'lm_head' not in params
  untied_config = dataclasses.replace(config, tie_embeddings=False)
  kernel = params['embed_tokens']['embedding'].T
  untied = {**params, 'lm_head': {'kernel': kernel}}
  ids = jnp.asarray(IDS)
  np.testing.assert_allclose(
    plain_model.logits(config, params, ids),
    plain_model.logits(untied_config, untied, ids),
    rtol=0,
    atol=TOLERANCE,
  )


@pytest.mark.parametrize(
  'change', [{'num_kv_heads': 3}, {'head_dim': 7}], ids=str
)
def test_impossible_shapes_are_refused(tiny, change):
  with pytest.raises(ValueError, match=next(iter(change))):
    dataclasses.replace(tiny.config, **change)


# Gradients


def _nll(config, params, delta):
  add = lambda output, _: output.at[0, 2].add(delta)
  x = plain_model.forward(
    config, params, IDS, interventions={'layers/0/mlp/out': add}
  ).x
  logprobs = jax.nn.log_softmax(llama.logits(config, params, x[0, :-1]))
  return -logprobs[jnp.arange(len(IDS) - 1), jnp.asarray(IDS[1:])].sum()


@pytest.mark.parametrize('tie_embeddings', [False, True])
def test_gradients_reach_every_parameter(small, tied, tie_embeddings):
  config, params = tied if tie_embeddings else small
  zero = jnp.zeros(config.embed_dim)
  loss = functools.partial(_nll, config)
  gradient = jax.jit(jax.grad(loss))(params, zero)
  leaves = trees.flatten(gradient)
  assert set(leaves) == set(trees.flatten(params))
  for path, leaf in leaves.items():
    assert jnp.isfinite(leaf).all() and leaf.any(), path


def test_gradient_of_an_intervention_equals_differences(small):
  loss = functools.partial(_nll, *small)
  zero = jnp.zeros(small[0].embed_dim)
  _, gradient = jax.jit(jax.value_and_grad(loss))(zero)
  loss = jax.jit(loss)
  direction = gradient / jnp.linalg.norm(gradient)
  step = 1e-2
  slope = (loss(step * direction) - loss(-step * direction)) / (2 * step)
  np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=1e-3)


# Parity


@pytest.mark.parametrize(
  'tie_embeddings, num_kv_heads', [(False, 2), (True, 4)]
)
def test_logits_equal_those_of_transformers(
  tmp_path, tie_embeddings, num_kv_heads
):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = config_lib.ModelConfig(
    vocab_size=257,
    embed_dim=32,
    mlp_dim=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=num_kv_heads,
    head_dim=16,  # not D / N
    max_positions=64,
    rope_theta=20_000.0,
    norm_eps=1e-3,
    tie_embeddings=tie_embeddings,
  )
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=257,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=num_kv_heads,
      head_dim=16,
      max_position_embeddings=64,
      rms_norm_eps=1e-3,
      rope_parameters={'rope_type': 'default', 'rope_theta': 20_000.0},
      tie_word_embeddings=tie_embeddings,
    )
  )
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      # Large enough for attention to be far from uniform.
      scale = 0.3 if parameter.ndim == 2 else 0.5
      parameter.normal_(1.0 if name.endswith('norm.weight') else 0.0, scale)
    ids = torch.randint(0, 257, (1, 33))
    expected = theirs.eval()(ids).logits[0].numpy()
  theirs.save_pretrained(tmp_path)

  params = convert.read_params(tmp_path, config)
  found = plain_model.logits(config, params, jnp.asarray(ids[0].numpy()))
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )
