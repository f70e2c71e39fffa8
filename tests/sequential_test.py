import dataclasses
import hashlib
import json
import math
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from evals_fakes import folder, task_context

from me_jax import checkpoints as checkpoints_lib
from me_jax import config as config_lib
from me_jax import generation, preemption, results, sequential, trees
from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.edits import rome
from me_jax.edits.edit import LowRank, apply_edit
from me_jax.edits.editor import Editor
from me_jax.evals import perplexity, runner
from me_jax.evals.unedited import UneditedAnswers
from me_jax.typing import GenerateResult, ModelState, ScoreResult
from me_jax.workdir import Workdir

PATH = 'layers/1/mlp/down_proj/kernel'
FACTS = 4


def _requests(n=FACTS):
  """Facts whose texts are of one length."""
  return [
    EditRequest(
      case_id=f'case-{i}',
      subject=f'Subject {i}',
      prompt='{} is in',
      target_new=f'Rome{i}',
      rephrase_prompts=(f'Where is Subject {i}?',),
      locality_prompts=(LocalityPrompt(prompt=f'Who is {i}?', answer='Ann'),),
    )
    for i in range(n)
  ]


def _rng(*parts):
  digest = hashlib.sha256(repr(parts).encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], 'little'))


def _kernel_bytes(params):
  return np.asarray(trees.get(params, PATH)).tobytes()


class CountingEditor:
  """Its edits depend on every bit of the kernel that they change."""

  def __init__(self, scale=1e-3, bad_from=math.inf):
    self.cases = []
    self._scale, self._bad_from = scale, bad_from

  def _edit(self, params, state, requests):
    cases = [r.case_id for r in requests]
    rng = _rng(_kernel_bytes(params), cases)
    shape = trees.get(params, PATH).shape
    bad = len(self.cases) + len(cases) >= self._bad_from
    scale = self._scale if bad or self._bad_from == math.inf else 1e-3
    draw = lambda *s: jnp.asarray(rng.normal(size=s) * scale, jnp.float32)
    rank = len(cases)
    edit = {PATH: LowRank(draw(shape[0], rank), draw(rank, shape[1]))}
    self.cases += cases
    return edit, state, [{'case_id': case, 'loss': 0.5} for case in cases]

  def bound(self):
    return Editor(
      init=lambda params: None,
      edit=self._edit,
      interventions=lambda state: {},
      edited_paths=(PATH,),
    )


class Interrupted(Exception):
  pass


class CountingPredictor:
  """Pseudo-random answers that depend on every bit of the kernel."""

  def __init__(self, stop_after=math.inf, told_after=math.inf):
    self.asked = 0
    self._stop_after, self._told_after = stop_after, told_after

  def _answer_rng(self, state, request):
    if self.asked >= self._stop_after:
      raise Interrupted
    self.asked += 1
    if self.asked == self._told_after:
      signal.raise_signal(signal.SIGTERM)
    return _rng(_kernel_bytes(state.params), request)

  def score(self, state, requests):
    for index in reversed(range(len(requests))):
      request = requests[index]
      rng = self._answer_rng(state, request)
      draw = lambda n, rng=rng: -rng.exponential(size=n).astype(np.float32)
      greedy = [
        np.where(rng.random(len(c)) < 0.5, c, 0).astype(np.int32)
        for c in request.continuations
      ]
      yield (
        index,
        ScoreResult(
          logprobs=tuple(draw(len(c)) for c in request.continuations),
          greedy=tuple(greedy),
          context_logprobs=draw(len(request.context) - 1)
          if request.score_context
          else None,
          context_length=len(request.context),
        ),
      )

  def generate(self, state, requests, *, skip=()):
    assert not skip
    for index in reversed(range(len(requests))):
      rng = self._answer_rng(state, requests[index])
      tokens = rng.integers(256, size=requests[index].max_new_tokens)
      yield (
        index,
        GenerateResult(
          tokens=tokens.astype(np.int32), text='', stop_reason='length'
        ),
      )


