"""Runs that end before an edit step and go on: the same as whole ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

from me_jax import checkpoints as checkpoints_lib
from me_jax import config as config_lib
from me_jax import generation, results, sequential, trees
from me_jax.data.request import EditRequest
from me_jax.edits import mend as mend_lib
from me_jax.edits import mend_file, mend_network, registry
from me_jax.edits.second_moment_factor import Factor
from me_jax.workdir import Workdir

TEMPLATES = ('{}', 'So it goes. {}')
F = 64
# Short searches, whose bounds are off: the model is hard to move.
SEARCH = {'v_num_grad_steps': 4, 'clamp_norm_factor': 50.0}
METHODS = {
  'memit': config_lib.MemitConfig(
    layers=(1, 2),
    mom2_update_weight=1e-1,
    cache_previous_keys=True,
    **SEARCH,
  ),
  'emmet': config_lib.EmmetConfig(layer=2, **SEARCH),
  'ft_m': config_lib.FineTuneConfig(layer=2, lr=1e-2, num_steps=4),
  'mend': config_lib.MendConfig(layers=(3,), rank=12, edit_lr=1e-2),
}
# All of one shape.
REQUESTS = [
  EditRequest(
    case_id=subject, subject=subject, prompt='Where is {}', target_new=target
  )
  for subject, target in (('Ada', 'x'), ('Bob', 'y'), ('Cyd', 'x'))
]


class Stopped(Exception):
  pass


def _factor(seed):
  draw = np.random.default_rng(seed).standard_normal((F, F))
  return Factor(np.linalg.cholesky(draw @ draw.T / F + np.eye(F) / 9))


@pytest.fixture(scope='module')
def model(tiny):
  return small_model(tiny, num_layers=4)


@pytest.fixture(scope='module')
def predictor(model):
  """Compiled once for all runs."""
  return generation.LlamaPredictor(model.config, model.tokenizer)


def _mend(method, model):
  """With untrained networks, as if they had seen rows of variance 1e-4."""
  statistics = {
    name: jax.tree.map(jnp.zeros_like, seen)._replace(
      count=jnp.asarray(101, jnp.int32),
      x_m2=jnp.full_like(seen.x_m2, 1e-2),
      g_m2=jnp.full_like(seen.g_m2, 1e-2),
    )
    for name, seen in mend_network.init_statistics(method, model.config).items()
  }
  trained = mend_file.Trained(
    mend_network.init_params(method, model.config),
    statistics,
    model.fingerprint,
    mend_file.settings(method),
    {},
  )
  return mend_lib.mend(method, model.config, model.tokenizer, trained=trained)


def _editor(method, model):
  if isinstance(method, config_lib.MendConfig):
    return _mend(method, model)
  layers = registry.second_moment_layers(method)
  return registry.make_editor(
    method,
    model,
    templates=TEMPLATES,
    factors={layer: _factor(layer) for layer in layers},
  )


@pytest.fixture(scope='module')
def job(model, predictor, tmp_path_factory):
  """A function that makes a run of a method in a directory of that name."""
  root = tmp_path_factory.mktemp('runs')

  def make(name, method, stop_before=None):
    config = config_lib.RunConfig(
      model=config_lib.ModelSource(name='tiny'),
      method=method,
      facts=config_lib.FactsConfig(name='sample'),
      second_moment=config_lib.SecondMomentConfig(),
      num_edits=len(REQUESTS),
      eval_steps=(0, len(REQUESTS)),
    )
    editor = _editor(method, model)

    def edit(params, state, requests):
      if requests[0].case_id == stop_before:
        raise Stopped
      return editor.edit(params, state, requests)

    workdir = Workdir(root / name)
    workdir.claim(
      {'config': dataclasses.asdict(config), 'weights': model.fingerprint}, {}
    )
    return sequential.Run(
      config=config,
      workdir=workdir,
      model=model,
      editor=editor._replace(edit=edit),
      predictor=predictor,
      requests=REQUESTS,
      tasks=[],
      probe='Plain words, one after another. ' * 40,
    )

  return make


def _content(job):
  """All that a run left, but for times. Hashes stand for edits and states."""
  checkpoints = checkpoints_lib.Checkpoints(
    job.workdir.checkpoints, job.model.fingerprint
  )
  records = [{**step.record, 'seconds': None} for step in checkpoints]
  checkpoints.close()
  rows = results.read_rows(job.workdir.results)
  return {
    'records': records,
    'rows': [{**dataclasses.asdict(row), 'run': ''} for row in rows],
    'triangle': job.workdir.triangle.read_text(),
  }


@pytest.mark.parametrize('name', METHODS)
def test_a_stopped_run_goes_on_to_the_same_results(job, model, name):
  """Ended before the second step, and again before the third."""
  method = METHODS[name]
  whole = job(f'{name}-whole', method)
  state = sequential.run(whole)
  content = _content(whole)
  for request in REQUESTS[1:]:
    stopped = job(f'{name}-stopped', method, stop_before=request.case_id)
    with pytest.raises(Stopped):
      sequential.run(stopped)
    stopped.workdir._lock.close()
  resumed = job(f'{name}-stopped', method)
  jax.tree.map(np.testing.assert_array_equal, sequential.run(resumed), state)
  assert _content(resumed) == content
  assert len(content['records']) == len(REQUESTS) and content['rows']
  for record in content['records']:
    assert ('editor_state' in record) == (name == 'memit')
  path = whole.editor.edited_paths[-1]
  before, after = (trees.get(p, path) for p in (model.params, state.params))
  assert not np.array_equal(before, after)
  for run in (whole, resumed):
    run.workdir._lock.close()
