"""Whole runs with GRACE: what is stored of them, and what comes back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from evals_fakes import folder, task_context

from me_jax import checkpoints as checkpoints_lib
from me_jax import config as config_lib
from me_jax import files, generation, rebuild, results, sequential
from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.edits import registry
from me_jax.engines.lower_layers import Activations
from me_jax.evals import perplexity
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn
from me_jax.evals.task import Item
from me_jax.workdir import Workdir, samples_path

METHOD = config_lib.GraceConfig(layer=2, n_iter=6, task_query='every_new_token')
FACTS = 3
_MEDIAN = 'nearest_distance_rephrase_q50'


def _requests():
  return [
    EditRequest(
      case_id=f'case-{i}',
      subject=f'Sub{i}',
      prompt='{} is in',
      target_new=f'R{i}',
      rephrase_prompts=(f'Is Sub{i} in',),
      locality_prompts=(LocalityPrompt(prompt=f'Who is {i}?', answer='Ann'),),
    )
    for i in range(FACTS)
  ]


def _prompts_task(tokenizer):
  """What the model says to the prompts of the facts, and to three others."""
  prompts = [r.text for r in _requests()] + [f'What of {c}' for c in 'xyz']
  return GenerationTask(
    name='prompts',
    version='1',
    context=task_context(folder(None), tokenizer),
    docs=lambda: [
      Item(id=str(i), group='all', fields={'text': text})
      for i, text in enumerate(prompts)
    ],
    doc_to_turns=lambda item: [Turn('TEXT', item.fields['text'])],
    doc_to_target=lambda item: 'R',
    max_gen_toks=4,
    readings=(
      Reading(
        name='oc',
        filter=lambda item, text: text,
        mark=lambda item, text: {'accuracy': float('R' in text)},
      ),
    ),
  )


class Stopped(Exception):
  pass


@pytest.fixture(scope='module')
def predictors(tiny):
  """Compiled once for all runs; activations are only kept for equal weights."""
  editor = registry.make_editor(METHOD, tiny, templates=(), factors={})
  return [
    generation.LlamaPredictor(
      tiny.config,
      tiny.tokenizer,
      interventions=interventions,
      activations=Activations(METHOD.layer, 1 << 22),
    )
    for interventions in (editor.interventions, editor.task_interventions)
  ]


@pytest.fixture(scope='module')
def job(tiny, predictors, tmp_path_factory):
  """A function that makes a run in a directory of that name."""
  root = tmp_path_factory.mktemp('runs')
  text = 'Plain words, one after another. ' * 40

  def make(name, stop_before=None, copies=True, **changes):
    method = dataclasses.replace(METHOD, **changes)
    config = config_lib.RunConfig(
      model=config_lib.ModelSource(name='tiny'),
      method=method,
      facts=config_lib.FactsConfig(name='sample'),
      second_moment=config_lib.SecondMomentConfig(),
      num_edits=FACTS,
      eval_steps=(0, 2, FACTS),
      evals=config_lib.EvalConfig(copy_untouched=copies),
    )
    editor = registry.make_editor(method, tiny, templates=(), factors={})

    def edit(params, state, requests):
      if requests[0].case_id == stop_before:
        raise Stopped
      return editor.edit(params, state, requests)

    workdir = Workdir(root / name)
    workdir.claim(
      {'config': dataclasses.asdict(config), 'weights': tiny.fingerprint}, {}
    )
    return sequential.Run(
      config=config,
      workdir=workdir,
      model=tiny,
      editor=editor._replace(edit=edit),
      predictor=predictors[0],
      task_predictor=predictors[1],
      requests=_requests(),
      tasks=[
        perplexity.Perplexity(
          name='words',
          context=task_context(folder(None), tiny.tokenizer),
          read=lambda: text,
        ),
        _prompts_task(tiny.tokenizer),
      ],
      probe=text,
    )

  return make


def _content(job):
  """All that a run left, but for times."""
  checkpoints = checkpoints_lib.Checkpoints(
    job.workdir.checkpoints, job.model.fingerprint
  )
  steps = [
    ({**step.record, 'seconds': None}, [np.asarray(x) for x in step.state])
    for step in checkpoints
  ]
  checkpoints.close()
  rows = results.read_rows(job.workdir.results)
  return {
    'records': [record for record, _ in steps],
    'states': [[x.tobytes() for x in state] for _, state in steps],
    'rows': [{**dataclasses.asdict(row), 'run': ''} for row in rows],
    'triangle': job.workdir.triangle.read_text(),
    'samples': [
      job.workdir.samples(task, FACTS).read_text()
      for task in ('words', 'prompts')
    ],
  }


@pytest.fixture(scope='module')
def whole(job):
  """A finished run, its state and its content."""
  run = job('whole')
  state = sequential.run(run)
  content = _content(run)
  run.workdir._lock.close()
  return run, state, content


def test_rows(whole, tiny):
  run, state, content = whole
  assert state.params is tiny.params
  assert int(state.editor.codebook.count) == FACTS
  values = {
    (r['edit_step'], r['metric']): r['value']
    for r in content['rows']
    if r['task'] == 'edit'
  }
  assert values[0, 'unedited_reliability_trigger_rate'] == 0
  for step in (2, 3):
    assert values[step, 'sequential_reliability_trigger_rate'] == 100
    assert values[step, 'individual_reliability_trigger_rate'] == 100
    assert values[step, 'sequential_locality_trigger_rate'] == 0
    # What is not hit is what it was.
    assert values[step, 'sequential_locality_agreement'] == 100
    assert values[step, 'num_keys'] == step
    assert values[step, 'radius_min'] == values[step, 'radius_median'] == 1
    assert values[step, 'nearest_distance_rewrite_q90'] < 1e-3
    assert values[step, 'nearest_distance_locality_q10'] > 1
  assert values[0, 'num_keys'] == 0
  assert not any((0, name) in values for name in ('radius_min', _MEDIAN))
  cells = map(json.loads, content['triangle'].splitlines())
  last = [c['lookups'] for c in cells if c['edit_step'] == 3]
  distances = [c['rephrase'][0]['distance'] for c in last]
  assert len(distances) == 3
  assert values[3, _MEDIAN] == pytest.approx(np.median(distances))
  assert (3, 'sequential_generalization_trigger_rate') in values
  infos = [record['info'][0] for record in content['records']]
  assert [i['num_keys'] for i in infos] == [1, 2, 3]
  assert {i['radius_median'] for i in infos} == {1.0}


def test_task_predictor_asks_the_tasks(job):
  """Under `every_new_token` a text is asked at its end, where no fact is."""
  run = job('asked', copies=False)
  sequential.run(run)
  [first, *others] = [
    row.value
    for row in results.read_rows(run.workdir.results)
    if (row.task, row.metric) == ('words', 'ppl')
  ]
  assert others == [first, first]
  run.workdir._lock.close()


def test_copies_change_nothing(whole):
  """The facts' prompts are asked again, the others are copied."""
  copied, asked = whole[0].workdir, whole[0].workdir.path.parent / 'asked'
  values = {
    (r['edit_step'], r['metric']): r['value']
    for r in whole[2]['rows']
    if r['task'] == 'prompts'
  }
  for step, written in ((2, 2), (FACTS, FACTS)):
    records = [
      {r['doc_id']: r for r in files.read_jsonl(path)}
      for path in (
        copied.samples('prompts', step),
        samples_path(asked, 'prompts', step),
      )
    ]
    first, second = records
    said = lambda record: (record['tokens'], record['stop_reason'])
    assert {n: said(r) for n, r in first.items()} == {
      n: said(r) for n, r in second.items()
    }
    is_copied = {n for n, r in first.items() if 'copied_from' in r}
    assert is_copied == {str(i) for i in range(written, 2 * FACTS)}
    assert not any('copied_from' in r for r in second.values())
    assert values[step, 'trigger_rate'] == pytest.approx(100 * written / 6)
    assert values[step, 'copied'] == pytest.approx(100 - 100 * written / 6)
  assert (0, 'trigger_rate') not in values