def _config(**changes):
  values = dict(
    model=config_lib.ModelSource(name='tiny'),
    method=config_lib.RomeConfig(
      layer=1, mom2_adjustment=False, v_num_grad_steps=2
    ),
    facts=config_lib.FactsConfig(name='sample'),
    second_moment=config_lib.SecondMomentConfig(),
    num_edits=FACTS,
    eval_steps=(0, 1, FACTS),
  )
  return config_lib.RunConfig(**{**values, **changes})


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
  monkeypatch.setattr(runner, '_GROUP', 4)


@pytest.fixture
def job(tiny, tmp_path):
  """A function that makes a run in a directory of that name."""
  text = 'Plain words, one after another. ' * 160  # 10 windows

  def make(name='run', editor=None, predictor=None, n=FACTS, **changes):
    return sequential.Run(
      config=_config(num_edits=n, **changes),
      workdir=Workdir(tmp_path / name),
      model=tiny,
      editor=(editor or CountingEditor()).bound(),
      predictor=predictor or CountingPredictor(),
      requests=_requests(n),
      tasks=[
        perplexity.Perplexity(
          name='words',
          context=task_context(folder(None), tiny.tokenizer),
          read=lambda: text,
        )
      ],
      probe=text,
    )

  return make


def _records(job):
  checkpoints = checkpoints_lib.Checkpoints(
    job.workdir.checkpoints, job.model.fingerprint
  )
  records = [step.record for step in checkpoints]
  checkpoints.close()
  return records


def _content(job):
  """All that a run left, but for times; lines of the triangle in any order."""
  texts = lambda pattern: {
    str(path.relative_to(job.workdir.path)): path.read_text()
    for path in sorted(job.workdir.path.glob(pattern))
  }
  return {
    'edits': [
      {**record, 'seconds': None, 'commit': None} for record in _records(job)
    ],
    'rows': [
      {**dataclasses.asdict(row), 'run': ''}
      for row in results.read_rows(job.workdir.results)
    ],
    'triangle': sorted(job.workdir.triangle.read_text().splitlines()),
    'samples': texts('samples/*/*.jsonl'),
    'scores': texts('scores/*/*.jsonl'),
  }


def test_the_unedited_model_is_asked_once_for_all_runs(job, tmp_path):
  shared = UneditedAnswers(tmp_path / 'shared', job().model.fingerprint)
  counts, contents = [], []
  for name, unedited in (('alone', None), ('a', shared), ('b', shared)):
    run = job(name, eval_steps=(0,))
    run.unedited = unedited
    sequential.run(run)
    counts.append(run.predictor.asked)
    contents.append(_content(run))
  # The text has ten windows.
  assert counts[0] == counts[1] == counts[2] + 10
  assert contents[0] == contents[1] == contents[2]
  # Of another name, of other arrays, or asked otherwise: nothing is shared.
  other = job('other', eval_steps=(0,), limit=5)
  other.unedited = shared
  sequential.run(other)
  renamed = job('renamed', eval_steps=(0,))
  renamed.unedited = UneditedAnswers(tmp_path / 'shared', 'f' * 64)
  selection = runner.select(renamed.tasks[0])
  log = tmp_path / 'log.jsonl'
  renamed.unedited.fetch(selection, ModelState(other.model.params), log)
  assert not log.exists()
  assert len(list((tmp_path / 'shared' / 'words').iterdir())) == 2


