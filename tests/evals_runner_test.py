import contextlib
import dataclasses
import json
import random

import jax.numpy as jnp
import numpy as np
import pytest
from evals_fakes import FakePredictor, folder, task_context

from me_jax.evals import letters, perplexity, runner
from me_jax.evals.generation_task import GenerationTask
from me_jax.evals.prompts import human
from me_jax.evals.task import (
  Item,
  Metric,
  decode_settings,
  fingerprint,
  prompt_hash,
)
from me_jax.typing import (
  GenerateRequest,
  GenerateResult,
  ModelState,
  ScoreRequest,
)

STATE = ModelState(params={})
GROUP = 8
N = 50


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
  monkeypatch.setattr(runner, '_GROUP', GROUP)


class Echo:
  """Items are windows of a text; the answer's own likelihood is the score, or
  the letter that was written."""

  name = 'echo'

  def __init__(
    self,
    mode='ppl',
    n=N,
    shift=0,
    max_new_tokens=3,
    decided=None,
    version='1',
  ):
    self.mode = mode
    self.context = task_context(folder(None))
    self.version = version
    self._text = perplexity.Perplexity(
      name='echo',
      context=self.context,
      read=lambda: 'word ' * (103 * n),
    )
    self._n = n
    self._shift = shift
    self._max_new_tokens = max_new_tokens
    self._decided = decided

  def items(self):
    return self._text.items()[: self._n]

  def request(self, item):
    ids = tuple(i + self._shift + int(item.id) for i in item.fields['ids'])
    if self.mode == 'gen':
      return GenerateRequest(
        prompt=ids, max_new_tokens=self._max_new_tokens, decided=self._decided
      )
    return ScoreRequest(
      context=ids[:-1], continuations=(ids[-1:],), score_context=True
    )

  def answer(self, item, result):
    if self.mode == 'gen':
      return {'resps': [result.text], 'nonfinite': False}
    if result.context_logprobs is None:
      nothing = np.zeros(0, np.float32)
      result = dataclasses.replace(result, context_logprobs=nothing)
    return self._text.answer(item, result)

  def score(self, item, answer):
    if self.mode == 'gen':
      value = int(item.id) % 3 + ord(answer['resps'][0][1])
      return {'filtered_resps': {}, 'metrics': {'sum': value}}
    return self._text.score(item, answer)

  def is_cut_short(self, item, answer):
    return False

  def aggregate(self, samples, *, complete):
    self.was_complete = complete
    if self.mode == 'gen':
      total = sum(s['metrics']['sum'] for s in samples)
      return [Metric(name='total', value=float(total), n=len(samples))]
    return self._text.aggregate(samples, complete=complete)


def _places(path):
  return {'path': path, 'scores_path': path.with_suffix('.scores')}