def test_states_have_names_of_their_own(job, whole, tiny):
  """Whatever leaves the weights alone must not pass for them."""
  names = [r['state_fingerprint'] for r in whole[2]['records']]
  assert len({tiny.fingerprint, *names}) == FACTS + 1
  other = job('other', seed=1)
  sequential.run(other)
  others = [r['state_fingerprint'] for r in _content(other)['records']]
  # The same facts after the same steps, in another codebook.
  assert not set(names) & set(others)
  other.workdir._lock.close()


@pytest.mark.parametrize('fact', range(1, FACTS))
def test_a_killed_run_resumes_to_the_same_results(job, whole, fact):
  killed = job(f'killed-{fact}', stop_before=f'case-{fact}')
  with pytest.raises(Stopped):
    sequential.run(killed)
  killed.workdir._lock.close()
  resumed = job(f'killed-{fact}')
  state = sequential.run(resumed)
  jax.tree.map(np.testing.assert_array_equal, state, whole[1])
  assert _content(resumed) == whole[2]
  resumed.workdir._lock.close()


# Rebuilding


@pytest.mark.parametrize('until', [None, 0, 2])
def test_the_state_comes_back(whole, tiny, until):
  run, state, content = whole
  found = rebuild.edited_state(run.workdir.path, until=until)
  assert found.num_edits == (FACTS if until is None else until)
  assert found.model.fingerprint == tiny.fingerprint
  count = int(found.editor_state.codebook.count)
  assert count == found.num_edits
  steps = [r['state_fingerprint'] for r in content['records']]
  assert found.fingerprint not in (tiny.fingerprint, *steps)
  if until is None:
    jax.tree.map(
      np.testing.assert_array_equal, found.editor_state, state.editor
    )
  acts = found.editor.task_interventions(found.editor_state)
  assert set(acts) == {f'layers/{METHOD.layer}/mlp/out'}


