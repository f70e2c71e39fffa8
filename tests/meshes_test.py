"""A benchmark, a training and an analysis on eight devices, as on one."""

import eight_devices
import jax
import numpy as np
import pytest
from evals_fakes import folder, task_context
from small_model import small_model

from me_jax import generation, sharding
from me_jax.analysis.saliency import Prompt, saliency
from me_jax.config import MendConfig
from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.edits import mend_examples, mend_training
from me_jax.evals import mmlu, runner, samples
from me_jax.typing import ModelState

_TOLERANCE = 1e-5

pytestmark = eight_devices.needs_eight


@pytest.fixture(scope='module')
def model(tiny):
  return small_model(tiny, num_layers=2)


@pytest.fixture(scope='module', params=eight_devices.MESHES)
def sharded(model, request):
  """The parameters on all eight devices, in each shape."""
  mesh = eight_devices.mesh(request.param)
  return sharding.shard(model.config, model.params, mesh)


def _assert_near(found, expected):
  atol = _TOLERANCE * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# MMLU


@pytest.fixture(scope='module')
def questions(model, tmp_path_factory):
  """Eleven of MMLU behind five exemplars; no mesh divides them."""
  root = tmp_path_factory.mktemp('mmlu')
  for split, count in (('dev', 5), ('test', 11)):
    path = root / 'mmlu' / split / f'anatomy_{split}.csv'
    path.parent.mkdir(parents=True)
    path.write_text(
      ''.join(
        f'{split} {"so " * i}{i}?,a{i},b{i},c,d{"d" * i},{"ABCD"[i % 4]}\n'
        for i in range(count)
      )
    )
  context = task_context(folder(root), model.tokenizer)
  task = mmlu.Mmlu(context=context, subjects=('anatomy',))
  return runner.select(task)


@pytest.fixture(scope='module')
def ask(model, questions, tmp_path_factory):
  """Metrics of MMLU and the stored answers, from weights."""
  predictor = generation.LlamaPredictor(model.config, model.tokenizer)

  def ask(params):
    path = tmp_path_factory.mktemp('answers') / 'mmlu.jsonl'
    metrics = runner.evaluate(
      questions,
      predictor,
      ModelState(params),
      state_fingerprint='same',
      path=path,
      scores_path=path.with_suffix('.scores'),
    )
    return metrics, samples.read_samples(path, state_fingerprint='same')

  return ask


@pytest.fixture(scope='module')
def answers(model, ask):
  return ask(model.params)


def test_mmlu(ask, answers, sharded):
  (expected, stored), (found, on_mesh) = answers, ask(sharded)
  assert found == expected and expected[0].n == 11
  assert on_mesh.keys() == stored.keys()
  for name, record in stored.items():
    assert len(record['resps']) == 4
    np.testing.assert_allclose(
      on_mesh[name]['resps'], record['resps'], rtol=0, atol=_TOLERANCE
    )


# Training of MEND

_MEND = MendConfig(layers=(1,), rank=12, accumulate=8, max_iters=16)


@pytest.fixture(scope='module')
def examples(model):
  facts = [
    EditRequest(
      case_id=name,
      subject=name,
      prompt='Where is {}?',
      target_new=f'City {i}',
      rephrase_prompts=(f'{name} is in',),
      locality_prompts=(LocalityPrompt(prompt='Who am I', answer='Me'),),
    )
    for i, name in enumerate(
      ('Ada', 'Bob', 'Cyd', 'Dan', 'Eve', 'Fay', 'Gus', 'Hal')
    )
  ]
  return mend_examples.make_examples(model.tokenizer, facts, max_length=40)


def _step(model, params, examples):
  """State and scores after a step of training."""
  mesh = sharding.mesh_of(params)
  prepare = mend_examples.Preparer(
    model.config, params, _MEND.layers[0], 1 << 20
  )
  group = mend_examples.group(
    [prepare(example) for example in examples], batch=1, outer=_MEND.outer
  )
  start = mend_training.init_state(_MEND, model.config)
  update = mend_training.make_update(_MEND, model.config, mesh)
  return jax.device_get(
    update(
      params, sharding.replicate(start, mesh), mend_examples.deal(group, mesh)
    )
  )


@pytest.fixture(scope='module')
def trained(model, examples):
  return _step(model, model.params, examples)


def test_a_step_of_training(model, examples, trained, sharded):
  """Its examples are dealt; scores, statistics and the moments of the gradient
  are the same. Adam divides these by one another, even where they are but
  rounding: networks are compared after whole trainings, see mend_loop_test."""
  found = _step(model, sharded, examples)
  (expected, expected_scores), (state, scores) = trained, found
  for part in ('statistics', 'opt_state'):
    jax.tree.map(_assert_near, getattr(state, part), getattr(expected, part))
  assert scores.keys() == expected_scores.keys()
  for name, score in scores.items():
    # Of what an edit that does nothing yet does, some is but rounding.
    np.testing.assert_allclose(
      score, expected_scores[name], _TOLERANCE, _TOLERANCE, err_msg=name
    )


# Saliency


def _prompts():
  rng = np.random.default_rng(0)
  return [
    Prompt(
      ids=tuple(rng.integers(0, 256, size=n).tolist()),
      label_positions=(n // 3, n - 3),
      gold=n % 2,
    )
    for n in (17, 18, 19, 20, 21)
  ]


@pytest.fixture(scope='module')
def measure(model):
  return saliency(model.config, label_ids=(10, 200), batch_size=2)


@pytest.fixture(scope='module')
def flows(model, measure):
  return measure(model.params, _prompts())


def test_saliency(measure, flows, sharded):
  for found, expected in zip(measure(sharded, _prompts()), flows, strict=True):
    _assert_near(found, expected)
