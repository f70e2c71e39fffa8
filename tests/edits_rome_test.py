import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from small_model import small_model

from me_jax import trees
from me_jax.config import RomeConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import registry
from me_jax.edits import rome as rome_lib
from me_jax.edits.edit import apply_edit, digest
from me_jax.edits.second_moment_factor import Factor

LAYER = 1
PATH = f'layers/{LAYER}/mlp/down_proj/kernel'
TEMPLATES = ('{}', 'So it goes. {}', 'I. {}')
CONFIG = RomeConfig(layer=LAYER, mom2_adjustment=False, clamp_norm_factor=50.0)
ADA = EditRequest(
  case_id='a', subject='Ada', prompt='Where is {}', target_new='x'
)
BOB = EditRequest(
  case_id='b', subject='Bob', prompt='Where is {}', target_new='y'
)
F, D = 64, 32


@pytest.fixture(scope='module')
def model(tiny):
  """Three layers; ` x` and ` y` are one token each, so that they can be said
  right where the subject ends."""
  return small_model(tiny, num_layers=3)


def _factor(seed=0, scale=1.0):
  draw = np.random.default_rng(seed).standard_normal((F, F))
  return Factor(np.linalg.cholesky(scale * (draw @ draw.T / F + np.eye(F) / 9)))


def _matrix(factor):
  return factor.chol @ factor.chol.T


def _editor(model, factor=None, templates=TEMPLATES, **changes):
  changes.setdefault('mom2_adjustment', factor is not None)
  return rome_lib.rome(
    dataclasses.replace(CONFIG, **changes),
    model.config,
    model.tokenizer,
    templates=templates,
    factor=factor,
  )


def _at_lookup(model, params, request, template='{}'):
  """Key and output of the edited MLP at the subject's last token."""
  text = template.replace('{}', request.prefix + request.subject)
  taps = (f'layers/{LAYER}/mlp/key', f'layers/{LAYER}/mlp/out')
  ids = np.array(model.tokenizer.encode(text))
  found = plain_model.tapped(
    model.config, params, ids, taps=taps, stop=LAYER + 1
  )
  return tuple(np.asarray(found[t][0, -1], np.float64) for t in taps)


def _accuracy(model, params, request):
  """Share of target tokens that are the arg-max, under teacher forcing."""
  joint = token_ids.joint_ids(model.tokenizer, request.text, request.target_new)
  logits = plain_model.logits(model.config, params, np.array(joint.full[:-1]))
  said = np.asarray(logits.argmax(axis=-1))[joint.num_prompt - 1 :]
  return (said == np.array(joint.target)).mean()


# The closed form

KEYS = np.random.default_rng(1).standard_normal((21, F))
KEYS += 2 * np.random.default_rng(2).standard_normal(F)
DELTA = np.random.default_rng(3).standard_normal(D)
# Both factors are stored in float32.
STORED = 2e-7


def _dense(change):
  left, right = (np.asarray(f, np.float64) for f in change)
  return right.T @ left.T  # [D, F], as in the paper


@pytest.mark.parametrize('factor', [None, _factor()], ids=['plain', 'mom2'])
@pytest.mark.parametrize(
  'variant, key',
  [('rome', KEYS[0]), ('p_rome', KEYS[0]), ('r_rome', KEYS.mean(axis=0))],
)
def test_the_key_gets_its_value(variant, key, factor):
  """(W + ΔW) k = v*, whatever C is, for the key that the variant means."""
  change, cosine = rome_lib.rank_one(variant, KEYS, DELTA, factor)
  assert change.left.dtype == change.right.dtype == jnp.float32
  np.testing.assert_allclose(_dense(change) @ key, DELTA, rtol=STORED, atol=0)
  left = np.asarray(change.left, np.float64)[:, 0]
  np.testing.assert_allclose(cosine, left @ key / np.linalg.norm(key))
  np.testing.assert_allclose(np.linalg.norm(left), 1, rtol=STORED)