def _evaluate(
  task,
  predictor,
  path,
  weights='theta0',
  limit=None,
  shares=True,
  state=STATE,
  **kwargs,
):
  selection = runner.select(task, limit=limit, shares_prefixes=shares)
  return runner.evaluate(
    selection,
    predictor,
    state,
    state_fingerprint=weights,
    **_places(path),
    **kwargs,
  )


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _files(path):
  """The bytes of the log and of its scores."""
  return [p.read_bytes() for p in _places(path).values()]


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
@pytest.mark.parametrize('answers', [0, 1, 16, 33])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, mode, answers):
  whole = FakePredictor()
  undisturbed = _evaluate(Echo(mode), whole, tmp_path / 'a.jsonl')
  path = tmp_path / 'b.jsonl'
  with pytest.raises(KeyboardInterrupt):
    _evaluate(Echo(mode), FakePredictor(stop_after=answers), path)
  if answers:
    assert len(_lines(path)) == answers
  assert not path.with_suffix('.scores').exists()
  predictor = FakePredictor()
  assert _evaluate(Echo(mode), predictor, path) == undisturbed
  if mode == 'ppl':
    # Items keep their company: batches are those of the undisturbed run.
    assert predictor.batches == whole.batches[answers // GROUP :]
  assert _files(path) == _files(tmp_path / 'a.jsonl')


@pytest.mark.parametrize('seed', range(5))
def test_killed_again_and_again_no_item_is_asked_twice(tmp_path, seed):
  rng = random.Random(seed)
  undisturbed = _evaluate(Echo('gen'), FakePredictor(), tmp_path / 'a.jsonl')
  path, answered, kills = tmp_path / 'b.jsonl', [], 0
  while True:
    predictor = FakePredictor(stop_after=rng.randrange(25))
    try:
      found = _evaluate(Echo('gen'), predictor, path)
      break
    except KeyboardInterrupt:
      kills += 1
    finally:
      answered += predictor.answered
  assert kills > 1 and found == undisturbed
  task = Echo('gen')
  asked = [task.request(item).prompt for item in task.items()]
  assert sorted(r.prompt for r in answered) == sorted(asked)
  assert _files(path) == _files(tmp_path / 'a.jsonl')


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
@pytest.mark.parametrize('seed', range(5))
def test_a_log_that_ends_anywhere_is_completed(tmp_path, mode, seed):
  """As a kill leaves it, in the middle of a line and before the scores."""
  rng = random.Random(seed)
  undisturbed = _evaluate(Echo(mode), FakePredictor(), tmp_path / 'a.jsonl')
  path = tmp_path / 'b.jsonl'
  with pytest.raises(KeyboardInterrupt):
    _evaluate(Echo(mode), FakePredictor(stop_after=N - 3), path)
  content = path.read_bytes()
  content = content[: rng.randrange(1, len(content))]
  path.write_bytes(content)
  predictor = FakePredictor()
  assert _evaluate(Echo(mode), predictor, path) == undisturbed
  assert _files(path) == _files(tmp_path / 'a.jsonl')
  missing = N - content.count(b'\n')
  if mode == 'gen':
    assert predictor.asked == missing
  else:
    # Only groups that were not finished.
    assert missing <= predictor.asked < missing + GROUP


@pytest.mark.parametrize(('mode', 'at_most'), [('gen', 0), ('ppl', 15)])
def test_answers_are_on_the_disk_as_they_come(tmp_path, mode, at_most):
  path = tmp_path / 'a.jsonl'
  waiting = []

  class Watching(FakePredictor):
    def _count(self, request):
      there = len(_lines(path)) if path.exists() else 0
      waiting.append(self.asked - there)
      super()._count(request)

  _evaluate(Echo(mode), Watching(), path)
  assert len(waiting) == N and max(waiting) == at_most


def test_a_finished_task_asks_nothing(tmp_path):
  path = tmp_path / 'a.jsonl'
  first = _evaluate(Echo(), FakePredictor(), path)
  before = _files(path)
  predictor = FakePredictor(stop_after=0)
  assert _evaluate(Echo(), predictor, path) == first
  assert predictor.batches == [] and _files(path) == before


def test_records_say_whose_they_are(tmp_path):
  path = tmp_path / 'a.jsonl'
  task = Echo(n=3)
  _evaluate(task, FakePredictor(), path)
  items = task.items()
  assert [r['doc_id'] for r in _lines(path)] == [item.id for item in items]
  for item, record in zip(items, _lines(path), strict=True):
    assert record['state_fingerprint'] == 'theta0'
    assert record['group'] == 'echo' and record['version'] == '1'
    assert record['prompt_hash'] == prompt_hash(task.request(item))
    assert record['decode'] == {'score_context': True}
  scores = _lines(path.with_suffix('.scores'))
  for item, record, score in zip(items, _lines(path), scores, strict=True):
    names = ('doc_id', 'group', 'version', 'prompt_hash', 'state_fingerprint')
    expected = {name: record[name] for name in (*names, 'nonfinite')}
    expected['profile'] = 'oc-2023-12'
    assert score == {**expected, **task.score(item, record)}


@pytest.mark.parametrize(
  ('mode', 'weights', 'changes', 'message'),
  [
    ('ppl', 'theta1', {}, "state_fingerprint 'theta0', this run has 'theta1'"),
    ('gen', 'theta1', {}, "state_fingerprint 'theta0', this run has 'theta1'"),
    ('ppl', 'theta0', {'shift': 1}, 'was stored with prompt_hash'),
    ('gen', 'theta0', {'shift': 1}, 'was stored with prompt_hash'),
    ('gen', 'theta0', {'max_new_tokens': 4}, "decode .*'max_gen_toks': 3"),
    ('gen', 'theta0', {'decided': bool}, "decode .*'early_stop': False"),
    ('ppl', 'theta0', {'version': '2'}, "version '1', this run has '2'"),
    ('gen', 'theta0', {'version': '2'}, "version '1', this run has '2'"),
  ],
)
def test_answers_to_something_else_are_refused(
  tmp_path, mode, weights, changes, message
):
  """A cache hit across weights, prompts or settings is impossible: the run
  ends before the model is asked and before anything is written."""
  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(mode), FakePredictor(), path, limit=5)
  before = _files(path)
  predictor = FakePredictor()
  with pytest.raises(ValueError, match=message) as info:
    _evaluate(Echo(mode, **changes), predictor, path, weights)
  assert 'a.jsonl' in str(info.value)
  assert predictor.batches == [] and _files(path) == before


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
def test_other_weights_of_the_same_name_are_refused(tmp_path, mode):
  """Whatever fingerprint a caller gives them."""
  path = tmp_path / 'a.jsonl'
  first, second = (
    ModelState({'kernel': jnp.zeros((2, 3)).at[1, 1].set(x)}, editor=None)
    for x in (1.0, 1.0 + 1e-7)
  )
  _evaluate(Echo(mode), FakePredictor(), path, limit=5, state=first)
  before = _files(path)
  predictor = FakePredictor()
  with pytest.raises(ValueError, match="stored with state_checksum '"):
    _evaluate(Echo(mode), predictor, path, limit=5, state=second)
  assert predictor.batches == [] and _files(path) == before
  _evaluate(Echo(mode), predictor, path, limit=5, state=first)
  assert predictor.batches == []


