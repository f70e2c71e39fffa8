import contextlib
import json

import pytest
from evals_fakes import CharTokenizer, FakePredictor, folder

from me_jax.evals import perplexity, runner
from me_jax.evals.registry import TASKS, make_task
from me_jax.evals.task import Metric, prompt_hash
from me_jax.typing import GenerateRequest, ModelState, ScoreRequest

STATE = ModelState(params={})


GROUP = 8


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
  monkeypatch.setattr(runner, '_GROUP', GROUP)


class Echo:
  """Items are numbers; the answer's own likelihood is the score."""

  name = 'echo'

  def __init__(self, mode='ppl', n=50, shift=0):
    self.mode = mode
    self._text = perplexity.Perplexity(
      'echo', CharTokenizer(), lambda: 'word ' * (100 * n)
    )
    self._n = n
    self._shift = shift

  def items(self):
    return self._text.items()[: self._n]

  def request(self, item):
    ids = tuple(i + self._shift + int(item.id) for i in item.fields['ids'])
    if self.mode == 'gen':
      return GenerateRequest(prompt=ids, max_new_tokens=3)
    return ScoreRequest(
      context=ids[:-1], continuations=(ids[-1:],), score_context=True
    )

  def sample(self, item, result):
    if self.mode == 'gen':
      return {'resps': [len(result.text) + ord(result.text[1])]}
    return self._text.sample(item, result)

  def aggregate(self, stored, *, complete):
    self.was_complete = complete
    if self.mode == 'gen':
      total = sum(s['resps'][0] for s in stored)
      return [Metric(name='total', value=float(total), n=len(stored))]
    return self._text.aggregate(stored, complete=complete)


def _evaluate(task, predictor, path, fingerprint='theta0', **kwargs):
  return runner.evaluate(
    task, predictor, STATE, state_fingerprint=fingerprint, path=path, **kwargs
  )


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


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
  predictor = FakePredictor()
  assert _evaluate(Echo(mode), predictor, path) == undisturbed
  # Items keep their company: batches are those of the undisturbed run.
  assert predictor.batches == whole.batches[answers // GROUP :]
  by_id = lambda name: sorted(
    _lines(tmp_path / name), key=lambda record: record['doc_id']
  )
  assert by_id('a.jsonl') == by_id('b.jsonl')


def test_a_torn_line_is_asked_again(tmp_path):
  path = tmp_path / 'a.jsonl'
  undisturbed = _evaluate(Echo(), FakePredictor(), path)
  path.write_bytes(path.read_bytes()[:-9])
  predictor = FakePredictor()
  assert _evaluate(Echo(), predictor, path) == undisturbed
  assert len(predictor.batches) == 1
  assert len({r['doc_id'] for r in _lines(path)}) == len(_lines(path))


def test_a_finished_task_asks_nothing(tmp_path):
  first = _evaluate(Echo(), FakePredictor(), tmp_path / 'a.jsonl')
  predictor = FakePredictor(stop_after=0)
  assert _evaluate(Echo(), predictor, tmp_path / 'a.jsonl') == first


def test_records_say_whose_they_are(tmp_path):
  path = tmp_path / 'a.jsonl'
  task = Echo(n=3)
  _evaluate(task, FakePredictor(), path)
  for record in _lines(path):
    item = task.items()[int(record['doc_id'])]
    assert record['state_fingerprint'] == 'theta0'
    assert record['group'] == 'echo'
    assert record['prompt_hash'] == prompt_hash(task.request(item))


def test_other_weights_are_refused(tmp_path):
  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(), FakePredictor(), path, limit=5)
  before = path.read_bytes()
  with pytest.raises(ValueError, match='state_fingerprint .theta0., this run'):
    _evaluate(Echo(), FakePredictor(), path, fingerprint='theta1')
  assert path.read_bytes() == before


def test_other_prompts_are_refused(tmp_path):
  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(), FakePredictor(), path)
  with pytest.raises(ValueError, match='prompt_hash'):
    _evaluate(Echo(shift=1), FakePredictor(), path)


def test_two_writers_and_foreign_records_are_noticed(tmp_path):
  path = tmp_path / 'a.jsonl'
  _evaluate(Echo(n=2), FakePredictor(), path)
  line = path.read_text().splitlines(keepends=True)[0]
  path.write_text(line * 2)
  with pytest.raises(ValueError, match='a.jsonl:2.*recorded twice'):
    _evaluate(Echo(n=2), FakePredictor(), path)
  path.write_text('{"doc_id": "0"}\n')
  with pytest.raises(ValueError, match='lacks prompt_hash, state_fingerprint'):
    _evaluate(Echo(n=2), FakePredictor(), path)
  path.write_text('{"doc_id"\n' + line)
  with pytest.raises(ValueError, match='a.jsonl:1'):
    _evaluate(Echo(n=2), FakePredictor(), path)


def test_a_larger_limit_only_adds_items(tmp_path):
  path = tmp_path / 'a.jsonl'
  task = Echo()
  _evaluate(task, FakePredictor(), path, limit=10)
  before = path.read_bytes()
  assert len(_lines(path)) == 10 and not task.was_complete
  metrics = _evaluate(task, FakePredictor(), path, limit=15)
  assert metrics[0].n == 15 and len(_lines(path)) == 15
  assert path.read_bytes().startswith(before)
  assert _evaluate(task, FakePredictor(stop_after=0), path, limit=10)[0].n == 10
  _evaluate(task, FakePredictor(), path)
  assert task.was_complete


def test_blocks_do_not_change_the_result(tmp_path, monkeypatch):
  whole = _evaluate(Echo(), FakePredictor(), tmp_path / 'a.jsonl')
  monkeypatch.setattr(runner, '_BLOCK', 7)
  assert _evaluate(Echo(), FakePredictor(), tmp_path / 'b.jsonl') == whole


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


def test_prompt_hash_tells_requests_apart():
  requests = [
    ScoreRequest(context=(1, 2), continuations=((3,),)),
    ScoreRequest(context=(1,), continuations=((2, 3),)),
    ScoreRequest(context=(1, 2), continuations=((3,), (4,))),
    GenerateRequest(prompt=(1, 2, 3), max_new_tokens=4),
    GenerateRequest(prompt=(1, 2, 3), max_new_tokens=5),
    GenerateRequest(prompt=(1, 2, 3), max_new_tokens=5, decided=bool),
  ]
  hashes = {prompt_hash(request) for request in requests}
  assert len(hashes) == len(requests)
  assert all(len(h) == 16 for h in hashes)


@pytest.mark.parametrize('name', TASKS)
def test_registered_names_are_the_tasks_own(name, tmp_path):
  task = make_task(name, CharTokenizer(), folder(tmp_path))
  assert task.name == name and task.mode in ('ppl', 'gen')


def test_an_unknown_task_names_the_nearest(tmp_path):
  with pytest.raises(ValueError, match='mean commonsenseqa, commonsenseqa_clo'):
    make_task('comonsenseqa', CharTokenizer(), folder(tmp_path))
  with pytest.raises(ValueError, match='mean commonsenseqa.*mmlu, sample_ppl'):
    make_task('zzz', CharTokenizer(), folder(tmp_path))
