import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from experiments import table1
from me_jax import trees
from me_jax.config import FineTuneConfig, fine_tune_preset
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits import fine_tune as fine_tune_lib
from me_jax.edits import fine_tune_search, registry
from me_jax.edits.edit import Dense, apply_edit

LAYER = 2
PATH = f'layers/{LAYER}/mlp/down_proj/kernel'
CONFIG = FineTuneConfig(layer=LAYER, lr=5e-3)
OBJECTIVES = ('target_new', 'prompt_last')
ADA, BOB = REQUESTS = [
  EditRequest(case_id=s[0], subject=s, prompt=p, target_new=t)
  for s, p, t in (
    ('Ada', 'Where is {}?', 'Rome'),
    ('Bob', 'Who is {}', 'me'),
  )
]


def _editor(model, **changes):
  return fine_tune_lib.fine_tune(
    dataclasses.replace(CONFIG, **changes),
    model.config,
    model.tokenizer,
    base=model.params,
  )


def _edit(model, requests, params=None, **changes):
  params = model.params if params is None else params
  edit, _, infos = _editor(model, **changes).edit(params, None, requests)
  return edit, infos


def _loss(model, params, request, objective):
  """By a pass over the text without padding."""
  joint = token_ids.joint_ids(model.tokenizer, request.text, request.target_new)
  logits = plain_model.logits(model.config, params, np.array(joint.full[:-1]))
  slots = joint.num_prompt - 1 + np.arange(len(joint.target))
  if objective == 'prompt_last':
    slots = slots[:1].repeat(len(slots))
  logprobs = jax.nn.log_softmax(logits)[slots, list(joint.target)]
  return -float(logprobs.mean())


# Parity with plain PyTorch


@pytest.fixture(scope='module')
def torch_editing(tiny):
  """A function like `_edit` that gives the matrix [in, out] and the losses."""
  torch = pytest.importorskip('torch', reason='the extra parity is missing')
  from bench import torch_model

  def edit(requests, start, anchor, config):
    leaves = trees.flatten(trees.set_leaf(tiny.params, PATH, start))
    model = torch_model.build_model(
      tiny.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
    ).double()
    weight = model.model.layers[LAYER].mlp.down_proj.weight.requires_grad_()
    anchor = torch.from_numpy(np.array(anchor, np.float64)).T
    optimizer = torch.optim.Adam([weight], lr=config.lr)
    losses = []
    for _ in range(config.num_steps):
      optimizer.zero_grad()
      loss = 0
      for request in requests:
        joint = token_ids.joint_ids(
          tiny.tokenizer, request.text, request.target_new
        )
        target = torch.tensor(joint.target)
        last = joint.num_prompt - 1
        if config.objective == 'prompt_last':
          logits = model(torch.tensor([joint.prompt])).logits[0, last:]
          logits = logits.expand(len(target), -1)
        else:
          logits = model(torch.tensor([joint.full[:-1]])).logits[0, last:]
        nll = torch.nn.functional.cross_entropy(logits, target)
        loss = loss + nll / len(requests)
      losses.append(loss.item())
      loss.backward()
      optimizer.step()
      if config.norm_constraint:
        bound = config.norm_constraint
        with torch.no_grad():
          weight[...] = weight.clamp(anchor - bound, anchor + bound)
    return weight.detach().numpy().T, losses

  threads = torch.get_num_threads()
  # Of no use for products this small, and slow where cores are busy.
  torch.set_num_threads(1)
  yield edit
  torch.set_num_threads(threads)