@pytest.mark.parametrize('factor', [None, _factor()], ids=['plain', 'mom2'])
@pytest.mark.parametrize('variant', ['rome', 'r_rome', 'p_rome'])
def test_rank_is_one(variant, factor):
  change, _ = rome_lib.rank_one(variant, KEYS, DELTA, factor)
  assert change.rank == 1
  singular = np.linalg.svd(_dense(change), compute_uv=False)
  assert singular[1] < 1e-12 * singular[0]


@pytest.mark.parametrize('variant', ['rome', 'r_rome', 'p_rome'])
@pytest.mark.parametrize('c', [1e-6, 1.0, 3.7e5])
def test_multiple_of_the_identity_equals_no_second_moment(variant, c):
  factor = Factor(np.sqrt(c) * np.eye(F))
  found, _ = rome_lib.rank_one(variant, KEYS, DELTA, factor)
  expected, _ = rome_lib.rank_one(variant, KEYS, DELTA, None)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=STORED)


@pytest.mark.parametrize('scale', [1e-8, 50_003.0])
def test_scale_of_the_second_moment_does_not_matter(scale):
  found, _ = rome_lib.rank_one('rome', KEYS, DELTA, _factor(scale=scale))
  expected, _ = rome_lib.rank_one('rome', KEYS, DELTA, _factor())
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=STORED)
  plain, _ = rome_lib.rank_one('rome', KEYS, DELTA, None)
  assert np.abs(plain.left - expected.left).max() > 1e-2  # but C itself does


@pytest.mark.parametrize('factor', [None, _factor()], ids=['plain', 'mom2'])
def test_r_rome_equals_emmet_of_one_edit(factor):
  """EMMET, N = 1, λ = 0: ΔW = E (Kᵀ C⁻¹ K + λ I)⁻¹ Kᵀ C⁻¹."""
  k = KEYS.mean(axis=0)[:, None]
  residual = DELTA[:, None]
  inverse = np.eye(F) if factor is None else np.linalg.inv(_matrix(factor))
  emmet = residual @ np.linalg.inv(k.T @ inverse @ k) @ k.T @ inverse
  change, _ = rome_lib.rank_one('r_rome', KEYS, DELTA, factor)
  np.testing.assert_allclose(
    _dense(change), emmet, rtol=0, atol=STORED * np.abs(emmet).max()
  )


def test_variants_differ_by_their_keys():
  """The module's table, in float64."""
  inverse = np.linalg.inv(_matrix(_factor()))
  bare, mean = KEYS[0], KEYS.mean(axis=0)
  for variant, direction, key in (
    ('rome', mean, bare),
    ('r_rome', mean, mean),
    ('p_rome', bare, bare),
  ):
    u = inverse @ direction
    expected = np.outer(DELTA, u) / (u @ key)
    change, _ = rome_lib.rank_one(variant, KEYS, DELTA, _factor())
    np.testing.assert_allclose(
      _dense(change), expected, rtol=0, atol=STORED * np.abs(expected).max()
    )


def test_every_template_weighs_one_in_21():
  """The coefficients of orthogonal keys are the weights of the mean."""
  keys = 3 * np.eye(21, F)
  change, _ = rome_lib.rank_one('rome', keys, DELTA, None)
  left = np.asarray(change.left)[:, 0]
  np.testing.assert_allclose(left[:21] / left[:21].sum(), 1 / 21, rtol=STORED)
  assert not left[21:].any()


# The editor

FACTOR = _factor()


@pytest.fixture(scope='module')
def made(model):
  """An edit with second moment: the editor's three results."""
  return _editor(model, FACTOR).edit(model.params, None, [ADA])


def test_the_output_moves_by_delta(model, made):
  """The whole path: keys, search, closed form, edited model."""
  edit, _, (info,) = made
  after = apply_edit(model.params, edit)
  key, output = _at_lookup(model, model.params, ADA)
  same_key, moved = _at_lookup(model, after, ADA)
  np.testing.assert_array_equal(key, same_key)
  right = np.asarray(edit[PATH].right, np.float64)[0]
  left = np.asarray(edit[PATH].left, np.float64)[:, 0]
  delta = right * (left @ key)
  norm = np.linalg.norm(delta)
  np.testing.assert_allclose(norm, info['delta_norm'], rtol=1e-4)
  np.testing.assert_allclose(moved - output, delta, rtol=0, atol=1e-5 * norm)


