import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from small_model import small_model

from experiments import table1
from me_jax import config as config_lib
from me_jax import trees
from me_jax.config import EmmetConfig, MemitConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import (
  batched_keys,
  batched_values,
  memit_solve,
  registry,
  values,
)
from me_jax.edits import memit as memit_lib
from me_jax.edits.edit import Dense, LowRank, apply_edit, digest
from me_jax.edits.rows import build_rows
from me_jax.edits.second_moment_factor import Factor

LAYERS = (1, 2)
PATHS = tuple(f'layers/{i}/mlp/down_proj/kernel' for i in LAYERS)
TEMPLATES = ('{}', 'So it goes. {}', 'I. {}')
F, D = 64, 32
WEIGHT = 5.0
CONFIG = MemitConfig(
  layers=LAYERS,
  mom2_update_weight=WEIGHT,
  clamp_norm_factor=50.0,
)
ADA, BOB, EVE = REQUESTS = [
  EditRequest(case_id=s[0], subject=s, prompt=p, target_new=t)
  for s, p, t in (
    ('Ada', 'Where is {}', 'x'),
    ('Bob', 'Where is {}', 'y'),
    ('Eve', 'What does {} say', 'no'),
  )
]


def _factor(seed):
  draw = np.random.default_rng(seed).standard_normal((F, F))
  return Factor(np.linalg.cholesky(draw @ draw.T / F + np.eye(F) / 9))


FACTORS = {i: _factor(i) for i in (0, *LAYERS)}


@pytest.fixture(scope='module')
def model(tiny):
  """One layer above the edited ones."""
  return small_model(tiny, num_layers=4)


def _editor(model, factors=FACTORS, templates=TEMPLATES, **changes):
  return memit_lib.memit(
    dataclasses.replace(CONFIG, **changes),
    model.config,
    model.tokenizer,
    templates=templates,
    factors=factors,
  )


def _edit(model, requests, params=None, state=None, **changes):
  params = model.params if params is None else params
  editor = _editor(model, **changes)
  state = editor.init(params) if state is None else state
  return editor.edit(params, state, requests)


@pytest.fixture(scope='module')
def made(model):
  """A batch: the editor's three results."""
  return _edit(model, REQUESTS)


def _at_lookup(model, params, request, sites, template='{}'):
  """Sites at the subject's last token, by a pass over the text up to it."""
  text = template.replace('{}', request.prefix + request.subject)
  ids = np.array(model.tokenizer.encode(text))
  found = plain_model.tapped(
    model.config, params, ids, taps=tuple(sites), stop=LAYERS[-1] + 1
  )
  return [np.asarray(found[s][0, -1], np.float64) for s in sites]


def _mean_key(model, params, request, layer):
  keys = [
    _at_lookup(model, params, request, (f'layers/{layer}/mlp/key',), t)[0]
    for t in TEMPLATES
  ]
  return 0.5 * keys[0] + 0.25 * keys[1] + 0.25 * keys[2]


def _output(model, params, request):
  return _at_lookup(model, params, request, (f'layers/{LAYERS[-1]}/resid',))[0]


def _plain_memit(model, params, requests, z, previous=None):
  """Section by section as it is defined: no packing, F x F systems."""
  edit = {}
  for h, layer in enumerate(LAYERS):
    now = apply_edit(params, edit)
    keys = np.stack([_mean_key(model, now, r, layer) for r in requests], axis=1)
    current = np.stack([_output(model, now, r) for r in requests])
    c = FACTORS[layer].chol @ FACTORS[layer].chol.T
    total = WEIGHT * c + keys @ keys.T
    if previous:
      total = total + previous[layer] @ previous[layer].T
    left = np.linalg.solve(total, keys)
    right = (z - current) / (len(LAYERS) - h)
    edit[PATHS[h]] = LowRank(
      jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
    )
  return edit


def _targets(model, requests, params=None):
  rows = [build_rows(model.tokenizer, r, TEMPLATES)[0] for r in requests]
  found = batched_values.find_targets(
    model.config,
    model.params if params is None else params,
    rows,
    layer=LAYERS[-1],
    search_config=memit_lib.search_config(CONFIG),
    batch_size=16,
  )
  return np.stack([t.z for t in found]).astype(np.float64)


