import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from me_jax import trees
from me_jax.config import MendConfig, mend_preset
from me_jax.data import token_ids
from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.edits import mend as mend_lib
from me_jax.edits import (
  mend_examples,
  mend_factors,
  mend_file,
  mend_network,
  mend_training,
  registry,
  target_texts,
)
from me_jax.edits.edit import LowRank, apply_edit, digest
from me_jax.models.config import PRESETS

LAYERS = (2, 3)
CONFIG = MendConfig(
  layers=LAYERS,
  rank=12,
  lr=1e-3,
  alpha_lr=1e-3,
  edit_lr=1e-3,
  accumulate=3,
  max_iters=30,
  val_interval=6,
)


def _fact(i, subject, target):
  return EditRequest(
    case_id=f'fact-{i}',
    subject=subject,
    prompt='Where is {}?',
    target_new=target,
    rephrase_prompts=(f'{subject} is in',),
    locality_prompts=(LocalityPrompt(prompt='Who am I', answer='Me'),),
  )


FACTS = [
  _fact(i, subject, target)
  for i, (subject, target) in enumerate(
    [('Ada', 'Rome'), ('Bob', 'Oslo'), ('Cyd', 'Bari'), ('Dan', 'Nice')]
  )
]
ADA, BOB = FACTS[:2]


@pytest.fixture(scope='module')
def prepared(tiny):
  examples = mend_examples.make_examples(tiny.tokenizer, FACTS, max_length=40)
  prepare = mend_examples.Preparer(tiny.config, tiny.params, LAYERS[0], 1 << 20)
  return [prepare(example) for example in examples]


def _group(*args, **kwargs):
  return jax.tree.map(jnp.asarray, mend_examples.group(*args, **kwargs))


def _group_factors(config, model, group):
  """Compiled; the config is a constant of it."""
  return jax.jit(
    lambda params, group: mend_training._raw_factors(
      config, model.config, params, group
    )[0]
  )(model.params, group)


@pytest.fixture(scope='module')
def group(prepared):
  return _group(prepared[:3], batch=1, outer='rephrase')


@functools.partial(jax.jit, static_argnames=('config', 'batch'))
def _raw(config, params, rows, batch=1):
  x = mend_factors.entering(config, params, rows, LAYERS[0])
  return mend_factors.raw_factors(
    config, params, x, rows, layers=LAYERS, batch=batch
  )


# Step by step each operation would be compiled for itself.
_running = jax.jit(mend_network.running_moments)
_frozen = jax.jit(mend_network.frozen_moments)
_changes = jax.jit(mend_network.changes, static_argnums=3)
_transform = jax.jit(mend_network.transform)


def _text(model, fact):
  return target_texts.text(model.tokenizer, fact.text, fact.target_new)


@pytest.fixture(scope='module')
def raw(tiny):
  rows = target_texts.stack([_text(tiny, fact) for fact in FACTS[:3]])
  return _raw(tiny.config, tiny.params, rows)[0]


@pytest.fixture(scope='module')
def update(tiny):
  return mend_training.make_update(CONFIG, tiny.config)


@pytest.fixture(scope='module')
def state(tiny, group, update):
  """After one step of training."""
  start = mend_training.init_state(CONFIG, tiny.config)
  return update(tiny.params, start, group)[0]


@pytest.fixture(scope='module')
def trained(tiny, state):
  return mend_file.Trained(
    state.params,
    state.statistics,
    tiny.fingerprint,
    mend_file.settings(CONFIG),
    {'iteration': 3},
  )


# Raw factors


def _mean_nll(config, kernels, params, texts):
  """The mean over all target tokens, text by text, without padding."""
  for path, kernel in kernels.items():
    params = trees.set_leaf(params, path, kernel)
  losses = []
  for text in texts:
    logits = plain_model.logits(config, params, jnp.array(text.ids))
    said = jax.nn.log_softmax(logits[-len(text.targets) :])
    losses.append(-said[jnp.arange(len(text.targets)), list(text.targets)])
  return jnp.concatenate(losses).mean()