def test_left_is_the_mean_key_through_the_inverse_second_moment(model, made):
  keys = [_at_lookup(model, model.params, ADA, t)[0] for t in TEMPLATES]
  u = np.linalg.solve(_matrix(FACTOR), np.mean(keys, axis=0))
  left = np.asarray(made[0][PATH].left)[:, 0]
  np.testing.assert_allclose(left, u / np.linalg.norm(u), rtol=0, atol=1e-5)


def test_r_rome_moves_the_mean_output_by_delta(model):
  edit, _, (info,) = _editor(model, FACTOR, variant='r_rome').edit(
    model.params, None, [ADA]
  )
  after = apply_edit(model.params, edit)
  moves = [
    _at_lookup(model, after, ADA, t)[1]
    - _at_lookup(model, model.params, ADA, t)[1]
    for t in TEMPLATES
  ]
  norm = np.linalg.norm(np.mean(moves, axis=0))
  np.testing.assert_allclose(norm, info['delta_norm'], rtol=1e-4)


def test_several_requests_are_written_one_after_another(model, made):
  editor = _editor(model, FACTOR)
  both, _, infos = editor.edit(model.params, None, [ADA, BOB])
  assert both[PATH].rank == 2
  assert [i['case_id'] for i in infos] == ['a', 'b']

  between = apply_edit(model.params, made[0])
  second, _, (info,) = editor.edit(between, None, [BOB])
  assert infos == [made[2][0], info]
  one_by_one = trees.get(apply_edit(between, second), PATH)
  np.testing.assert_allclose(
    trees.get(apply_edit(model.params, both), PATH),
    one_by_one,
    rtol=0,
    atol=1e-6 * float(jnp.abs(one_by_one).max()),
  )


def test_log_of_an_edit(model, made):
  edit, _, (info,) = made
  joint = token_ids.joint_ids(model.tokenizer, ADA.text, ADA.target_new)
  key, output = _at_lookup(model, model.params, ADA)
  left, right = (np.asarray(f, np.float64) for f in edit[PATH])
  norm = np.linalg.norm(left @ right)
  kernel = np.linalg.norm(trees.get(model.params, PATH))
  assert info['target_ids'] == list(joint.target)
  assert info['lookup_position'] == joint.num_prompt - 1
  assert info['boundary_merged'] == info['lookup_disagrees'] == 0
  np.testing.assert_allclose(
    [
      info['change_norm'],
      info['relative_change_norm'],
      info['key_cosine'],
      info['start_norm'],
    ],
    [
      norm,
      norm / kernel,
      key @ left[:, 0] / np.linalg.norm(key),
      np.linalg.norm(output),
    ],
    rtol=1e-5,
  )
  for step in info['steps']:
    total = step['nll'] + step['kl'] + step['weight_decay']
    np.testing.assert_allclose(step['loss'], total, rtol=1e-6)
  assert info['steps'][0]['kl'] == pytest.approx(0, abs=1e-6)


# Warnings


def _crossing(model):
  """A factor whose C⁻¹ makes the bare key orthogonal to C⁻¹ times the mean."""
  keys = [_at_lookup(model, model.params, ADA, t)[0] for t in TEMPLATES]
  a = keys[0] / np.linalg.norm(keys[0])
  mean = np.mean(keys, axis=0)
  rest = mean - (mean @ a) * a
  b = rest / np.linalg.norm(rest)
  # On span(a, b) let C⁻¹ be [[p, q], [q, r]] with aᵀ C⁻¹ mean = 0.
  p, q = 1.0, -(mean @ a) / (mean @ b)
  r = 2 * q * q + 1
  inverse = np.eye(F) - np.outer(a, a) - np.outer(b, b)
  inverse += p * np.outer(a, a) + r * np.outer(b, b)
  inverse += q * (np.outer(a, b) + np.outer(b, a))
  return Factor(np.linalg.cholesky(np.linalg.inv(inverse)))


