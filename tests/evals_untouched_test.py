"""GRACE's untouched items: copied, and the same as if they were asked."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from evals_fakes import folder, task_context

from me_jax import files, generation
from me_jax.config import GraceConfig
from me_jax.edits import codebook, registry
from me_jax.evals import runner, samples
from me_jax.evals.cloze_task import ClozeTask
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn
from me_jax.evals.task import Item
from me_jax.evals.untouched import Untouched
from me_jax.models import sites
from me_jax.typing import ModelState, ScoreRequest

LAYER = 2
NEW_TOKENS = 6
EXEMPLAR = 'The capital of France is Paris.\nThe capital of Spain is Madrid.\n'
ITEMS = tuple(
  Item(id=f'{i}', group='all', fields={'text': f'{"ab" * i} says {name} is'})
  for i, name in enumerate(['Rome', 'Oslo', 'a cat', 'tea', 'blue', 'over'])
)
RULES = codebook.Rules(eps=1e-2)


def text_of(item):
  return EXEMPLAR + item.fields['text']


@pytest.fixture(scope='module', params=['gen', 'ppl'])
def selection(request, tiny):
  context = task_context(folder(None), tiny.tokenizer)
  if request.param == 'gen':
    task = GenerationTask(
      name='written',
      version='1',
      context=context,
      docs=lambda: ITEMS,
      doc_to_turns=lambda item: [Turn('HUMAN', text_of(item))],
      doc_to_target=lambda item: 'x',
      max_gen_toks=NEW_TOKENS,
      readings=(
        Reading(
          name='oc',
          filter=lambda item, text: text,
          mark=lambda item, text: {'accuracy': float(text == 'x')},
        ),
      ),
    )
  else:
    task = ClozeTask(
      name='chosen',
      version='1',
      context=context,
      docs=lambda: ITEMS,
      doc_to_text=text_of,
      doc_to_choice=lambda item: ['one', 'the other'],
      doc_to_target=lambda item: 'A',
      labels='AB',
    )
  return runner.select(task)


@functools.cache
def predictor_of(model, policy):
  return generation.LlamaPredictor(
    model.config,
    model.tokenizer,
    interventions=editor_of(model, policy).interventions,
  )


@functools.cache
def editor_of(model, policy):
  method = GraceConfig(layer=LAYER, query=policy)
  return registry.make_editor(method, model, templates=(), factors={})


class Asked:
  """A predictor that counts what it is asked."""

  def __init__(self, predictor):
    self.predictor = predictor
    self.answered = self.tapped = 0

  def score(self, state, requests):
    for answer in self.predictor.score(state, requests):
      self.answered += 1
      yield answer

  def generate(self, state, requests, *, skip=()):
    for answer in self.predictor.generate(state, requests, skip=skip):
      self.answered += 1
      yield answer

  def tap(self, state, site, requests, slots):
    for content in self.predictor.tap(state, site, requests, slots):
      self.tapped += 1
      yield content


class Bench:
  """One task, one policy, the unedited answers in a directory."""

  def __init__(self, model, selection, policy, path):
    self.model, self.selection, self.path = model, selection, path
    self.editor = editor_of(model, policy)
    self.predictor = Asked(predictor_of(model, policy))
    self.empty = self.editor.init(model.params)
    self.evaluate(self.empty, 'unedited')
    self.unedited = samples.read_samples(
      path / 'unedited', state_fingerprint='unedited'
    )

  def evaluate(self, state, name, copies=None):
    self.predictor.answered = 0
    return runner.evaluate(
      self.selection,
      self.predictor,
      ModelState(self.model.params, state),
      state_fingerprint=name,
      path=self.path / name,
      scores_path=self.path / f'{name}_scores',
      copies=copies or {},
    )

  def untouched(self, max_bytes=1 << 20):
    return Untouched(
      self.selection,
      self.predictor,
      self.editor.probe,
      path=self.path / 'unedited',
      fingerprint='unedited',
      max_bytes=max_bytes,
    )

  def prompt(self, index):
    request = self.selection.requests[index]
    return request.context if self.is_ppl else request.prompt

  @property
  def is_ppl(self):
    return self.selection.task.mode == 'ppl'

  def state(self, text, slot):
    """With one entry: what the layer is fed at a token of a text."""
    request = ScoreRequest(context=tuple(text), continuations=((0,),))
    tapped = self.predictor.predictor.tap(
      ModelState(self.model.params, self.empty),
      sites.site(LAYER, 'mlp/key'),
      [request],
      [[slot]],
    )
    [(_, [key])] = tapped
    book, _ = codebook.write(
      self.empty.codebook,
      jnp.asarray(key),
      jnp.full(self.model.config.embed_dim, 5.0),
      jnp.zeros(2, jnp.int32),
      jnp.int32(1),
      rules=RULES,
    )
    return self.empty._replace(codebook=book, last_query=jnp.int32(slot))


@pytest.fixture
def bench(tiny, selection, tmp_path):
  return functools.partial(Bench, tiny, selection, path=tmp_path)


def check(bench, state, touched):
  """Copies spare all but `touched`, and change nothing."""
  found = bench.untouched()(ModelState(bench.model.params, state))
  names = {item.id for item in ITEMS}
  assert names - set(found.copies) == touched
  whole = bench.evaluate(state, 'asked')
  assert bench.predictor.answered == len(ITEMS)
  assert bench.evaluate(state, 'copied', found.copies) == whole
  assert bench.predictor.answered == len(touched)
  asked, copied = (
    samples.read_samples(bench.path / name, state_fingerprint=name)
    for name in ('asked', 'copied')
  )
  assert list(asked) == list(copied)
  for name in names:
    is_copied = name not in touched
    assert copied[name].get('copied_from') == (
      'unedited' if is_copied else None
    )
    same = {'copied_from': None, 'state_fingerprint': None}
    a, b = ({**r[name], **same} for r in (asked, copied))
    if bench.is_ppl:
      np.testing.assert_allclose(a['resps'], b['resps'], rtol=1e-5)
      same |= {'resps': None}
    assert {**a, **same} == {**b, **same}
  values = {m.name: m for m in found.metrics}
  assert values['copied'].n == values['trigger_rate'].n == len(ITEMS)
  assert values['copied'].value == 100 - 100 * len(touched) / len(ITEMS)
  assert values['trigger_rate'].value == 100 * len(touched) / len(ITEMS)
  return values, asked


def test_an_item_whose_prompt_is_edited(bench):
  bench = bench('last_prompt')
  text = bench.prompt(2)
  values, asked = check(bench, bench.state(text, len(text) - 1), {'2'})
  assert values['token_trigger_rate'].n == len(ITEMS)
  assert asked['2']['resps'] != bench.unedited['2']['resps']


def test_an_item_that_is_edited_at_a_new_token(bench):
  bench = bench('every_new_token')
  if bench.is_ppl:
    # Nothing that is scored is ever looked at, so nothing is computed.
    text = bench.prompt(2)
    values, _ = check(bench, bench.state(text, len(text) - 1), set())
    assert 'token_trigger_rate' not in values
    assert bench.predictor.tapped == 0
    return
  new = bench.unedited['3']['tokens']
  assert len(new) == NEW_TOKENS
  text = [*bench.prompt(3), *new]
  values, asked = check(bench, bench.state(text, len(text) - 4), {'3'})
  # The prompt's end and all new tokens but the last.
  assert values['token_trigger_rate'].n == len(ITEMS) * NEW_TOKENS
  assert asked['3']['tokens'][:3] == new[:3]
  assert asked['3']['tokens'] != new


def test_an_item_that_is_edited_inside_what_is_shared(bench):
  bench = bench('fixed_last_edit')
  request = bench.selection.requests[0]
  assert request.shared > 9
  # All begin with the same, so all are touched, there.
  state = bench.state(bench.prompt(0), 8)
  check(bench, state, {item.id for item in ITEMS})


def test_what_is_looked_at_is_computed_once(bench):
  bench = bench('last_prompt')
  text = bench.prompt(2)
  untouched = bench.untouched()
  params = bench.model.params
  untouched(ModelState(params, bench.empty))
  assert bench.predictor.tapped == len(ITEMS)
  state = bench.state(text, len(text) - 1)
  kept = untouched(ModelState(params, state))
  assert bench.predictor.tapped == len(ITEMS)
  without_room = bench.untouched(max_bytes=0)
  for _ in range(2):
    bench.predictor.tapped = 0
    assert without_room(ModelState(params, state)).copies == kept.copies
    assert bench.predictor.tapped == len(ITEMS)


def test_a_key_that_rounding_might_move_is_asked(bench):
  bench = bench('last_prompt')
  text = bench.prompt(2)
  state = bench.state(text, len(text) - 1)
  book = state.codebook
  away = book.keys.at[0].mul(1 + 1e-5)  # of its length; the radius is none
  state = state._replace(
    codebook=book._replace(keys=away, radii=book.radii * 0)
  )
  found = bench.untouched()(ModelState(bench.model.params, state))
  assert set(found.copies) == {item.id for item in ITEMS} - {'2'}
  assert {m.name: m.value for m in found.metrics}['trigger_rate'] == 0


def test_only_the_same_question_of_the_same_model_is_copied(bench, tmp_path):
  bench = bench('last_prompt')
  path = tmp_path / 'unedited'
  records = files.read_jsonl(path)
  records[0]['prompt_hash'] = 'another'
  records[1]['version'] = 'another'
  del records[2]
  files.write_jsonl(path, records)
  state = ModelState(bench.model.params, bench.empty)
  assert set(bench.untouched()(state).copies) == {'3', '4', '5'}
  files.write_jsonl(
    path, [r | {'state_fingerprint': 'another'} for r in records]
  )
  with pytest.raises(ValueError, match='state_fingerprint'):
    bench.untouched()(state)
  path.unlink()
  assert bench.untouched()(state) == ({}, [])


def test_an_interrupted_evaluation_goes_on_with_copies(bench, tmp_path):
  bench = bench('last_prompt')
  text = bench.prompt(2)
  state = bench.state(text, len(text) - 1)
  copies = bench.untouched()(ModelState(bench.model.params, state)).copies
  bench.evaluate(state, 'whole', copies)
  whole = files.read_jsonl(tmp_path / 'whole')
  fingerprint = {'state_fingerprint': 'cut'}
  files.write_jsonl(tmp_path / 'cut', [r | fingerprint for r in whole[4:]])
  bench.evaluate(state, 'cut', copies)
  resumed = files.read_jsonl(tmp_path / 'cut')
  assert [r | {'state_fingerprint': 'whole'} for r in resumed] == whole


def test_older_answers_without_tokens_are_asked_again(bench, tmp_path):
  bench = bench('every_new_token')
  path = tmp_path / 'unedited'
  records = files.read_jsonl(path)
  files.write_jsonl(
    path, [{k: v for k, v in r.items() if k != 'tokens'} for r in records]
  )
  copies = bench.untouched()(ModelState(bench.model.params, bench.empty)).copies
  assert len(copies) == (len(ITEMS) if bench.is_ppl else 0)
