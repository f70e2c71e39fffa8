import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from small_model import small_model

from me_jax.config import GraceConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import grace as grace_lib
from me_jax.edits import grace_learning, registry
from me_jax.edits.grace import grace
from me_jax.generation import LlamaPredictor
from me_jax.models import llama
from me_jax.typing import GenerateRequest, ModelState, ScoreRequest

LAYER = 1
CONFIG = GraceConfig(layer=LAYER, val_init='warm', n_iter=20)
ADA = EditRequest(
  case_id='a', subject='Ada', prompt='Where is {}', target_new='x'
)
BOB = EditRequest(
  case_id='b', subject='Bob', prompt='Where is {}', target_new='y'
)
ADA_TWICE = dataclasses.replace(ADA, case_id='a2', target_new='y')
TOLERANCE = 2e-5


@pytest.fixture(scope='module')
def model(tiny):
  """Three layers; ` x` and ` y` are one token each, so that one value can say
  them."""
  return small_model(tiny, num_layers=3)


def _editor(model, capacity=4, **changes):
  return grace(
    dataclasses.replace(CONFIG, **changes),
    model.config,
    model.tokenizer,
    capacity=capacity,
  )


def _edit(model, *requests, params=None, state=None, **changes):
  """The state after `requests`, and the logs."""
  editor = _editor(model, **changes)
  params = model.params if params is None else params
  state = editor.init(params) if state is None else state
  edit, state, infos = editor.edit(params, state, requests)
  assert edit == {}
  return state, infos


@pytest.fixture(scope='module')
def predictor(model):
  return LlamaPredictor(
    model.config, model.tokenizer, interventions=_editor(model).interventions
  )


@pytest.fixture(scope='module')
def both(model):
  """Both facts written, with their logs."""
  return _edit(model, ADA, BOB)


def _ids(model, request):
  return token_ids.joint_ids(model.tokenizer, request.text, request.target_new)


def _score(model, predictor, state, request):
  """Mean NLL of the target, and whether it is what the model says."""
  joint = _ids(model, request)
  ask = ScoreRequest(context=joint.prompt, continuations=(joint.target,))
  ((_, found),) = predictor.score(ModelState(model.params, state), [ask])
  is_said = tuple(found.greedy[0].tolist()) == joint.target
  return -float(found.logprobs[0].mean()), is_said


def _count(state):
  return int(state.codebook.count)


# The tiny model learns its facts


@pytest.mark.parametrize('val_init', ['warm', 'cold'])
def test_facts_are_learned_and_kept(model, predictor, val_init):
  untouched = _editor(model).init(model.params)
  assert not _score(model, predictor, untouched, ADA)[1]
  assert not _score(model, predictor, untouched, BOB)[1]
  state, infos = _edit(model, ADA, BOB, val_init=val_init)
  for request, info in zip((ADA, BOB), infos, strict=True):
    loss, is_said = _score(model, predictor, state, request)
    assert is_said and loss < info['steps'][0]['loss'] / 2
    # The value learned is the one that is found, to the last digits.
    assert loss == pytest.approx(info['final_loss'], abs=TOLERANCE)
    joint = _ids(model, request)
    ask = GenerateRequest(prompt=joint.prompt, max_new_tokens=1)
    now = ModelState(model.params, state)
    ((_, text),) = predictor.generate(now, [ask])
    assert tuple(text.tokens.tolist()) == joint.target


def test_edits_in_one_step_equal_one_after_another(model, both):
  state, _ = _edit(model, ADA)
  state, (info,) = _edit(model, BOB, state=state)
  jax.tree.map(np.testing.assert_array_equal, state, both[0])
  assert info == both[1][1]


def test_the_log(model, both):
  info, other = both[1]
  joint = _ids(model, ADA)
  assert info['case_id'] == 'a' and info['edit_id'] == 1
  assert info['action'] == 'inserted' and info['nearest_distance'] is None
  assert info['target_ids'] == list(joint.target)
  assert info['lookup_position'] == joint.num_prompt - 1
  assert info['num_keys'] == 1 and info['warnings'] == []
  assert info['radius'] == info['radius_min'] == info['radius_median'] == 1
  assert info['start_norm'] > 0 and info['value_norm'] > info['start_norm']
  assert len(info['steps']) == CONFIG.n_iter
  assert other['edit_id'] == 2 and other['num_keys'] == 2
  assert other['nearest'] == 0 and other['nearest_distance'] > 2


# Learning