@pytest.mark.parametrize('batch', [1, 2])
def test_factors_reproduce_the_weight_gradient(tiny, batch):
  """Σ x ⊗ g = ∂loss/∂W, of each example apart."""
  facts = FACTS[: 2 * batch]
  # Of different lengths, so that there is padding.
  facts[-1] = dataclasses.replace(facts[-1], target_new='Constantinople')
  texts = [_text(tiny, fact) for fact in facts]
  rows = target_texts.stack(texts)
  assert len(set(rows.lengths)) > 1 and rows.ids.shape[1] > rows.lengths.max()
  raw, losses = _raw(tiny.config, tiny.params, rows, batch=batch)
  kernels = {p: trees.get(tiny.params, p) for p in raw}
  for e in range(2):
    of_example = texts[e * batch : (e + 1) * batch]
    loss, grads = jax.value_and_grad(_mean_nll, argnums=1)(
      tiny.config, kernels, tiny.params, of_example
    )
    if batch == 1:
      np.testing.assert_allclose(losses[e], loss, rtol=1e-5)
    for path, grad in grads.items():
      found = raw[path].x[e].T @ raw[path].g[e]
      np.testing.assert_allclose(
        found, grad, rtol=0, atol=1e-5 * float(jnp.abs(grad).max())
      )


def test_kept_rows_are_those_that_the_loss_depends_on(tiny, raw):
  """In the last layer where a target is predicted, below at every token."""
  for path, (x, g) in raw.items():
    for e, fact in enumerate(FACTS[:3]):
      text = _text(tiny, fact)
      kept = np.flatnonzero(mend_network.kept_rows(x, g)[e])
      count, length = len(text.targets), len(text.ids)
      first = length - count if 'layers/3' in path else 0
      assert kept.tolist() == list(range(first, length))


def test_order_of_matrices_survives_jit():
  layers = (9, 10)
  paths = mend_factors.edited_paths(layers)
  assert [p.split('/')[1] for p in paths] == ['9'] * 3 + ['10'] * 3
  assert [p.split('/')[3][:2] for p in paths] == ['ga', 'up', 'do'] * 2
  shuffled = jax.jit(lambda d: d)({path: 0 for path in paths})
  assert tuple(shuffled) != paths
  assert mend_factors.ordered(shuffled) == paths


# The normaliser


def test_running_statistics_are_those_of_two_passes(tiny, raw):
  empty = mend_network.init_statistics(CONFIG, tiny.config)
  seen, used = _running(empty, raw)
  rows = {name: ([], []) for name in seen}
  for e in range(3):
    for path in mend_factors.edited_paths(LAYERS):
      x, g = (np.asarray(a[e], np.float64) for a in raw[path])
      name = mend_network.shape_name(x.shape[1], g.shape[1])
      keep = (x != 0).any(axis=1) & (g != 0).any(axis=1)
      rows[name][0].extend(x[keep])
      rows[name][1].extend(g[keep])
      # What a matrix is standardised with counts its own rows, no later ones.
      for i, values in enumerate(rows[name]):
        mean, std = used[path][2 * i][e], used[path][2 * i + 1][e]
        _close(mean, np.mean(values, axis=0), np.std(values, axis=0))
        _close(std, np.std(values, axis=0, ddof=1))
  for name, (x, g) in rows.items():
    assert int(seen[name].count) == len(x) == len(g)


def _close(found, expected, scale=None):
  scale = np.abs(expected).max() if scale is None else scale.max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_one_row_or_none_is_no_division_by_zero():
  config = PRESETS['tiny'].config
  empty = mend_network.init_statistics(CONFIG, config)['32x64']
  none = mend_network.absorb(empty, jnp.zeros((2, 32)), jnp.zeros((2, 64)))
  one = mend_network.absorb(none, jnp.ones((1, 32)), jnp.ones((1, 64)))
  assert int(none.count) == 0 and int(one.count) == 1
  for seen in (none, one):
    assert all(np.isfinite(a).all() for a in mend_network.moments(seen))
  np.testing.assert_array_equal(one.x_mean, 1)