def _assert_same_edit(found, expected, tolerance=1e-4):
  assert tuple(found) == tuple(expected)
  for path, change in found.items():
    for a, b in zip(change, expected[path], strict=True):
      scale = float(jnp.abs(b).max())
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


# The whole path


def test_as_defined(model, made):
  z = _targets(model, REQUESTS)
  _assert_same_edit(made[0], _plain_memit(model, model.params, REQUESTS, z))


def test_one_layer_moves_the_output_by_its_fraction(model):
  """The last block's output is linear in its own kernel: it becomes
  start + q / (λ + q) δ, where the key is that of the bare prompt."""
  edit, _, (info,) = _edit(model, [ADA], layers=(2,), templates=('{}',))
  after = apply_edit(model.params, edit)
  moved = _output(model, after, ADA) - _output(model, model.params, ADA)
  (layer,) = info['layers']
  key = _at_lookup(model, model.params, ADA, ('layers/2/mlp/key',))[0]
  q = key @ FACTORS[2].solve(key)
  np.testing.assert_allclose(layer['delivered'], q / (WEIGHT + q), rtol=1e-4)
  np.testing.assert_allclose(
    np.linalg.norm(moved), layer['delivered'] * info['delta_norm'], rtol=1e-3
  )
  np.testing.assert_allclose(
    layer['residual_norm'], info['delta_norm'], rtol=1e-4
  )


def test_the_model_learns_its_facts(model):
  edit, _, infos = _edit(model, REQUESTS, mom2_update_weight=1e-3)
  after = apply_edit(model.params, edit)
  for request, info in zip(REQUESTS, infos, strict=True):
    assert info['steps'][-1]['loss'] < info['steps'][0]['loss']
    if len(info['target_ids']) == 1:
      assert not _says_target(model, model.params, request)
      assert _says_target(model, after, request)


def _says_target(model, params, request):
  """Whether the target's token is the most likely one."""
  joint = token_ids.joint_ids(model.tokenizer, request.text, request.target_new)
  logits = plain_model.logits(model.config, params, np.array(joint.full[:-1]))
  return int(logits[-1].argmax()) == joint.target[-1]


def test_order_of_the_batch_does_not_matter(model, made):
  order = [2, 0, 1]
  edit, _, infos = _edit(model, [REQUESTS[i] for i in order])
  assert [i['case_id'] for i in infos] == ['E', 'A', 'B']
  for path, change in edit.items():
    found, expected = (c.left @ c.right for c in (change, made[0][path]))
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


def test_groups_do_not_matter(model, made):
  edit, _, _ = _edit(model, REQUESTS, search_batch_size=2)
  _assert_same_edit(edit, made[0])


def test_a_batch_of_one(model):
  z = _targets(model, [EVE])
  edit, _, _ = _edit(model, [EVE])
  assert edit[PATHS[0]].rank == 1
  _assert_same_edit(edit, _plain_memit(model, model.params, [EVE], z))


# What an editor promises


def test_batches_share_the_compiled_functions(model, made):
  functions = (
    batched_values.search,
    batched_keys._enter,
    batched_keys._others,
    batched_keys._bare,
  )
  counts = [f._cache_size() for f in functions]
  editor, params = _editor(model, mom2_update_weight=1.0), model.params
  for targets in (('x', 'x', 'me'), ('y', 'x', 'no')):
    batch = [
      dataclasses.replace(r, target_new=t)
      for r, t in zip(REQUESTS, targets, strict=True)
    ]
    edit, _, _ = editor.edit(params, None, batch)
    params = apply_edit(params, edit)
  assert counts == [f._cache_size() for f in functions]