def _plain(model, request, replace):
  """Loss of the target by a plain pass. `replace` changes the layer's output
  [1, T, D]."""
  joint = _ids(model, request)
  x = plain_model.forward(
    model.config,
    model.params,
    np.array(joint.full[:-1]),
    interventions={f'layers/{LAYER}/mlp/out': lambda out, _: replace(out)},
  ).x[0]
  logits = llama.logits(model.config, model.params, x)
  logprobs = jax.nn.log_softmax(logits)[joint.num_prompt - 1 :]
  return -logprobs[np.arange(len(joint.target)), list(joint.target)].mean()


LONG = EditRequest(
  case_id='l', subject='Ada', prompt='Where is {}', target_new='Rome x'
)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'val_init': 'cold'},
    {'replacement': 'replace_prompt'},
    {'replacement': 'replace_all', 'val_init': 'cold'},
    {'query': 'last_input', 'val_init': 'cold'},
  ],
)
def test_losses_and_steps_equal_plain_gradients(model, changes):
  """The first step of Adam goes against the sign of each gradient."""
  config = dataclasses.replace(CONFIG, **changes)
  n = _ids(model, LONG).num_prompt
  query = (
    len(_ids(model, LONG).full) - 2 if config.query != CONFIG.query else n - 1
  )
  where = {
    'replace_last': slice(query, query + 1),
    'replace_prompt': slice(0, query),
    'replace_all': slice(None),
  }[config.replacement]
  loss = lambda value: _plain(
    model, LONG, lambda out: out.at[0, where].set(value)
  )
  state, (info,) = _edit(model, LONG, n_iter=1, edit_lr=0.25, **changes)
  assert info['lookup_position'] == query
  learned = state.codebook.values[0]
  if config.val_init == 'cold':
    start = grace_lib._first_value(config, 1, learned)
  else:
    at_query = []
    _plain(model, LONG, lambda out: at_query.append(out[0, query]) or out)
    start = at_query[0]
  value, grad = jax.value_and_grad(loss)(start)
  [first] = info['steps']
  assert first['loss'] == pytest.approx(float(value), abs=TOLERANCE)
  is_large = np.abs(grad) > 1e-4
  assert is_large.sum() > 20
  np.testing.assert_allclose(
    (learned - start)[is_large], -0.25 * np.sign(grad)[is_large], atol=1e-3
  )
  assert info['final_loss'] == pytest.approx(
    float(loss(learned)), abs=TOLERANCE
  )


def test_cold_values_are_drawn_again_alike(model):
  """From the seed and the number of the edit, so that a run can resume."""
  draw = lambda seed, edit_id: np.asarray(
    grace_lib._first_value(
      GraceConfig(seed=seed), edit_id, jnp.zeros(4000, jnp.float32)
    )
  )
  value = draw(0, 1)
  assert value.dtype == np.float32 and 0 <= value.min() < value.max() < 1
  assert value.mean() == pytest.approx(0.5, abs=0.02)
  np.testing.assert_array_equal(value, draw(0, 1))
  assert (value != draw(0, 2)).all() and (value != draw(1, 1)).all()


def test_padding_moves_nothing(model):
  """The same fact in a longer row."""
  joint = _ids(model, LONG)
  row = grace_learning.build_row(joint, 'last_prompt')
  wider = row._replace(
    ids=np.pad(row.ids, ((0, 0), (0, 16)), constant_values=7),
    targets=np.pad(row.targets, (0, 4)),
    slots=np.pad(row.slots, (0, 4)),
    weights=np.pad(row.weights, (0, 4)),
  )
  results = []
  for rows in (row, wider):
    bound = (model.config, model.params, rows)
    prepared = grace_learning.prepare(*bound, layer=LAYER)
    learned = grace_learning.learn(
      *bound,
      prepared,
      jnp.full(32, 0.1, jnp.float32),
      layer=LAYER,
      rule='replace_last',
      n_iter=5,
      edit_lr=0.1,
    )
    results.append((prepared.key, prepared.output, learned.losses))
  for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


# What becomes of keys; see edits_codebook_test for the rest


def test_the_same_prompt_again_overwrites(model, predictor, both):
  state, (info,) = _edit(model, ADA_TWICE, state=both[0])
  assert info['action'] == 'overwritten' and info['reedit']
  assert info['edit_id'] == 3 and info['num_keys'] == 2
  assert _score(model, predictor, state, ADA_TWICE)[1]
  assert _score(model, predictor, state, BOB)[1]
  assert state.codebook.edit_ids[:2].tolist() == [3, 2]


def test_the_same_fact_again_is_trained_further(model, both):
  again = dataclasses.replace(ADA, case_id='a3')
  state, (info,) = _edit(model, again, state=both[0])
  assert info['action'] == 'trained' and info['reedit']
  # From where it was, not from a new start.
  assert info['steps'][0]['loss'] == pytest.approx(
    both[1][0]['final_loss'], abs=TOLERANCE
  )


