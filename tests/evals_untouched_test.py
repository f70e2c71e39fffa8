"""GRACE's untouched items: copied, and the same as if they were asked."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from evals_fakes import folder, task_context

from me_jax import files, generation
from me_jax.config import GraceConfig
from me_jax.edits import codebook, registry
from me_jax.evals import runner, samples, untouched
from me_jax.evals.cloze_task import ClozeTask
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn
from me_jax.evals.task import Item
from me_jax.evals.untouched import Room, Untouched
from me_jax.models import sites
from me_jax.typing import (
  NEW,
  OTHER,
  PROMPT_END,
  GenerateRequest,
  ModelState,
  ScoreRequest,
)

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
def predictor_of(model, policy, rule):
  editor = editor_of(model, policy, rule)
  return generation.LlamaPredictor(
    model.config,
    model.tokenizer,
    interventions=editor.interventions,
    whole_prompts=editor.needs_whole_prompts,
  )


@functools.cache
def editor_of(model, policy, rule):
  method = GraceConfig(layer=LAYER, query=policy, replacement=rule)
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

  def __init__(self, model, selection, policy, path, rule='replace_last'):
    self.model, self.selection, self.path = model, selection, path
    self.editor = editor_of(model, policy, rule)
    self.predictor = Asked(predictor_of(model, policy, rule))
    self.empty = self.editor.init(model.params)
    self.evaluate(self.empty, 'unedited')
    self.unedited = samples.read_samples(
      path / 'unedited', state_fingerprint='unedited'
    )

  def evaluate(self, state, name, known=runner.NOTHING):
    self.predictor.answered = 0
    return runner.evaluate(
      self.selection,
      self.predictor,
      ModelState(self.model.params, state),
      state_fingerprint=name,
      path=self.path / name,
      scores_path=self.path / f'{name}_scores',
      known=known,
    )

  def untouched(self, max_bytes=1 << 20):
    return Untouched(
      self.selection,
      self.predictor,
      self.editor.probe,
      path=self.path / 'unedited',
      fingerprint='unedited',
      room=Room(max_bytes),
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
  known = bench.untouched()(ModelState(bench.model.params, state))
  names = {item.id for item in ITEMS}
  assert names - set(known.copies) == touched
  assert set(known.lookups) == names
  whole = bench.evaluate(state, 'asked')
  assert bench.predictor.answered == len(ITEMS)
  metrics = bench.evaluate(state, 'copied', known)
  assert metrics[: len(whole)] == whole
  assert bench.predictor.answered == len(touched)
  asked, copied = (
    samples.read_samples(bench.path / name, state_fingerprint=name)
    for name in ('asked', 'copied')
  )
  assert list(asked) == list(copied)
  for name in names:
    source = None if name in touched else 'unedited'
    assert copied[name].get('copied_from') == source
    assert copied[name]['lookups'] == known.lookups[name]
    same = dict.fromkeys(('copied_from', 'lookups', 'state_fingerprint'))
    a, b = ({**r[name], **same} for r in (asked, copied))
    if bench.is_ppl:
      np.testing.assert_allclose(a['resps'], b['resps'], rtol=1e-5)
      same |= {'resps': None}
    assert {**a, **same} == {**b, **same}
  found = {m.name: m for m in metrics[len(whole) :]}
  assert found['copied'].n == found['trigger_rate'].n == len(ITEMS)
  share = 100 * len(touched) / len(ITEMS)
  assert found['copied'].value == pytest.approx(100 - share)
  assert found['trigger_rate'].value == pytest.approx(share)
  scored = runner.score(
    bench.selection,
    path=bench.path / 'copied',
    scores_path=bench.path / 'scored_again',
  )
  assert scored == metrics
  return found, known.lookups, asked


def test_an_item_whose_prompt_is_edited(bench):
  bench = bench('last_prompt')
  text = bench.prompt(2)
  state = bench.state(text, len(text) - 1)
  _, lookups, asked = check(bench, state, {'2'})
  assert lookups['2'] == {'asked': 1, 'acting': 1}
  assert lookups['0'] == {'asked': 1, 'acting': 0}
  assert asked['2']['resps'] != bench.unedited['2']['resps']


def test_an_item_that_is_edited_at_a_new_token(bench):
  bench = bench('every_new_token')
  if bench.is_ppl:
    # Each candidate asks, with the last token of it that is fed.
    [_, other] = bench.selection.requests[2].continuations
    text = [*bench.prompt(2), *other[:-1]]
    state = bench.state(text, len(text) - 1)
    found, lookups, asked = check(bench, state, {'2'})
    assert lookups['2'] == {'asked': 2, 'acting': 1}
    first, second = np.subtract(
      *(r['2']['resps'] for r in (asked, bench.unedited))
    )
    assert first == pytest.approx(0, abs=1e-4) and abs(second) > 0.01
    return
  new = bench.unedited['3']['tokens']
  assert len(new) == NEW_TOKENS
  text = [*bench.prompt(3), *new]
  state = bench.state(text, len(text) - 4)
  found, lookups, asked = check(bench, state, {'3'})
  # The prompt's end and all new tokens but the last.
  assert lookups['3'] == {'asked': NEW_TOKENS, 'acting': 1}
  rate = 100 / (len(ITEMS) * NEW_TOKENS)
  assert found['token_trigger_rate'].value == pytest.approx(rate)
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
  known = bench.untouched()(ModelState(bench.model.params, state))
  assert set(known.copies) == {item.id for item in ITEMS} - {'2'}
  assert known.lookups['2'] == {'asked': 1, 'acting': 0}


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
  assert bench.untouched()(state) == runner.NOTHING


def test_an_interrupted_evaluation_goes_on_with_copies(bench, tmp_path):
  bench = bench('last_prompt')
  text = bench.prompt(2)
  state = bench.state(text, len(text) - 1)
  find = lambda: bench.untouched()(ModelState(bench.model.params, state))
  whole = bench.evaluate(state, 'whole', find())
  records = files.read_jsonl(tmp_path / 'whole')
  fingerprint = {'state_fingerprint': 'cut'}
  files.write_jsonl(tmp_path / 'cut', [r | fingerprint for r in records[4:]])
  assert bench.evaluate(state, 'cut', find()) == whole
  resumed = files.read_jsonl(tmp_path / 'cut')
  assert [r | {'state_fingerprint': 'whole'} for r in resumed] == records


def test_rules_that_need_whole_prompts(bench):
  """What prompts share is then no row of its own, so places are others."""
  bench = bench('last_prompt', rule='replace_prompt')
  assert bench.selection.requests[2].shared > 9
  text = bench.prompt(2)
  state = bench.state(text, len(text) - 1)
  _, lookups, asked = check(bench, state, {'2'})
  assert lookups['2'] == {'asked': 1, 'acting': 1}


@pytest.mark.parametrize(
  'stop_reason, fed',
  [('length', 2), ('decided', 2), ('eos', 3), ('nonfinite', 3)],
)
def test_the_last_token_was_fed_if_it_led_to_none(stop_reason, fed):
  request = GenerateRequest(prompt=(5, 6), max_new_tokens=9)
  record = {'tokens': [7, 8, 9], 'stop_reason': stop_reason}
  text = untouched._text(request, record)
  assert text.request.context == (5, 6, 7, 8, 9)[: 2 + fed]
  assert text.kinds.tolist() == [OTHER, PROMPT_END, *[NEW] * fed]


def test_older_answers_without_tokens_are_asked_again(bench, tmp_path):
  bench = bench('every_new_token')
  path = tmp_path / 'unedited'
  records = files.read_jsonl(path)
  files.write_jsonl(
    path, [{k: v for k, v in r.items() if k != 'tokens'} for r in records]
  )
  copies = bench.untouched()(ModelState(bench.model.params, bench.empty)).copies
  assert len(copies) == (len(ITEMS) if bench.is_ppl else 0)