# The transform


def _standardised(tiny, raw):
  empty = mend_network.init_statistics(CONFIG, tiny.config)
  _, used = _running(empty, raw)
  expected = {}
  for path, (x, g) in raw.items():
    m = used[path]
    kept = mend_network.kept_rows(x, g)[..., None]
    x = (x - m.x_mean[:, None]) / (m.x_std[:, None] + 1e-7)
    g = (g - m.g_mean[:, None]) / (m.g_std[:, None] + 1e-7)
    expected[path] = mend_factors.Factors(x * kept, g * kept)
  return used, expected


def test_identity_at_initialisation(tiny, raw):
  used, expected = _standardised(tiny, raw)
  params = mend_network.init_params(CONFIG, tiny.config)
  found = _transform(params, used, raw)
  assert set(found) == set(expected)
  for path, factors in found.items():
    for a, b in zip(factors, expected[path], strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6)


def test_matrices_of_one_shape_differ_by_their_mode(tiny, raw):
  """A shift of mode 1 moves up_proj of the first layer, and no other."""
  used, _ = _standardised(tiny, raw)
  params = mend_network.init_params(CONFIG, tiny.config)
  before = _transform(params, used, raw)
  layer = params['networks']['32x64']['1']
  layer['shift'] = layer['shift'].at[1].set(0.5)
  after = _transform(params, used, raw)
  for path, (x, _) in before.items():
    moved = np.asarray(after[path].x - x)
    kept = np.asarray(mend_network.kept_rows(*raw[path]))
    wanted = 0.5 if path == 'layers/2/mlp/up_proj/kernel' else 0
    np.testing.assert_allclose(moved[kept], wanted, atol=1e-6)
    assert not moved[~kept].any()