def test_a_run_leaves_everything(job):
  run = job(eval_steps=(0, 1, 3))
  reports = []
  run.report = lambda rows: reports.append(len(rows))
  state = sequential.run(run)

  records = _records(run)
  assert [r['edit_step'] for r in records] == [1, 2, 3, 4]
  assert [r['requests'] for r in records] == [
    [request.to_json()] for request in run.requests
  ]
  assert [r['info'][0]['case_id'] for r in records] == [
    f'case-{i}' for i in range(4)
  ]
  assert all(r['seconds'] > 0 for r in records)
  checkpoints = checkpoints_lib.Checkpoints(
    run.workdir.checkpoints, run.model.fingerprint
  )
  replayed = checkpoints.replay(run.model.params)
  checkpoints.close()
  assert _kernel_bytes(replayed) == _kernel_bytes(state.params)

  triangle = [
    json.loads(line) for line in run.workdir.triangle.read_text().splitlines()
  ]
  # All facts before any edit, all so far where measured, else the new one.
  assert [(r['edit_step'], r['fact']) for r in triangle] == [
    *((0, fact) for fact in range(4)),
    (1, 0),
    (2, 1),
    *((3, fact) for fact in range(3)),
    (4, 3),
  ]
  assert {r['case_id'] for r in triangle if r['fact'] == 2} == {'case-2'}

  rows = results.read_rows(run.workdir.results)
  assert {(r.run, r.method, r.model) for r in rows} == {('run', 'rome', 'tiny')}
  assert {(r.edit_step, r.num_edits, r.task) for r in rows} == {
    (step, step, task) for step in (0, 1, 3) for task in ('edit', 'words')
  }
  keys = [(r.edit_step, r.task, r.metric) for r in rows]
  assert len(set(keys)) == len(keys)
  by_key = dict(zip(keys, rows, strict=True))
  assert by_key[0, 'edit', 'unedited_reliability'].n == 4
  assert by_key[3, 'edit', 'sequential_reliability'].n == 3
  cells = {(r['edit_step'], r['fact']): r['scores'] for r in triangle}
  individual = np.mean([cells[i + 1, i]['rewrite_token'] for i in range(3)])
  assert by_key[3, 'edit', 'individual_reliability'].value == pytest.approx(
    100 * individual, abs=1e-9
  )
  for step in (0, 1, 3):
    for place in (run.workdir.samples, run.workdir.scores):
      lines = place('words', step).read_text().splitlines()
      assert len(lines) == by_key[step, 'words', 'ppl'].n == 10
  assert reports == [
    sum(r.edit_step <= step for r in rows) for step in (0, 1, 3)
  ]


def test_a_finished_run_does_nothing_again(job):
  first = job()
  state = sequential.run(first)
  before = _content(first)
  editor, predictor = CountingEditor(), CountingPredictor()
  del first
  again = job(editor=editor, predictor=predictor)
  reports = []
  again.report = reports.append
  resumed = sequential.run(again)
  assert editor.cases == [] and predictor.asked == 0
  assert _content(again) == before
  assert _kernel_bytes(resumed.params) == _kernel_bytes(state.params)
  assert len(reports[-1]) == len(before['rows'])


# Enough answers to finish one piece of work each time: scoring all facts
# asks 24 times.
@pytest.mark.parametrize('budget', [25, 30, 41])
def test_interrupted_again_and_again(job, budget):
  whole = job('whole')
  sequential.run(whole)
  cases, interruptions = [], 0
  while interruptions < 50:
    editor = CountingEditor()
    part = job('part', editor, CountingPredictor(stop_after=budget))
    try:
      sequential.run(part)
      break
    except Interrupted:
      cases += editor.cases
      interruptions += 1
      part.workdir._lock.close()
  assert interruptions >= 2
  # No edit was made twice.
  assert [*cases, *editor.cases] == [f'case-{i}' for i in range(4)]
  assert _content(part) == _content(whole)


@pytest.fixture
def listening(monkeypatch):
  """SIGTERM stops a run at the next safe place."""
  monkeypatch.setattr(preemption, '_told', threading.Event())
  before = signal.getsignal(signal.SIGTERM)
  preemption.listen()
  yield
  signal.signal(signal.SIGTERM, before)


# Among the facts, which are then all scored, and at the third of ten windows.
@pytest.mark.parametrize('told, asked', [(5, 25), (27, 27)])
def test_told_to_stop(job, listening, told, asked):
  whole = job('whole')
  sequential.run(whole)
  predictor = CountingPredictor(told_after=told)
  part = job('part', predictor=predictor)
  with pytest.raises(SystemExit) as stopped:
    sequential.run(part)
  assert stopped.value.code == 128 + signal.SIGTERM
  assert predictor.asked == asked
  log = part.workdir.samples('words', 0)
  assert len(log.read_text().splitlines()) == asked - 24
  part.workdir._lock.close()
  preemption._told.clear()
  sequential.run(job('part'))
  assert _content(part) == _content(whole)