def test_prompts_are_stored_if_asked_for(tmp_path):
  task = Echo('gen')
  selection = runner.select(task, limit=2, stores_prompts=True)
  path = tmp_path / 'a.jsonl'
  runner.evaluate(
    selection,
    FakePredictor(),
    STATE,
    state_fingerprint='theta0',
    path=path,
    scores_path=tmp_path / 'scores.jsonl',
  )
  decode = task.context.tokenizer.decode
  assert [r['arguments'] for r in _lines(path)] == [
    [decode(task.request(item).prompt)] for item in selection.items
  ]


def test_a_likelihood_without_its_context_is_refused(tmp_path):
  class Bare(Echo):
    def request(self, item):
      return dataclasses.replace(super().request(item), score_context=False)

  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(), FakePredictor(), path)
  with pytest.raises(ValueError, match="decode .'score_context': True"):
    _evaluate(Bare(), FakePredictor(), path)


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
@pytest.mark.parametrize(
  'field', ['state_fingerprint', 'prompt_hash', 'decode', 'version']
)
def test_one_foreign_record_among_many_is_refused(tmp_path, mode, field):
  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(mode), FakePredictor(), path)
  records = _lines(path)
  records[17][field] = 'another'
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  with pytest.raises(ValueError, match=f"'17' was stored with {field}"):
    _evaluate(Echo(mode), FakePredictor(stop_after=0), path)


def test_two_writers_and_foreign_records_are_noticed(tmp_path):
  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(n=2), FakePredictor(), path)
  line = path.read_text().splitlines(keepends=True)[0]
  path.write_text(line * 2)
  with pytest.raises(ValueError, match='a.jsonl:2.*recorded twice'):
    _evaluate(Echo(n=2), FakePredictor(), path)
  path.write_text('{"doc_id": "0"}\n')
  with pytest.raises(
    ValueError, match='lacks decode, prompt_hash, state_checksum, state_fin'
  ):
    _evaluate(Echo(n=2), FakePredictor(), path)
  path.write_text('{"doc_id"\n' + line)
  with pytest.raises(ValueError, match='a.jsonl:1'):
    _evaluate(Echo(n=2), FakePredictor(), path)