@pytest.mark.parametrize('requests', [[ADA], [ADA, BOB]], ids=['one', 'two'])
@pytest.mark.parametrize(
  'changes',
  [
    {'objective': 'target_new'},
    {'objective': 'prompt_last'},
    {'norm_constraint': 8e-3},
    {'norm_constraint': 8e-3, 'anchor': 'theta_0'},
  ],
  ids=['ft_m', 'ft_l', 'theta_prev', 'theta_0'],
)
def test_five_steps_equal_those_of_pytorch(
  tiny, torch_editing, changes, requests
):
  """From a matrix that an earlier edit has moved away from the base."""
  config = dataclasses.replace(CONFIG, num_steps=5, **changes)
  base = trees.get(tiny.params, PATH)
  draw = np.random.default_rng(0).normal(size=base.shape) * 4e-3
  start = base + jnp.asarray(draw, jnp.float32)
  anchor = base if config.anchor == 'theta_0' else start
  expected, losses = torch_editing(requests, start, anchor, config)
  params = trees.set_leaf(tiny.params, PATH, start)
  edit, infos = _edit(tiny, requests, params=params, num_steps=5, **changes)
  found = trees.get(apply_edit(params, edit), PATH)
  moved = np.abs(expected - np.asarray(start)).max()
  assert moved > 7e-3
  # Adam's quotient is unstable where a gradient is next to nothing.
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  ours = np.mean([[s['loss'] for s in i['steps']] for i in infos], axis=0)
  np.testing.assert_allclose(ours, losses, rtol=1e-5)
  if config.norm_constraint:
    gap = np.abs(np.asarray(found) - np.asarray(anchor)).max()
    np.testing.assert_allclose(gap, config.norm_constraint, rtol=1e-4)


# What is searched


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_losses_are_those_of_the_edited_model(tiny, objective):
  edit, infos = _edit(tiny, REQUESTS, objective=objective)
  after = apply_edit(tiny.params, edit)
  for request, info in zip(REQUESTS, infos, strict=True):
    first, last = info['steps'][0]['loss'], info['final_loss']
    np.testing.assert_allclose(
      [first, last],
      [_loss(tiny, p, request, objective) for p in (tiny.params, after)],
      rtol=1e-5,
    )
    assert last < first


def test_no_weights_say_three_tokens_at_one_place(tiny):
  """ln 3 is the least of that loss; one after another they can be said."""
  request = dataclasses.replace(ADA, target_new='ab')
  final = {}
  for objective in OBJECTIVES:
    changes = {'objective': objective, 'num_steps': 50, 'lr': 2e-2}
    _, (info,) = _edit(tiny, [request], **changes)
    assert len(set(info['target_ids'])) == 3
    final[objective] = info['final_loss']
  assert final['target_new'] < np.log(3) < final['prompt_last']


def test_stops_below_the_loss(tiny):
  _, (info,) = _edit(tiny, [ADA], num_steps=60, early_stop_loss=5.0)
  losses = [step['loss'] for step in info['steps']]
  assert 1 < len(losses) < 60
  assert losses[-1] < 5.0 <= losses[-2]
  # There is no step after the last of these.
  assert info['final_loss'] == pytest.approx(losses[-1], rel=1e-6)


def test_a_known_fact_moves_nothing(tiny):
  edit, (info,) = _edit(tiny, [ADA], early_stop_loss=1e3)
  assert not edit[PATH].delta.any()
  assert info['change_norm'] == 0 and len(info['steps']) == 1


def test_a_sequence_stays_around_its_anchor(tiny):
  """Of two edits; around the matrix before each of them, it may go on."""
  gaps = {}
  for anchor in ('theta_prev', 'theta_0'):
    params = tiny.params
    for request in REQUESTS:
      edit, _ = _edit(
        tiny, [request], params=params, norm_constraint=1e-2, anchor=anchor
      )
      params = apply_edit(params, edit)
    gap = trees.get(params, PATH) - trees.get(tiny.params, PATH)
    gaps[anchor] = float(jnp.abs(gap).max())
  assert gaps['theta_0'] == pytest.approx(1e-2, rel=1e-5)
  assert gaps['theta_prev'] > 1.5e-2


def test_padding_moves_nothing(tiny):
  """The same facts in longer rows, with more targets."""
  texts = [
    fine_tune_lib.text_of(tiny.tokenizer, r, 'target_new') for r in REQUESTS
  ]
  rows = fine_tune_lib.build_rows(texts, 'target_new')
  wide = rows._replace(
    ids=np.pad(rows.ids, ((0, 0), (0, 16)), constant_values=7),
    reads=jax.tree.map(lambda a: np.pad(a, (0, 4)), rows.reads),
  )
  found = []
  for r in (rows, wide):
    bound = tiny.config, tiny.params, r
    found.append(
      fine_tune_search.search(
        *bound,
        fine_tune_search.prepare(*bound, layer=LAYER),
        jnp.float32(0),
        layer=LAYER,
        search_config=fine_tune_lib.search_config(CONFIG),
      )
    )
  np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-4)