def test_rebuilt_states_have_names_of_their_own(whole):
  run = whole[0].workdir.path
  found = [rebuild.edited_state(run, until=n).fingerprint for n in (0, 1, 2, 3)]
  assert len(set(found)) == 4
  assert rebuild.edited_state(run).fingerprint == found[-1]


def test_there_are_no_edited_weights(whole):
  run = whole[0].workdir.path
  message = 'edits of grace in .* are not in the weights'
  with pytest.raises(ValueError, match=message):
    rebuild.edited_model(run)
  with pytest.raises(ValueError, match=message):
    rebuild.composed_edit(run)


def test_a_step_is_left_out(whole):
  run, state, _ = whole
  found = rebuild.edited_state(run.workdir.path, without=[2])
  assert (found.edit_step, found.num_edits) == (FACTS, FACTS - 1)
  assert found.fingerprint != rebuild.edited_state(run.workdir.path).fingerprint
  book = found.editor_state.codebook
  assert book.edit_ids[: int(book.count)].tolist() == [1, 3]
  for i, entry in enumerate((0, 2)):
    np.testing.assert_array_equal(
      book.values[i], state.editor.codebook.values[entry]
    )
  # Without the last step it is the state before it.
  last = rebuild.edited_state(run.workdir.path, without=[FACTS])
  before = rebuild.edited_state(run.workdir.path, until=FACTS - 1)
  assert last.fingerprint == before.fingerprint


# Checkpoints


def test_a_state_that_was_changed_is_noticed(tmp_path):
  checkpoints = checkpoints_lib.Checkpoints(tmp_path, 'base')
  state = {'a': np.arange(3.0, dtype=np.float32), 'b': np.int32(7)}
  checkpoints.save(1, {}, {}, state)
  step = checkpoints.load(1)
  found = step.editor_state({'a': 0, 'b': 0})
  np.testing.assert_array_equal(found['a'], state['a'])
  assert found['b'] == 7 and found['b'].dtype == np.int32
  with pytest.raises(ValueError, match='2 arrays, this method has 1'):
    step.editor_state([0])
  checkpoints.close()
  # Another number under the same record.
  other = checkpoints_lib.Checkpoints(tmp_path / 'other', 'base')
  other.save(1, {}, {}, {**state, 'b': np.int32(8)})
  assert other.fingerprint(1) != checkpoints.fingerprint(1)
  other.close()
  source = tmp_path / 'other' / '1' / 'editor_state'
  target = tmp_path / '1' / 'editor_state'
  target.rename(tmp_path / 'kept')
  source.rename(target)
  damaged = checkpoints_lib.Checkpoints(tmp_path, 'base')
  with pytest.raises(ValueError, match='step 1 .* is damaged .its hash is'):
    damaged.load(1)
  damaged.close()


def test_a_step_without_anything(tmp_path):
  """An edit that was skipped, by a method without a state."""
  checkpoints = checkpoints_lib.Checkpoints(tmp_path, 'base')
  checkpoints.save(1, {}, {'info': []})
  step = checkpoints.load(1)
  assert step.edit == {} and step.state == ()
  assert step.editor_state(None) is None
  checkpoints.close()