def test_layers_follow_the_formula(tiny, raw):
  """In float64, with random parameters."""
  used, standardised = _standardised(tiny, raw)
  params = mend_network.init_params(CONFIG, tiny.config)
  draw = np.random.default_rng(0)
  params['networks'] = jax.tree.map(
    lambda a: jnp.asarray(draw.normal(size=a.shape) / 5, jnp.float32),
    params['networks'],
  )
  found = _transform(params, used, raw)
  for name, paths in mend_network.matrices(tiny.config, LAYERS).items():
    for mode, path in enumerate(paths):
      h = np.concatenate(standardised[path], axis=-1).astype(np.float64)
      for _, p in sorted(params['networks'][name].items()):
        p = {n: np.asarray(a, np.float64) for n, a in p.items()}
        z = h @ p['v'].T @ p['u'].T + p['b']
        h = h + np.maximum(0, p['scale'][mode] * z + p['shift'][mode])
      kept = np.asarray(mend_network.kept_rows(*raw[path]))
      both = np.concatenate(found[path], axis=-1)
      np.testing.assert_allclose(both[kept], h[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'shape, params', [('4096x11008', 116_390_000), ('11008x4096', 116_210_000)]
)
def test_network_sizes_at_7b(shape, params):
  found = mend_network.num_params(MendConfig(), PRESETS['llama2_7b'].config)
  np.testing.assert_allclose(found[shape], params, rtol=1e-3)
  assert len(found) == 2


def test_rank_is_at_most_the_width():
  tiny = PRESETS['tiny'].config
  params = mend_network.init_params(MendConfig(layers=LAYERS), tiny)
  assert params['networks']['32x64']['0']['v'].shape == (96, 96)


def test_presets():
  assert mend_preset('llama2_7b') == MendConfig()
  for name in ('smollm2_135m', 'tiny'):
    model, config = PRESETS[name].config, mend_preset(name, lr=1e-3)
    last = model.num_layers
    assert config.layers == (last - 3, last - 2, last - 1)
    assert config.lr == 1e-3
    width = model.embed_dim + model.mlp_dim
    assert width / 17 < config.rank <= width / 16


# Training


def _loss(config, model, group):
  """A function of the networks: the loss of a first step."""
  raw = _group_factors(config, model, group)
  empty = mend_network.init_statistics(config, model.config)
  _, used = _running(empty, raw)
  return lambda params: mend_training.edited_scores(
    config, model.config, model.params, params, used, raw, group
  )['loss']


def test_first_gradient_reaches_u(tiny, group):
  """relu has gradient 0 at 0: with it nothing but the step sizes moves."""
  params = mend_network.init_params(CONFIG, tiny.config)
  grads = jax.jit(jax.grad(_loss(CONFIG, tiny, group)))(params)
  for network in grads['networks'].values():
    for layer in network.values():
      for name in ('u', 'b', 'shift'):
        assert float(jnp.abs(layer[name]).max()) > 0
      assert not layer['v'].any()  # U is still zero
  assert (grads['edit_lrs'] != 0).all()


@pytest.mark.parametrize('sign', ['minus', 'plus'])
def test_before_training_an_edit_is_a_step_along_the_gradient(tiny, sign):
  """Down the loss of the edit or up."""
  config = dataclasses.replace(
    CONFIG, step_sign=sign, c_edit=1.0, c_loc=0.0, outer='same'
  )
  examples = mend_examples.make_examples(
    tiny.tokenizer, FACTS[:3], max_length=40
  )
  prepare = mend_examples.Preparer(tiny.config, tiny.params, LAYERS[0], 0)
  group = _group([prepare(e) for e in examples], batch=1, outer='same')
  loss = jax.jit(_loss(config, tiny, group))
  params = mend_network.init_params(config, tiny.config)
  before, after = (
    float(loss({**params, 'edit_lrs': jnp.full(6, edit_lr)}))
    for edit_lr in (0.0, 1e-5)
  )
  assert (after < before) == (sign == 'minus')


@pytest.fixture(scope='module')
def validate(tiny):
  return mend_training.make_validate(CONFIG, tiny.config)


@pytest.mark.parametrize('outer', ['rephrase', 'same', 'both'])
def test_low_rank_loss_equals_that_of_formed_weights(
  tiny, prepared, state, outer
):
  """NLL and divergence of edited models, one by one and without padding."""
  config = dataclasses.replace(CONFIG, outer=outer)
  validate = mend_training.make_validate(config, tiny.config)
  group = _group(prepared[:3], batch=1, outer='both')
  found = validate(tiny.params, state, group)
  raw = _group_factors(CONFIG, tiny, group)
  used = _frozen(state.statistics, raw)
  changes = _changes(state.params, used, raw, 'minus')
  for e, one in enumerate(prepared[:3]):
    edited = apply_edit(
      tiny.params,
      {p: LowRank(left[e].T, right[e]) for p, (left, right) in changes.items()},
    )
    said = {}
    for name, text in one.example._asdict().items():
      ids = jnp.array(text.ids)
      said[name] = [
        jax.nn.log_softmax(plain_model.logits(tiny.config, params, ids))[
          -len(text.targets) :
        ]
        for params in (tiny.params, edited)
      ]
    own = jnp.array(one.example.edit.targets)
    said_own, said_rephrase = said['edit'][1], said['rephrase'][1]
    nlls = {
      'same': -said_own[jnp.arange(len(own)), own].mean(),
      'rephrase': -said_rephrase[jnp.arange(len(own)), own].mean(),
    }
    nll = nlls.get(outer, sum(nlls.values()) / 2)
    before, now = said['local']
    kl = (jnp.exp(before) * (before - now)).sum(axis=-1).mean()
    expected = {
      'nll': nll,
      'kl': kl,
      'loss': CONFIG.c_edit * nll + CONFIG.c_loc * kl,
      'generalization': (said_rephrase.argmax(-1) == own).mean(),
      'reliability': (said_own.argmax(-1) == own).mean(),
      'locality': (before.argmax(-1) == now.argmax(-1)).mean(),
    }
    assert set(expected) == set(found)
    assert kl > 1e-7  # there is something to compare
    for name, value in expected.items():
      np.testing.assert_allclose(found[name][e], value, rtol=1e-3, atol=1e-6)


def test_a_step_is_of_what_outer_says(tiny, prepared, state):
  """And its scores are the means of those of its facts."""
  config = dataclasses.replace(CONFIG, outer='both')
  group = _group(prepared[:3], batch=1, outer='both')
  raw = _group_factors(config, tiny, group)
  _, used = _running(state.statistics, raw)
  facts = jax.jit(
    lambda *args: mend_training.edited_scores(
      config, tiny.config, *args, per_fact=True
    )
  )(tiny.params, state.params, used, raw, group)
  start = jax.tree.map(jnp.copy, state)  # which the step uses up
  _, scores = mend_training.make_update(config, tiny.config)(
    tiny.params, start, group
  )
  assert {'reliability', 'generalization'} < set(facts) < set(scores)
  for name, values in facts.items():
    np.testing.assert_allclose(
      scores[name], values.mean(), rtol=1e-4, atol=1e-6
    )


def test_step_sizes_fall_to_zero():
  """Adam's step has the size of its rate where the gradient stays the same."""
  config = dataclasses.replace(CONFIG, lr_schedule='cosine', alpha_lr=5e-4)
  tx = mend_training.optimizer(config)
  params = {'networks': jnp.zeros(()), 'edit_lrs': jnp.zeros(())}
  state, sizes = tx.init(params), []
  for _ in range(config.max_iters // config.accumulate + 1):
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state)
    sizes.append([-float(updates[name]) for name in params])
  expected = [(1 + np.cos(np.pi * i / 10)) / 2 for i in range(11)]
  np.testing.assert_allclose(
    sizes, np.outer(expected, [1e-3, 5e-4]), rtol=1e-4, atol=1e-9
  )


def test_batched_examples_join_their_token_rows(tiny, prepared):
  """Two facts in one edit: its change is for both, and so are the rows."""
  config = dataclasses.replace(CONFIG, batch=2, accumulate=2)
  group = _group(prepared, batch=2, outer='both')
  raw = _group_factors(config, tiny, group)
  start = mend_training.init_state(config, tiny.config)
  seen, _ = _running(start.statistics, raw)
  start = start._replace(statistics=seen)
  used = _frozen(seen, raw)
  validate = mend_training.make_validate(config, tiny.config)
  scores = validate(tiny.params, start, group)
  changes = _changes(start.params, used, raw, 'minus')
  for fact, one in enumerate(prepared):
    edited = apply_edit(
      tiny.params,
      {
        p: LowRank(left[fact // 2].T, right[fact // 2])
        for p, (left, right) in changes.items()
      },
    )
    text = one.example.rephrase
    nll = _mean_nll(tiny.config, {}, edited, [text])
    np.testing.assert_allclose(scores['nll'][fact], nll, rtol=1e-4)


def test_training_lowers_the_loss(tiny, prepared, update, validate):
  groups = mend_training.validation_groups(prepared, CONFIG)
  state = mend_training.init_state(CONFIG, tiny.config)
  losses = []
  for iteration in range(0, 60, CONFIG.accumulate):
    indices = mend_training.facts_of_step(4, CONFIG, iteration)
    step = _group([prepared[i] for i in indices], batch=1, outer='rephrase')
    state, scores = update(tiny.params, state, step)
    assert np.isfinite(scores['loss'])
    found = mend_training.validate_all(
      validate, tiny.params, state, groups, len(prepared)
    )
    losses.append(found['loss'])
  assert losses[-1] < 0.9 * losses[0]


def test_validation_counts_each_fact_once(tiny, prepared, state, validate):
  """Four facts in groups of three, the last one filled up: which facts fill
  it makes no difference."""
  found = []
  for facts in (prepared, prepared[::-1]):
    groups = mend_training.validation_groups(facts, CONFIG)
    assert [len(g.edit.lengths) for g in groups] == [3, 3]
    found.append(
      mend_training.validate_all(validate, tiny.params, state, groups, 4)
    )
  for name, value in found[0].items():
    np.testing.assert_allclose(value, found[1][name], rtol=1e-5, atol=1e-7)


def test_every_fact_comes_once_an_epoch():
  config = dataclasses.replace(CONFIG, accumulate=2, batch=2)
  seen = [
    i
    for iteration in range(0, 14, 2)  # 28 facts, four epochs of seven
    for i in mend_training.facts_of_step(7, config, iteration)
  ]
  epochs = np.array(seen).reshape(4, 7)
  assert (np.sort(epochs, axis=1) == np.arange(7)).all()
  assert len({tuple(epoch) for epoch in epochs}) > 1
  assert seen[4:8] == mend_training.facts_of_step(7, config, 2)


def test_long_examples_are_left_out(tiny):
  long = dataclasses.replace(ADA, target_new='x' * 60)
  make = functools.partial(
    mend_examples.make_examples, tiny.tokenizer, max_length=40
  )
  assert len(make([ADA, long, BOB])) == 2
  with pytest.raises(ValueError, match='Each of 1 facts.*more than 40'):
    make([long])


# The editor


def _editor(tiny, trained, **changes):
  config = dataclasses.replace(CONFIG, **changes)
  return mend_lib.mend(config, tiny.config, tiny.tokenizer, trained=trained)


@pytest.fixture(scope='module')
def made(tiny, trained):
  return _editor(tiny, trained).edit(tiny.params, None, [ADA])


def test_an_edit_is_what_training_tried(tiny, trained, prepared, made):
  """The same change as in a padded group, less its padding."""
  group = _group(prepared[:3], batch=1, outer='rephrase')
  raw = _group_factors(CONFIG, tiny, group)
  used = _frozen(trained.statistics, raw)
  changes = _changes(trained.params, used, raw, 'minus')
  for path, change in made[0].items():
    left, right = changes[path]
    expected = left[0].T @ right[0]
    np.testing.assert_allclose(
      change.left @ change.right,
      expected,
      rtol=0,
      atol=1e-4 * float(jnp.abs(expected).max()),
    )


def test_rank_is_the_number_of_token_rows(tiny, made):
  text = _text(tiny, ADA)
  for path, change in made[0].items():
    rows = len(text.targets) if 'layers/3' in path else len(text.ids)
    assert change.rank == rows == made[2][0]['token_rows'][path]


def test_signs_are_opposite(tiny, trained, made):
  settings = mend_file.settings(dataclasses.replace(CONFIG, step_sign='plus'))
  plus, _, _ = _editor(
    tiny, trained._replace(settings=settings), step_sign='plus'
  ).edit(tiny.params, None, [ADA])
  for path, change in made[0].items():
    np.testing.assert_array_equal(plus[path].left, change.left)
    np.testing.assert_array_equal(plus[path].right, -change.right)


def test_several_requests_are_written_one_after_another(tiny, trained, made):
  editor = _editor(tiny, trained)
  both, _, infos = editor.edit(tiny.params, None, [ADA, BOB])
  assert [i['case_id'] for i in infos] == ['fact-0', 'fact-1']
  between = apply_edit(tiny.params, made[0])
  second, _, (info,) = editor.edit(between, None, [BOB])
  assert infos == [made[2][0], info]
  after, expected = (
    apply_edit(tiny.params, both),
    apply_edit(between, second),
  )
  for path in both:
    kernel = trees.get(expected, path)
    np.testing.assert_allclose(
      trees.get(after, path), kernel, rtol=0, atol=1e-6
    )
  assert editor.edit(tiny.params, None, []) == ({}, None, [])


def test_log_of_an_edit(tiny, made):
  edit, _, (info,) = made
  joint = token_ids.joint_ids(tiny.tokenizer, ADA.text, ADA.target_new)
  assert info['target_ids'] == list(joint.target)
  assert info['boundary_merged'] == 0
  loss, grads = jax.value_and_grad(_mean_nll, argnums=1)(
    tiny.config,
    {p: trees.get(tiny.params, p) for p in edit},
    tiny.params,
    [_text(tiny, ADA)],
  )
  np.testing.assert_allclose(info['loss'], loss, rtol=1e-5)
  for path, change in edit.items():
    norm = np.linalg.norm(change.left @ change.right)
    kernel = np.linalg.norm(trees.get(tiny.params, path))
    np.testing.assert_allclose(
      [
        info['gradient_norm'][path],
        info['change_norm'][path],
        info['relative_change_norm'][path],
      ],
      [np.linalg.norm(grads[path]), norm, norm / kernel],
      rtol=1e-4,
    )


def test_warns_of_a_large_change_only(tiny, trained):
  found = []
  for edit_lr in (1e-6, 1.0):
    params = {**trained.params, 'edit_lrs': jnp.full(6, edit_lr)}
    editor = _editor(tiny, trained._replace(params=params))
    _, _, (info,) = editor.edit(tiny.params, None, [ADA])
    found.append(info['warnings'])
  assert found[0] == []
  assert len(found[1]) == 1 and '‖ΔW‖/‖W‖' in found[1][0]


# What is refused


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'step_sign': 'up'}, 'step_sign must be one of minus, plus'),
    ({'lr_schedule': 'linear'}, 'lr_schedule must be one of constant, cosine'),
    ({'outer': 'other'}, 'outer must be one of rephrase, same, both'),
    ({'layers': ()}, 'one layer or more'),
    ({'layers': (3, 2)}, 'from the lowest up'),
    ({'accumulate': 7}, 'val_interval must be a multiple'),
    ({'rank': 0}, 'rank must be at least 1'),
  ],
)
def test_config_is_checked(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)