def test_log_of_an_edit(model, made):
  edit, _, infos = made
  joint = token_ids.joint_ids(model.tokenizer, ADA.text, ADA.target_new)
  info = infos[0]
  assert list(info)[0] == 'case_id'
  assert info['target_ids'] == list(joint.target)
  assert info['lookup_position'] == len('Where is Ada') - 1
  assert info['boundary_merged'] == info['lookup_disagrees'] == 0
  start = np.linalg.norm(_output(model, model.params, ADA))
  np.testing.assert_allclose(info['start_norm'], start, rtol=1e-5)
  assert len(info['steps']) == CONFIG.v_num_grad_steps
  assert info['steps'][0]['delta_norm'] == 0
  first, second = info['layers']
  np.testing.assert_allclose(
    first['residual_norm'], info['delta_norm'], rtol=1e-4
  )
  assert second['residual_norm'] < first['residual_norm']
  for layer, path in zip(info['layers'], PATHS, strict=True):
    change = np.asarray(edit[path].left) @ np.asarray(edit[path].right)
    norm = np.linalg.norm(change)
    kernel = np.linalg.norm(trees.get(model.params, path))
    np.testing.assert_allclose(layer['change_norm'], norm, rtol=1e-5)
    np.testing.assert_allclose(
      layer['relative_change_norm'], norm / kernel, rtol=1e-5
    )
    assert 0 < layer['delivered'] < 1


@pytest.mark.parametrize('largest, layers', [(np.inf, 0), (0.0, 2)])
def test_a_change_out_of_proportion_is_warned_of(
  model, monkeypatch, caplog, largest, layers
):
  """Once a layer, whatever the size of the batch."""
  monkeypatch.setattr(memit_lib, 'LARGEST_RELATIVE_NORM', largest)
  _, _, infos = _edit(model, REQUESTS, v_num_grad_steps=2)
  assert len(caplog.records) == layers
  for info in infos:
    assert info['warnings'] == infos[0]['warnings']
    for warning, layer in zip(info['warnings'], LAYERS, strict=layers > 0):
      assert f'of layer {layer} is above 0.0' in warning


def test_a_large_batch_is_stored_as_a_matrix(model):
  """Two factors of 22 are larger than one matrix of 64 x 32."""
  batch = [dataclasses.replace(ADA, case_id=str(i)) for i in range(22)]
  rows = [build_rows(model.tokenizer, r, TEMPLATES)[0] for r in batch]
  z = np.random.default_rng(0).standard_normal((22, D))
  shares = [
    memit_lib.write_targets(
      CONFIG,
      model.config,
      model.params,
      rows[:n],
      z[:n],
      lambda layer, keys: memit_solve.solve(keys, FACTORS[layer], WEIGHT),
      layers=LAYERS[:1],
      case_ids=[r.case_id for r in batch[:n]],
    )[0]
    for n in (21, 22)
  ]
  assert [type(s.change) for s in shares] == [LowRank, Dense]
  assert shares[1].change.delta.shape == (F, D)


# Keys of earlier batches


def test_keys_of_the_templates():
  np.testing.assert_allclose(
    batched_keys.template_weights(6), [0.5, *[0.1] * 5], rtol=1e-6
  )
  assert batched_keys.template_weights(1) == [1.0]


def test_previous_keys_are_kept_in_place(model):
  editor = _editor(model, cache_previous_keys=True)
  state = editor.init(model.params)
  first, state, _ = editor.edit(model.params, state, [ADA, BOB])
  params = apply_edit(model.params, first)
  # At the first edited layer as on the unedited model, at the second as the
  # whole edit leaves it.
  keys = {
    i: np.stack([_mean_key(model, params, r, i) for r in (ADA, BOB)], axis=1)
    for i in LAYERS
  }
  assert int(state.count) == 2
  for layer in LAYERS:
    stored, gram = (np.asarray(x[str(layer)]) for x in state[:2])
    solved = FACTORS[layer].solve(keys[layer])
    np.testing.assert_allclose(stored[:, :2], solved, rtol=0, atol=1e-4)
    assert not stored[:, 2:].any()
    np.testing.assert_allclose(gram[:2, :2], keys[layer].T @ solved, rtol=1e-4)
    assert not gram[2:].any() and not gram[:, 2:].any()

  second, state, _ = editor.edit(params, state, [EVE])
  assert int(state.count) == 3
  z = _targets(model, [EVE], params)
  _assert_same_edit(second, _plain_memit(model, params, [EVE], z, keys))
  # The first layer has the same keys either way.
  forgetful, _, _ = _edit(model, [EVE], params=params)
  moved, more = (
    np.linalg.norm(keys[LAYERS[0]].T @ np.asarray(e[PATHS[0]].left))
    for e in (second, forgetful)
  )
  assert moved < more