def test_a_larger_limit_only_adds_items(tmp_path):
  path = tmp_path / 'a.jsonl'
  task = Echo()
  _evaluate(task, FakePredictor(), path, limit=10)
  before = _lines(path)
  assert len(before) == 10 and not task.was_complete
  predictor = FakePredictor()
  metrics = _evaluate(task, predictor, path, limit=15)
  assert metrics[0].n == 15 and len(_lines(path)) == 15
  assert all(record in _lines(path) for record in before)
  assert len(_lines(path.with_suffix('.scores'))) == 15
  finished = FakePredictor(stop_after=0)
  assert _evaluate(task, finished, path, limit=10)[0].n == 10
  # What a smaller limit does not need is kept, but not scored.
  assert len(_lines(path)) == 15
  assert len(_lines(path.with_suffix('.scores'))) == 10
  _evaluate(task, FakePredictor(), path)
  assert task.was_complete and len(_lines(path)) == N


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
def test_groups_do_not_change_the_result(tmp_path, monkeypatch, mode):
  whole = _evaluate(Echo(mode), FakePredictor(), tmp_path / 'a.jsonl')
  monkeypatch.setattr(runner, '_GROUP', 7)
  other = tmp_path / 'b.jsonl'
  assert _evaluate(Echo(mode), FakePredictor(), other) == whole
  assert _files(other) == _files(tmp_path / 'a.jsonl')


class Shared(Echo):
  """Prompts of two kinds, the second of which goes on with the first's."""

  def request(self, item):
    prefix = (5,) * 40 if int(item.id) % 2 else (5,) * 20 + (6,) * 20
    ids = (*prefix, 100 + int(item.id), 7)
    if self.mode == 'gen':
      return GenerateRequest(prompt=ids, max_new_tokens=3)
    return ScoreRequest(
      context=ids, continuations=((8,),), score_context=int(item.id) < 10
    )


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
def test_what_prompts_have_in_common_is_computed_once(tmp_path, mode):
  plain, sharing = FakePredictor(), FakePredictor()
  task = Shared(mode)
  path = tmp_path / 'a.jsonl'
  metrics = _evaluate(task, plain, tmp_path / 'b.jsonl', shares=False)
  assert _evaluate(task, sharing, path) == metrics
  # A shortcut leaves no trace in what is stored.
  assert _files(path) == _files(tmp_path / 'b.jsonl')
  assert {r.shared for b in plain.batches for r in b} == {0}
  for request in sharing.answered:
    whole = mode == 'ppl' and request.score_context
    assert request.shared == (0 if whole else 32)
  if mode == 'ppl':
    for batch in sharing.batches:
      assert len({r.context[: r.shared] for r in batch}) == 1
      assert len(batch) <= GROUP


def test_a_part_of_the_prompts_shares_what_all_share(tmp_path):
  """Whatever was done before: a likelihood must not depend on it."""
  path = tmp_path / 'a.jsonl'
  with pytest.raises(KeyboardInterrupt):
    _evaluate(Shared('gen'), FakePredictor(stop_after=N - 2), path)
  predictor = FakePredictor()
  _evaluate(Shared('gen'), predictor, path)
  assert [r.shared for r in predictor.answered] == [32, 32]