@pytest.mark.parametrize('saved', [False, True])
def test_interrupted_around_a_checkpoint(job, monkeypatch, saved):
  whole = job('whole')
  sequential.run(whole)
  save = checkpoints_lib.Checkpoints.save

  def fail(checkpoints, step, *content):
    if saved:
      save(checkpoints, step, *content)
    if step == 2:
      raise Interrupted
    if not saved:
      save(checkpoints, step, *content)

  monkeypatch.setattr(checkpoints_lib.Checkpoints, 'save', fail)
  part = job('part')
  with pytest.raises(Interrupted):
    sequential.run(part)
  part.workdir._lock.close()
  monkeypatch.undo()
  monkeypatch.setattr(runner, '_GROUP', 4)
  editor = CountingEditor()
  part = job('part', editor)
  sequential.run(part)
  made = ('case-2', 'case-3') if saved else ('case-1', 'case-2', 'case-3')
  assert tuple(editor.cases) == made
  assert _content(part) == _content(whole)


@pytest.mark.parametrize('share', [0.0, 0.2, 0.5, 0.77, 0.99])
@pytest.mark.parametrize('log', ['results', 'triangle'])
def test_logs_cut_anywhere_are_completed(job, log, share):
  run = job()
  sequential.run(run)
  before = _content(run)
  path = getattr(run.workdir, log)
  content = path.read_bytes()
  path.write_bytes(content[: int(share * len(content))])
  editor = CountingEditor()
  run.editor = editor.bound()
  sequential.run(run)
  assert editor.cases == []
  assert _content(run) == before


def test_a_cut_sample_log_is_completed(job):
  run = job()
  sequential.run(run)
  before = _content(run)
  # Rows are written after the samples: what is missing there is missing here.
  path = run.workdir.samples('words', 4)
  path.write_bytes(path.read_bytes()[:300])
  rows = run.workdir.results.read_text().splitlines(keepends=True)
  kept = [r for r in rows if '"words"' not in r or '"edit_step": 4' not in r]
  assert len(kept) == len(rows) - 2
  run.workdir.results.write_text(''.join(kept))
  sequential.run(run)
  assert _content(run) == before


def test_several_facts_in_one_step(job):
  editor = CountingEditor()
  run = job(editor=editor, n=5, edit_batch_size=2, eval_steps=(0, 4, 5))
  sequential.run(run)
  assert [
    [request['case_id'] for request in record['requests']]
    for record in _records(run)
  ] == [['case-0', 'case-1'], ['case-2', 'case-3'], ['case-4']]
  rows = results.read_rows(run.workdir.results)
  assert sorted({(r.edit_step, r.num_edits) for r in rows}) == [
    (0, 0),
    (2, 4),
    (3, 5),
  ]
  [last] = [
    r for r in rows if r.edit_step == 3 and r.metric == 'individual_reliability'
  ]
  assert last.n == 5
  triangle = [
    json.loads(line) for line in run.workdir.triangle.read_text().splitlines()
  ]
  assert [r['fact'] for r in triangle if r['edit_step'] == 1] == [0, 1]


@pytest.mark.parametrize(
  'changes, steps',
  [
    ({'eval_steps': (0, 4, 1, 1)}, [0, 1, 4]),
    ({'eval_steps': ()}, []),
    ({'eval_steps': (0, 2, 4), 'edit_batch_size': 2}, [0, 1, 2]),
    ({'eval_steps': (3, 4), 'edit_batch_size': 3}, [1, 2]),
    ({'eval_steps': (4,), 'edit_batch_size': 10}, [1]),
  ],
)
def test_eval_steps(changes, steps):
  assert sequential.eval_steps(_config(**changes)) == steps


@pytest.mark.parametrize(
  'changes',
  [
    {'eval_steps': (0, 5)},
    {'eval_steps': (-1,)},
    {'eval_steps': (0, 1), 'edit_batch_size': 2},
  ],
)
def test_eval_steps_out_of_place(changes):
  with pytest.raises(ValueError, match='num_edits = 4, in multiples of'):
    sequential.eval_steps(_config(**changes))


def test_facts_of_another_run_are_refused(job):
  run = job(eval_steps=())
  sequential.run(run)
  run.requests = run.requests[::-1]
  with pytest.raises(ValueError, match=r"wrote \['case-0'\].*\['case-3'\]"):
    sequential.run(run)