def test_warns_when_the_keys_are_nearly_orthogonal(model, caplog):
  factor = _crossing(model)
  with caplog.at_level(logging.WARNING):
    _, _, (info,) = _editor(model, factor).edit(model.params, None, [ADA])
  assert abs(info['key_cosine']) < rome_lib.SMALLEST_KEY_COSINE
  first, second = info['warnings']
  assert 'key_cosine' in first and 'r_rome' in first
  assert 'above 0.05' in second  # it exploded
  assert 'Case a: key_cosine' in caplog.text

  # What the warning recommends does avoid it.
  _, _, (info,) = _editor(model, factor, variant='r_rome').edit(
    model.params, None, [ADA]
  )
  assert not any('key_cosine' in w for w in info['warnings'])


def test_warns_of_a_large_change_only(model, caplog):
  # A thousand times the kernel: the same change is small beside it.
  kernel = trees.get(model.params, PATH)
  edits = {}
  for scale in (1.0, 1e3):
    params = trees.set_leaf(model.params, PATH, kernel * scale)
    caplog.clear()
    _, _, (info,) = _editor(model).edit(params, None, [ADA])
    edits[scale] = info['relative_change_norm'], info['warnings'], caplog.text
  relative, warnings, text = edits[1.0]
  assert relative > rome_lib.LARGEST_RELATIVE_NORM
  assert len(warnings) == 1 and '‖ΔW‖/‖W‖' in warnings[0]
  assert 'Case a: ‖ΔW‖/‖W‖' in text
  relative, warnings, text = edits[1e3]
  assert relative < rome_lib.LARGEST_RELATIVE_NORM
  assert warnings == [] and text == ''


# What is refused


@pytest.mark.parametrize('layer', [-1, 3])
def test_no_such_layer(model, layer):
  with pytest.raises(ValueError, match=rf'in 0 \.\.\. 2, got {layer}'):
    _editor(model, layer=layer)


@pytest.mark.parametrize(
  'factor, wanted, message',
  [(None, True, 'was not given'), (FACTOR, False, 'was given')],
)
def test_second_moment_if_and_only_if_wanted(model, factor, wanted, message):
  with pytest.raises(ValueError, match=f'{wanted}, but .*{message}'):
    _editor(model, factor, mom2_adjustment=wanted)


def test_second_moment_of_another_width(model):
  with pytest.raises(ValueError, match="width 63, the model's have 64"):
    _editor(model, Factor(np.eye(F - 1)))


def test_unknown_variant(model):
  with pytest.raises(ValueError, match='variant must be one of rome, r_rome'):
    _editor(model, variant='q_rome')


def test_first_template_must_be_the_bare_one(model):
  with pytest.raises(ValueError, match='bare'):
    _editor(model, templates=('So. {}',)).edit(model.params, None, [ADA])


# By name


def test_registry(model, made):
  method = dataclasses.replace(CONFIG, mom2_adjustment=True)
  assert registry.second_moment_layers(method) == (LAYER,)
  assert registry.second_moment_layers(CONFIG) == ()
  editor = registry.make_editor(
    method, model, templates=TEMPLATES, factors={LAYER: FACTOR}
  )
  assert editor.edited_paths == (PATH,)
  edit, _, _ = editor.edit(model.params, None, [ADA])
  assert digest(edit) == digest(made[0])
  with pytest.raises(ValueError, match='second moment was not given'):
    registry.make_editor(method, model, templates=TEMPLATES, factors={})


def test_registry_names_what_there_is(model):
  with pytest.raises(ValueError, match='Unknown editing method dict.*Rome'):
    registry.second_moment_layers({})
  with pytest.raises(ValueError, match='Unknown editing method'):
    registry.make_editor({}, model, templates=TEMPLATES, factors={})