def test_legacy_split_is_a_silent_failure_no_more(
  model, predictor, both, caplog
):
  with caplog.at_level(logging.WARNING):
    state, (info,) = _edit(
      model, ADA_TWICE, state=both[0], reedit='legacy_split'
    )
  assert info['action'] == 'split' and info['steps'] == []
  assert info['final_loss'] is None and info['num_keys'] == 3
  assert 'was not learned' in info['warnings'][0]
  assert 'was not learned' in caplog.text
  assert not _score(model, predictor, state, ADA_TWICE)[1]


def test_an_entry_in_front_of_another_is_an_error(model, both):
  """Not a loss that does not move."""
  broken, _ = _edit(model, ADA_TWICE, state=both[0], reedit='legacy_split')
  # The old key's radius reaches it again, and its label is neither.
  book = broken.codebook
  book = book._replace(
    radii=book.radii.at[0].set(-2.0), labels=book.labels.at[0].set(0)
  )
  with pytest.raises(RuntimeError, match=r"Case 'a2'.*stands in front"):
    _edit(model, ADA_TWICE, state=broken._replace(codebook=book))


def test_crowded_keys_are_reported(model, both):
  near = dataclasses.replace(BOB, prompt='where is {}', target_new='x')
  _, (info,) = _edit(model, near, state=both[0], eps=200.0)
  assert info['action'] == 'split' and info['num_keys'] == 3
  assert info['nearest_radius_before'] == 1
  assert info['radius'] == pytest.approx(info['nearest_distance'] / 2)
  assert 'a radius fell to' in info['warnings'][0]


def test_room_for_more(model, both):
  state, infos = _edit(model, ADA, BOB, capacity=1)
  assert infos == both[1]
  assert state.codebook.keys.shape == (2, 64)
  np.testing.assert_array_equal(
    state.codebook.values, both[0].codebook.values[:2]
  )


def test_only_what_is_wrong_is_edited(model, both):
  state, (info,) = _edit(model, ADA, state=both[0], edit_if='wrong')
  assert state is both[0]
  assert info['action'] == 'skipped' and info['edit_id'] is None
  assert info['final_loss'] == pytest.approx(both[1][0]['final_loss'], abs=1e-4)
  state, (info,) = _edit(model, ADA_TWICE, state=both[0], edit_if='wrong')
  assert info['action'] == 'overwritten'


def test_deleting_an_edit(model, predictor, both):
  config = dataclasses.replace(CONFIG)
  state = grace_lib.delete(config, both[0], 1)
  assert not _score(model, predictor, state, ADA)[1]
  assert _score(model, predictor, state, BOB)[1]
  # Ids are not given twice.
  _, (info,) = _edit(model, ADA, state=state)
  assert info['edit_id'] == 3
  with pytest.raises(KeyError, match='No edit 5'):
    grace_lib.delete(config, both[0], 5)


# Labels


def _label(model, match, prompt, target):
  joint = token_ids.joint_ids(model.tokenizer, prompt, target)
  return grace_lib.label(match, joint).tolist()


def test_labels(model):
  ids = lambda *text: _label(model, 'target_ids', *text)
  mean = lambda *text: _label(model, 'legacy_label_mean', *text)
  assert ids('Where is Ada', 'x') == ids('Where is Ada now', 'x')
  assert ids('Where is Ada', 'x') != ids('Where is Ada', 'y')
  # Two defects: prompts of other lengths part them, the order does not.
  assert mean('Where is Ada', 'x') != mean('Where is Ada now', 'x')
  assert mean('Where is Ada', 'ab') == mean('Where is Ada', 'ba')
  assert ids('Where is Ada', 'ab') != ids('Where is Ada', 'ba')
  assert len(ids('a', 'x')) == len(mean('a', 'x')) == 2


# Look-ups


def _text(prompt, target=(0,)):
  return ScoreRequest(context=tuple(prompt), continuations=(tuple(target),))


def test_lookups(model, both):
  editor = _editor(model)
  texts = [_text(_ids(model, r).prompt) for r in (BOB, ADA)]
  other = _text(model.tokenizer.encode('Something else, at greater length.'))
  now = ModelState(model.params, both[0])
  found = editor.lookups(now, [texts[0], other, texts[1]])
  assert [r['triggered'] for r in found] == [True, False, True]
  assert [r['entry'] for r in found][::2] == [1, 0]
  assert found[0]['distance'] < 1e-4 and found[1]['distance'] > 1
  assert editor.lookups(now, []) == []
  none = editor.lookups(
    ModelState(model.params, editor.init(model.params)), texts[:1]
  )
  assert none == [{'triggered': False, 'distance': None, 'entry': None}]