def test_the_state_is_a_pytree_that_doubles(model):
  editor = _editor(model, cache_previous_keys=True, v_num_grad_steps=1)
  state, sizes = editor.init(model.params), []
  structure = jax.tree.structure(state)
  batch = [dataclasses.replace(ADA, case_id=str(i)) for i in range(9)]
  for _ in range(4):
    _, state, _ = editor.edit(model.params, state, batch)
    sizes.append({x.shape[1] for x in jax.tree.leaves(state.keys)})
    assert jax.tree.structure(state) == structure
  assert sizes == [{16}, {32}, {32}, {64}]
  assert int(state.count) == 36
  stored, gram = np.asarray(state.keys['1']), np.asarray(state.grams['1'])
  assert stored[:, :36].any(axis=0).all() and not stored[:, 36:].any()
  c = FACTORS[1].chol @ FACTORS[1].chol.T
  np.testing.assert_allclose(gram, stored.T @ c @ stored, rtol=0, atol=1e-3)
  # Edits without a search are edits by nothing.
  kept = jax.tree.unflatten(structure, jax.tree.leaves(state))
  for a, b in zip(kept.keys.values(), state.keys.values(), strict=True):
    np.testing.assert_array_equal(a, b)


# EMMET


def _emmet(model, emmet_lambda, templates=TEMPLATES, **changes):
  """With MEMIT's settings of the search."""
  search = dataclasses.asdict(memit_lib.search_config(CONFIG))
  return memit_lib.emmet(
    EmmetConfig(layer=2, emmet_lambda=emmet_lambda, **search, **changes),
    model.config,
    model.tokenizer,
    templates=templates,
    factors=FACTORS,
  )


def test_emmet_is_memit_at_one_layer(model):
  """With λ_e for λ."""
  editor = _emmet(model, WEIGHT)
  assert editor.edited_paths == PATHS[1:]
  found, state, _ = editor.edit(model.params, None, REQUESTS)
  expected, _, _ = _edit(model, REQUESTS, layers=(2,))
  assert state is None and digest(found) == digest(expected)


@pytest.mark.parametrize('batch, is_soft', [([EVE], False), (REQUESTS, True)])
def test_emmet_without_lambda_for_one_fact(model, batch, is_soft):
  edits = [
    editor.edit(model.params, None, batch)[0]
    for editor in (
      _emmet(model, WEIGHT, lambda_for_one=False),
      _emmet(model, WEIGHT if is_soft else 0.0),
    )
  ]
  assert digest(edits[0]) == digest(edits[1])


def test_emmet_without_slack_gives_every_key_its_value(model):
  editor = _emmet(model, 0.0, templates=('{}',))
  edit, _, infos = editor.edit(model.params, None, REQUESTS)
  after = apply_edit(model.params, edit)
  for request, info in zip(REQUESTS, infos, strict=True):
    moved = _output(model, after, request)
    moved -= _output(model, model.params, request)
    np.testing.assert_allclose(
      np.linalg.norm(moved), info['delta_norm'], rtol=1e-3
    )


# What is refused


@pytest.mark.parametrize('layer', [-1, 4])
def test_no_such_layer(model, layer):
  with pytest.raises(ValueError, match=rf'in 0 \.\.\. 3, got {layer}'):
    _editor(model, layers=tuple(sorted((1, layer))))


def test_missing_second_moment(model):
  with pytest.raises(ValueError, match=r'layer 2 is missing.*\[1\]'):
    _editor(model, factors={1: FACTORS[1]})


def test_second_moment_of_another_width(model):
  with pytest.raises(ValueError, match="width 63, the model's have 64"):
    _editor(model, factors={1: FACTORS[1], 2: Factor(np.eye(F - 1))})


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'layers': ()}, 'one layer or more'),
    ({'layers': (2, 1)}, 'from the lowest up'),
    ({'layers': (1, 1)}, 'each once'),
    ({'mom2_update_weight': 0.0}, 'above 0, got 0'),
    ({'search_batch_size': 0}, 'at least 1, got 0'),
    ({'v_num_grad_steps': 0}, 'at least 1, got 0'),
  ],
)
def test_bad_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    MemitConfig(**changes)


def test_bad_settings_of_emmet():
  with pytest.raises(ValueError, match='emmet_lambda must be at least 0'):
    EmmetConfig(emmet_lambda=-0.5)


def test_first_template_must_be_the_bare_one(model):
  with pytest.raises(ValueError, match='bare'):
    _edit(model, [ADA], templates=('So. {}', '{}'))