def test_requests_of_a_group_are_of_similar_length(tmp_path):
  class Uneven(Echo):
    def request(self, item):
      size = 2 + int(item.id) * 37 % 100
      return ScoreRequest(context=(1,) * size, continuations=((2,),))

  predictor = FakePredictor()
  _evaluate(Uneven(), predictor, tmp_path / 'a.jsonl', shares=False)
  sizes = [[len(r.context) for r in batch] for batch in predictor.batches]
  assert sum(sizes, []) == sorted(sum(sizes, []))
  assert [len(s) for s in sizes] == [GROUP] * (N // GROUP) + [N % GROUP]


def test_progress_counts_what_was_there(tmp_path):
  path = tmp_path / 'a.jsonl'
  task = Echo(n=6)
  seen = []
  _evaluate(task, FakePredictor(), path, limit=2)
  total = len(task.items())

  @contextlib.contextmanager
  def progress(count):
    assert count == total
    yield seen.append
    seen.append('closed')

  _evaluate(task, FakePredictor(), path, progress=progress)
  assert seen == [*range(2, total + 1), 'closed']


def test_an_answer_that_cannot_be_scored_ends_the_run(tmp_path):
  class Broken(Echo):
    def score(self, item, answer):
      if item.id == '3':
        raise RuntimeError('no verdict')
      return super().score(item, answer)

  path = tmp_path / 'a.jsonl'
  with pytest.raises(RuntimeError, match='no verdict'):
    _evaluate(Broken(), FakePredictor(), path)
  # The answers are there; only the scores are to be made again.
  assert len(_lines(path)) == N and not path.with_suffix('.scores').exists()
  _evaluate(Echo(), FakePredictor(stop_after=0), path)


@pytest.mark.parametrize('mode', ['ppl', 'gen'])
@pytest.mark.parametrize('limit', [None, 10])
def test_stored_answers_are_scored_without_a_model(tmp_path, mode, limit):
  path, again = tmp_path / 'a.jsonl', tmp_path / 'again.scores'
  metrics = _evaluate(Echo(mode), FakePredictor(), path, limit=limit)
  before = _files(path)
  selection = runner.select(Echo(mode), limit=limit)
  assert runner.score(selection, path=path, scores_path=again) == metrics
  assert again.read_bytes() == path.with_suffix('.scores').read_bytes()
  assert _files(path) == before


@pytest.mark.parametrize(
  ('mode', 'changes', 'message'),
  [
    ('ppl', {'shift': 1}, 'was stored with prompt_hash'),
    ('gen', {'shift': 1}, 'was stored with prompt_hash'),
    ('gen', {'max_new_tokens': 4}, "decode .*'max_gen_toks': 3"),
    ('ppl', {'version': '2'}, "version '1', this run has '2'"),
    ('gen', {'version': '2'}, "version '1', this run has '2'"),
  ],
)
def test_stored_answers_to_something_else_are_not_scored(
  tmp_path, mode, changes, message
):
  path, again = tmp_path / 'a.jsonl', tmp_path / 'again.scores'
  metrics = _evaluate(Echo(mode), FakePredictor(), path)
  other = runner.select(Echo(mode, **changes))
  with pytest.raises(ValueError, match=message):
    runner.score(other, path=path, scores_path=again)
  assert not again.exists()
  if mode == 'gen':
    # Whether an answer is whole is asked of the answer, not of the setting.
    other = runner.select(Echo(mode, decided=bool))
    assert runner.score(other, path=path, scores_path=again) == metrics


def test_missing_answers_are_counted_and_named(tmp_path):
  path = tmp_path / 'a.jsonl'
  with pytest.raises(KeyboardInterrupt):
    _evaluate(Echo('gen'), FakePredictor(stop_after=30), path)
  places = {'path': path, 'scores_path': tmp_path / 'scores'}
  with pytest.raises(ValueError, match=f"no answer to 20 of {N} items, '0'"):
    runner.score(runner.select(Echo('gen')), **places)
  with pytest.raises(ValueError, match='no answer to 50 of 50'):
    runner.score(
      runner.select(Echo('gen')),
      path=tmp_path / 'none',
      scores_path=tmp_path / 'scores',
    )
  assert not (tmp_path / 'scores').exists()


class Writer(FakePredictor):
  """Writes a text until it is decided, letter by letter."""

  def generate(self, state, requests, *, skip=()):
    for index, result in super().generate(state, requests, skip=skip):
      decided = requests[index].decided or (lambda text: False)
      text, reason = result.text, 'length'
      for end in range(len(text)):
        if decided(text[:end]):
          text, reason = text[:end], 'decided'
          break
      yield (
        index,
        GenerateResult(tokens=result.tokens, text=text, stop_reason=reason),
      )


def _choices(profile, *, stops=True, early_stop=True):
  return GenerationTask(
    name='choices',
    version='1',
    context=task_context(
      folder(None), profile=profile, is_chat=True, early_stop=early_stop
    ),
    docs=lambda: [
      Item(id=str(i), group='g', fields={'gold': 'C'}) for i in range(4)
    ],
    doc_to_turns=lambda item: [human(f'Question {item.id}?')],
    doc_to_target=lambda item: 'C',
    stop_when=letters.capital_decided('ABC') if stops else None,
    readings=letters.capital_readings('ABC', 'gold'),
  )


CUT = 'so [INST] what? [/INST] (C) of course'


@pytest.mark.parametrize(
  ('text', 'made', 'scored', 'stops', 'refused'),
  [
    # January 2024 cuts chat at the next instruction, December 2023 reads on.
    (CUT, 'oc-2024-01', 'oc-2023-12', True, True),
    (CUT, 'oc-2023-12', 'oc-2024-01', True, False),
    ('so (C) [INST] B!', 'oc-2024-01', 'oc-2023-12', True, False),
    ('so (C) [INST] B!', 'oc-2023-12', 'oc-2024-01', True, False),
    # One that must see everything.
    ('so (C) [INST] B!', 'oc-2023-12', 'oc-2024-01', False, True),
    ('no answer at all', 'oc-2023-12', 'oc-2024-01', False, False),
  ],
)
def test_answers_cut_short_are_not_scored_where_more_is_read(
  tmp_path, text, made, scored, stops, refused
):
  path = tmp_path / 'a.jsonl'
  _evaluate(_choices(made), Writer(text=text), path)
  other = _choices(scored, stops=stops)
  places = {'path': path, 'scores_path': tmp_path / 'again.scores'}
  if refused:
    with pytest.raises(ValueError, match='ended as soon as another profile'):
      runner.score(runner.select(other), **places)
    assert not (tmp_path / 'again.scores').exists()
    return
  found = runner.score(runner.select(other), **places)
  # As if the answers had been made for it, in full.
  full = _choices(scored, stops=stops, early_stop=False)
  assert found == _evaluate(full, Writer(text=text), tmp_path / 'b.jsonl')


def test_a_run_does_not_go_on_with_answers_cut_short(tmp_path):
  """Nor is anything asked, or written."""
  path = tmp_path / 'a.jsonl'
  _evaluate(_choices('oc-2024-01'), Writer(text=CUT), path, limit=2)
  before = _files(path)
  predictor = Writer(text=CUT)
  with pytest.raises(ValueError, match='ended as soon as another profile'):
    _evaluate(_choices('oc-2023-12'), predictor, path)
  assert predictor.batches == [] and _files(path) == before


@pytest.mark.parametrize('profile', ['oc-2023-12', 'oc-2024-01'])
@pytest.mark.parametrize(
  'text', [CUT, 'so (C) [INST] B!', 'no answer', 'The A', 'The A.']
)
def test_early_stop_changes_no_score(tmp_path, profile, text):
  early, full = tmp_path / 'early.jsonl', tmp_path / 'full.jsonl'
  metrics = _evaluate(_choices(profile), Writer(text=text), early)
  other = _choices(profile, early_stop=False)
  assert _evaluate(other, Writer(text=text), full) == metrics


def test_hash_and_settings_tell_requests_apart():
  requests = [
    ScoreRequest(context=(1, 2), continuations=((3,),)),
    ScoreRequest(context=(1,), continuations=((2, 3),)),
    ScoreRequest(context=(1, 2), continuations=((3,), (4,))),
    ScoreRequest(context=(1, 2), continuations=((3,),), score_context=True),
    GenerateRequest(prompt=(1, 2, 3), max_new_tokens=4),
    GenerateRequest(prompt=(1, 2, 3), max_new_tokens=5),
    GenerateRequest(prompt=(1, 2, 3), max_new_tokens=5, decided=bool),
    GenerateRequest(prompt=(1, 2), max_new_tokens=5),
  ]
  keys = {(prompt_hash(r), str(decode_settings(r))) for r in requests}
  assert len(keys) == len(requests)
  assert all(len(prompt_hash(r)) == 16 for r in requests)
  # What is only computed in another way is the same question.
  for request in requests:
    sharing = dataclasses.replace(request, shared=1)
    assert prompt_hash(sharing) == prompt_hash(request)
    assert decode_settings(sharing) == decode_settings(request)


def test_a_fingerprint_stands_for_data_prompts_and_settings():
  class Other(Echo):
    def items(self):
      first, *rest = super().items()
      return [*rest, dataclasses.replace(first, fields={'ids': (1, 2, 3)})]

  tasks = [
    Echo('gen'),
    Echo('gen', n=49),
    Echo('gen', shift=1),
    Echo('gen', max_new_tokens=4),
    Echo('gen', decided=bool),
    Other('gen'),
    Echo('ppl'),
  ]
  assert len({fingerprint(task) for task in tasks}) == len(tasks)
  assert fingerprint(Echo('gen')) == fingerprint(tasks[0])