def test_lookups_of_a_fixed_position(model, both):
  """The query is where the latest edit's prompt ended, not this one's end."""
  editor = _editor(model, query='fixed_last_edit')
  assert int(both[0].last_query) == _ids(model, BOB).num_prompt - 1
  longer = _text([*_ids(model, BOB).prompt, *model.tokenizer.encode(' of all')])
  (found,) = editor.lookups(ModelState(model.params, both[0]), [longer])
  assert found['triggered'] and found['entry'] == 1
  (found,) = _editor(model).lookups(ModelState(model.params, both[0]), [longer])
  assert not found['triggered']


def test_what_was_learned_at_the_last_input_is_found_there(model):
  """In scored text, with the loss that learning ended at."""
  changes = {'query': 'last_input', 'n_iter': 40}
  editor = _editor(model, **changes)
  asker = LlamaPredictor(
    model.config, model.tokenizer, interventions=editor.interventions
  )
  state, infos = _edit(model, LONG, ADA_TWICE, **changes)
  for request, info in zip((LONG, ADA_TWICE), infos, strict=True):
    loss, _ = _score(model, asker, state, request)
    assert info['final_loss'] < info['steps'][0]['loss'] - 0.5
    assert loss == pytest.approx(info['final_loss'], abs=TOLERANCE)
  # Only with the target that it was learned with, or what is fed of it.
  joint, now = _ids(model, LONG), ModelState(model.params, state)
  texts = [_text(joint.prompt, t) for t in (joint.target, joint.target[:-1])]
  found = editor.lookups(now, texts)
  assert [r['triggered'] for r in found] == [True, False]


def test_the_summary(model, both):
  editor = _editor(model)
  assert editor.summary(editor.init(model.params)) == {'num_keys': 0}
  assert editor.summary(both[0]) == {
    'num_keys': 2,
    'radius_min': 1,
    'radius_median': 1,
  }


# Refusals


def test_non_finite_losses_are_refused(model):
  with pytest.raises(
    FloatingPointError, match="Case 'a'.*Lower method.edit_lr"
  ):
    _edit(model, ADA, edit_lr=float('inf'))


@pytest.mark.parametrize('layer', [-1, 3])
def test_layers_that_are_not_there(model, layer):
  with pytest.raises(ValueError, match=r'method.layer must be in 0 \.\.\. 2'):
    _editor(model, layer=layer)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'val_init': 'hot'}, 'method.val_init must be one of cold, warm'),
    ({'query': 'first'}, 'method.query must be one of last_prompt'),
    ({'task_query': 'first'}, 'method.task_query must be one of'),
    ({'reedit': 'split'}, 'method.reedit'),
    ({'label_match': 'mean'}, 'method.label_match'),
    ({'eps': 0.0}, 'method.eps must be above 0'),
    ({'n_iter': 0}, 'method.n_iter must be at least 1'),
    (
      {'replacement': 'replace_all', 'query': 'every_new_token'},
      'method.replacement replace_all replaces tokens before the query',
    ),
    (
      {'replacement': 'replace_prompt', 'task_query': 'last_input'},
      'set method.query to last_prompt',
    ),
  ],
)
def test_settings_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    GraceConfig(**changes)


# The protocol


def test_what_the_editor_declares(model):
  editor = _editor(model)
  assert editor.task_interventions is None and not editor.needs_whole_prompts
  assert set(editor.interventions(editor.init(model.params))) == {
    f'layers/{LAYER}/mlp/out'
  }
  editor = _editor(model, task_query='every_new_token')
  assert editor.task_interventions is not None
  assert _editor(model, task_query='last_prompt').task_interventions is None
  assert _editor(model, replacement='replace_all').needs_whole_prompts


def test_registry(model):
  method = dataclasses.replace(CONFIG)
  assert registry.second_moment_layers(method) == ()
  assert registry.first_edited_layer(method) == LAYER
  assert not registry.uses_templates(method)
  stored = dataclasses.asdict(method)
  assert registry.acts_in_forward(stored)
  assert not registry.acts_in_forward({'name': 'rome'})
  assert registry.acting_editor({'name': 'rome'}, model) is None
  editors = [
    registry.make_editor(method, model, templates=(), factors={}),
    registry.acting_editor(stored, model),
  ]
  for editor in editors:
    state = editor.init(model.params)
    assert state.codebook.keys.shape == (grace_lib.CAPACITY, 64)
    assert state.codebook.values.shape == (grace_lib.CAPACITY, 32)