def test_log_of_an_edit(tiny):
  edit, (info, other) = _edit(tiny, REQUESTS)
  joint = token_ids.joint_ids(tiny.tokenizer, ADA.text, ADA.target_new)
  assert (info['case_id'], other['case_id']) == ('A', 'B')
  assert info['target_ids'] == list(joint.target)
  assert info['boundary_merged'] == 0
  assert len(info['steps']) == len(other['steps']) == CONFIG.num_steps
  norm = np.linalg.norm(edit[PATH].delta)
  kernel = np.linalg.norm(trees.get(tiny.params, PATH))
  for i in (info, other):
    np.testing.assert_allclose(
      [i['change_norm'], i['relative_change_norm']],
      [norm, norm / kernel],
      rtol=1e-5,
    )


def test_warns_of_a_large_change_only(tiny, caplog):
  with caplog.at_level(logging.WARNING):
    _, (small,) = _edit(tiny, [ADA], lr=1e-5)
    assert small['warnings'] == [] and caplog.text == ''
    _, (large, _) = _edit(tiny, REQUESTS, lr=1e-1)
  (warning,) = large['warnings']
  assert '‖ΔW‖/‖W‖' in warning and 'Case A, B: ‖ΔW‖/‖W‖' in caplog.text


# What is refused


@pytest.mark.parametrize('layer', [-1, 4])
def test_no_such_layer(tiny, layer):
  with pytest.raises(ValueError, match=rf'in 0 \.\.\. 3, got {layer}'):
    _editor(tiny, layer=layer)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'objective': 'last'}, 'objective must be one of target_new, prompt_last'),
    ({'anchor': 'theta'}, 'anchor must be one of theta_prev, theta_0'),
    ({'num_steps': 0}, 'num_steps must be at least 1'),
    ({'norm_constraint': -1.0}, 'norm_constraint must be at least 0'),
    ({'anchor': 'theta_0'}, 'Set method.norm_constraint'),
  ],
)
def test_bad_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    FineTuneConfig(**changes)


def test_a_step_out_of_the_numbers_is_refused(tiny):
  with pytest.raises(FloatingPointError, match="Case 'A'.*method.lr"):
    _edit(tiny, [ADA], lr=1e38)


# By name


def test_registry(tiny):
  assert registry.second_moment_layers(CONFIG) == ()
  assert registry.first_edited_layer(CONFIG) == LAYER
  assert not registry.uses_templates(CONFIG)
  editor = registry.make_editor(CONFIG, tiny, templates=(), factors={})
  edit, _, _ = editor.edit(tiny.params, None, [ADA])
  assert isinstance(edit[PATH], Dense)
  assert edit_lib.digest(edit) == edit_lib.digest(_edit(tiny, [ADA])[0])


def test_presets():
  ft_m = fine_tune_preset('ft_m', 'llama2_7b')
  ft_l = fine_tune_preset('ft_l', 'llama2_7b')
  assert ft_m == FineTuneConfig()
  assert (ft_m.layer, ft_m.lr, ft_m.num_steps) == (21, 5e-4, 25)
  assert ft_l == dataclasses.replace(ft_m, objective='prompt_last')
  assert (ft_m.name, ft_l.name) == ('ft_m', 'ft_l')
  constrained = fine_tune_preset('ft_l_constrained', 'smollm2_135m')
  assert (constrained.layer, constrained.norm_constraint) == (0, 5e-5)
  assert constrained.name == 'ft_l_constrained'
  assert fine_tune_preset('ft_l', 'smollm2_135m').layer == 20
  assert fine_tune_preset('ft_m', 'tiny', lr=1.0).lr == 1.0
  with pytest.raises(ValueError, match='one of ft_m, ft_l, ft_l_constrained'):
    fine_tune_preset('ft', 'tiny')


def test_experiment():
  for name in ('ft_l', 'ft_l_constrained', 'ft_m'):
    method = table1.get_config(f'method={name},model=tiny').method
    assert method == fine_tune_preset(name, 'tiny')