def test_scores_of_another_model_are_refused(job):
  run = job(eval_steps=(0, 1, 2))
  sequential.run(run)
  lines = run.workdir.triangle.read_text().replace(run.model.fingerprint, 'fff')
  run.workdir.triangle.write_text(lines)
  with pytest.raises(ValueError, match='another model after edit step 0'):
    sequential.run(run)


def test_rows_of_another_model_are_refused(job):
  run = job(eval_steps=(0, 1, 2))
  sequential.run(run)
  name = _records(run)[0]['state_fingerprint']
  lines = run.workdir.results.read_text().replace(name, 'fff')
  run.workdir.results.write_text(lines)
  with pytest.raises(ValueError, match='another model after edit step 1'):
    sequential.run(run)


@pytest.mark.parametrize('scale', [math.nan, 1e30])
def test_an_edit_that_is_not_finite_is_not_saved(job, scale):
  run = job(editor=CountingEditor(scale, bad_from=2), eval_steps=(0, 4))
  with pytest.raises(FloatingPointError, match='not finite.*not saved'):
    sequential.run(run)
  assert len(_records(run)) == 1
  rows = results.read_rows(run.workdir.results)
  assert {r.edit_step for r in rows} == {0}


@pytest.fixture(scope='module')
def traced(tiny):
  """The real predictor, and the names of what it compiled."""
  traces = []
  predictor = generation.LlamaPredictor(
    tiny.config, tiny.tokenizer, max_batch=1, on_trace=traces.append
  )
  return predictor, traces


@pytest.mark.parametrize('stop', [True, False])
def test_a_collapsed_model_is_measured_and_left(job, traced, caplog, stop):
  # Finite, but far beyond what a forward pass gives back as words.
  editor = CountingEditor(scale=1e4, bad_from=2)
  run = job(
    f'run_{stop}', editor, traced[0], stop_on_collapse=stop, eval_steps=(0, 4)
  )
  run.tasks = []
  # A model that repeats itself, and a text that does: better than guessing.
  table = trees.get(run.model.params, 'embed_tokens/embedding')
  params = trees.set_leaf(run.model.params, 'lm_head/kernel', 8 * table.T)
  params = trees.set_leaf(params, 'embed_tokens/embedding', 100 * table)
  run.model = dataclasses.replace(run.model, params=params)
  run.probe = 'a' * 300
  sequential.run(run)
  measured = {r.edit_step for r in results.read_rows(run.workdir.results)}
  if not stop:
    assert editor.cases == [f'case-{i}' for i in range(4)]
    assert measured == {0, 4}
    return
  assert editor.cases == ['case-0', 'case-1']
  assert measured == {0, 2}
  assert 'has collapsed after edit step 2' in caplog.text
  before = _content(run)
  editor = CountingEditor()
  run.editor = editor.bound()
  sequential.run(run)
  assert editor.cases == [] and _content(run) == before


def test_rome_on_the_real_forward_pass(job, traced, tiny):
  predictor, traces = traced
  run = job(predictor=predictor, eval_steps=(0, 1, 2, 3), n=3)
  run.tasks = []
  run.editor = rome.rome(
    run.config.method,
    tiny.config,
    tiny.tokenizer,
    templates=('{}', 'Then. {}'),
    factor=None,
  )
  counts = []
  run.report = lambda rows: counts.append(len(traces))
  state = sequential.run(run)
  # All shapes were there before the first edit; no edit compiles anything.
  assert len(counts) == 4 and counts[0] > 0 and len(set(counts)) == 1

  checkpoints = checkpoints_lib.Checkpoints(
    run.workdir.checkpoints, tiny.fingerprint
  )
  params = tiny.params
  for step in checkpoints:
    assert list(step.edit) == [PATH]
    assert step.record['info'][0]['steps'][0]['loss'] > 0
    params = apply_edit(params, step.edit)
  checkpoints.close()
  assert _kernel_bytes(params) == _kernel_bytes(state.params)
  assert _kernel_bytes(params) != _kernel_bytes(tiny.params)
  [after] = [
    r.value
    for r in results.read_rows(run.workdir.results)
    if (r.edit_step, r.metric) == (3, 'sequential_locality_agreement')
  ]
  assert 0 <= after <= 100