def test_who_broke_is_named(model):
  rows = [build_rows(model.tokenizer, r, TEMPLATES)[0] for r in REQUESTS]
  with pytest.raises(FloatingPointError, match="Case 'B'"):
    memit_lib.write_targets(
      CONFIG,
      model.config,
      model.params,
      rows,
      np.where(np.arange(3)[:, None] == 1, np.inf, np.zeros((3, D))),
      lambda layer, keys: memit_solve.solve(keys, FACTORS[layer], WEIGHT),
      layers=LAYERS,
      case_ids=[r.case_id for r in REQUESTS],
    )


# By name


def test_registry(model, made):
  assert registry.second_moment_layers(CONFIG) == LAYERS
  assert registry.first_edited_layer(CONFIG) == 1
  editor = registry.make_editor(
    CONFIG, model, templates=TEMPLATES, factors=FACTORS
  )
  edit, _, _ = editor.edit(model.params, None, REQUESTS)
  assert digest(edit) == digest(made[0])
  emmet = EmmetConfig(layer=2)
  assert registry.second_moment_layers(emmet) == (2,)
  assert registry.first_edited_layer(emmet) == 2
  editor = registry.make_editor(
    emmet, model, templates=TEMPLATES, factors=FACTORS
  )
  assert editor.edited_paths == PATHS[1:]
  with pytest.raises(ValueError, match='second moment of layer 1 is missing'):
    registry.make_editor(CONFIG, model, templates=TEMPLATES, factors={})


def test_presets():
  easyedit, authors = map(config_lib.memit_preset, ('easyedit', 'authors'))
  assert easyedit == MemitConfig()
  assert (authors.clamp_norm_factor, authors.v_weight_decay) == (0.75, 0.5)
  assert config_lib.memit_preset('authors', layers=(3,)).layers == (3,)
  with pytest.raises(ValueError, match='one of easyedit, authors'):
    config_lib.memit_preset('easy')


def test_presets_of_emmet():
  easyedit, authors = map(config_lib.emmet_preset, ('easyedit', 'authors'))
  assert (easyedit.emmet_lambda, easyedit.lambda_for_one) == (10_000, True)
  assert (authors.emmet_lambda, authors.lambda_for_one) == (0.1, False)
  assert table1.get_config('method=emmet').method == authors
  found = table1.get_config('method=emmet,preset=easyedit').method
  assert found == easyedit and found.layer == 5
  with pytest.raises(ValueError, match='one of easyedit, authors'):
    config_lib.emmet_preset('easy')


def test_lambda_grows_with_the_width_of_keys():
  """The fraction q / (λ + q) stays where q is the width."""
  assert config_lib.memit_update_weight(11_008) == 15_000
  small = config_lib.memit_update_weight(1536)
  np.testing.assert_allclose(
    1536 / (small + 1536), 11_008 / (15_000 + 11_008), rtol=1e-12
  )


def test_experiment():
  paper = table1.get_config('method=memit').method
  assert paper == MemitConfig() and paper.mom2_update_weight == 15_000
  small = table1.get_config(
    'method=memit,model=smollm2_135m,preset=authors'
  ).method
  weight = config_lib.memit_update_weight(1536)
  assert small == config_lib.memit_preset('authors', mom2_update_weight=weight)
  large = table1.get_config('method=memit,model=llama2_13b').method
  assert large == paper  # published for it
  other = table1.get_config('method=memit,model=./other,mlp_dim=14336').method
  weight = config_lib.memit_update_weight(14_336)
  assert other.mom2_update_weight == weight > 15_000
  with pytest.raises(ValueError, match='that of ./other is not known here'):
    table1.get_config('method=memit,model=./other')
  with pytest.raises(ValueError, match='mlp_dim is for memit'):
    table1.get_config('method=rome,mlp_dim=64')
  with pytest.raises(ValueError, match='preset is for memit and emmet'):
    table1.get_config('method=rome,preset=authors')


def test_search_settings_are_all_passed_on():
  config = dataclasses.replace(CONFIG, kl_factor=0.3, early_stop_loss=0.2)
  found = memit_lib.search_config(config)
  assert dataclasses.asdict(found) == {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(values.SearchConfig)
  }