def test_no_such_layer(tiny):
  config = dataclasses.replace(CONFIG, layers=(3, 4))
  with pytest.raises(ValueError, match=r'in 0 \.\.\. 3, got \(3, 4\)'):
    mend_training.init_state(config, tiny.config)


def test_networks_that_saw_nothing(tiny, trained):
  empty = trained._replace(
    statistics=mend_network.init_statistics(CONFIG, tiny.config)
  )
  with pytest.raises(ValueError, match='not seen two token rows'):
    _editor(tiny, empty)


# The file, and the editor by name


def test_networks_survive_the_disk(tiny, trained, made, tmp_path):
  path = tmp_path / 'network.safetensors'
  mend_file.save(path, trained)
  loaded = mend_file.load(path, CONFIG, tiny.config, tiny.fingerprint)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, trained.params)
  assert loaded.notes == {'iteration': 3}
  method = dataclasses.replace(CONFIG, network=str(path))
  editor = registry.make_editor(method, tiny, templates=(), factors={})
  edit, _, _ = editor.edit(tiny.params, None, [ADA])
  assert digest(edit) == digest(made[0])
  assert registry.trained(method) == {'network': mend_file.digest(path)}
  assert registry.second_moment_layers(method) == ()
  assert registry.first_edited_layer(method) == LAYERS[0]


def test_networks_serve_one_model(tiny, trained, tmp_path):
  path = tmp_path / 'network.safetensors'
  mend_file.save(path, trained)
  load = functools.partial(mend_file.load, path)
  with pytest.raises(ValueError, match='trained on the weights'):
    load(CONFIG, tiny.config, 'another')
  other = dataclasses.replace(CONFIG, step_sign='plus')
  with pytest.raises(ValueError, match='step_sign: minus there, plus here'):
    load(other, tiny.config, tiny.fingerprint)
  wide = dataclasses.replace(tiny.config, mlp_dim=48)
  with pytest.raises(ValueError, match='do not fit the model'):
    load(CONFIG, wide, tiny.fingerprint)
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(ValueError, match='damaged'):
    load(CONFIG, tiny.config, tiny.fingerprint)


def test_registry_wants_networks(tiny):
  with pytest.raises(FileNotFoundError, match='launch.train_mend'):
    registry.make_editor(CONFIG, tiny, templates=(), factors={})
