"""The programs that evaluate and score, on a random model of four layers."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import results
from me_jax.checkpoints import Checkpoints
from me_jax.edits.edit import LowRank
from me_jax.evals.mmlu_subjects import SUBJECTS
from me_jax.evals.registry import OFFICIAL_ITEMS, TASKS
from me_jax.models import load
from me_jax.workdir import Workdir

_REPO = pathlib.Path(__file__).resolve().parent.parent
_LIMIT = 5


def _question(i):
  choices = [{'label': x, 'text': f'{x.lower()}{i}'} for x in 'ABCDE']
  return {
    'id': f'id{i}',
    'answerKey': 'ABCDE'[i % 5],
    'question': {'stem': f'Q{i}?', 'choices': choices},
  }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Data, and a place for compiled functions that all tests share."""
  root = tmp_path_factory.mktemp('launch')
  for split, numbers in (('train', range(10)), ('dev', range(20, 32))):
    path = root / 'data' / 'commonsenseqa' / f'{split}_rand_split.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_question(i)) + '\n' for i in numbers]
    path.write_text(''.join(lines))
  (root / 'data' / 'wikitext').mkdir()
  text = ' = Title = \n' + ' Words of some text . \n' * 120
  (root / 'data' / 'wikitext' / 'wiki.test.raw').write_text(text)
  return root


@pytest.fixture(scope='module')
def start(root):
  """A function that starts a program."""
  unset = ('ME_JAX_DATA', 'ME_JAX_CACHE')
  env = {k: v for k, v in os.environ.items() if k not in unset}
  env |= {
    'JAX_PLATFORMS': 'cpu',
    # Compiling takes most of the time here.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'ME_JAX_CACHE': str(root / 'cache'),
    'HF_HUB_OFFLINE': '1',
  }

  def start(*args, program=('-m', 'launch.evaluate')):
    data = f'--data_root={root / "data"}'
    data = [] if any(a.startswith('--data_root') for a in args) else [data]
    return subprocess.Popen(
      [sys.executable, *program, *args, *data],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
      cwd=_REPO,
    )

  return start


@pytest.fixture(scope='module')
def evaluate(start):
  """A function that evaluates and returns what was printed."""

  def evaluate(
    workdir,
    *args,
    tasks='commonsenseqa,sample_ppl',
    model=True,
    limit=_LIMIT,
  ):
    return _finish(
      start(
        *args,
        *(['--model=tiny'] if model else []),
        f'--tasks={tasks}',
        f'--limit={limit}',
        f'--workdir={workdir}',
      )
    )

  return evaluate


@pytest.fixture
def score(start):
  """A function that scores stored answers and returns what was printed."""
  return lambda *args: _finish(
    start(*map(str, args), program=('-m', 'launch.score'))
  )


def _finish(process):
  out, err = process.communicate()
  assert process.returncode == 0, err
  return out


@pytest.fixture(scope='module')
def evaluated(evaluate, tmp_path_factory):
  """Workdir and output of an evaluation from beginning to end."""
  workdir = tmp_path_factory.mktemp('evaluated') / 'run'
  return workdir, evaluate(workdir)


@pytest.fixture
def copied(evaluated, tmp_path):
  """The workdir of that evaluation, to be written in."""
  return shutil.copytree(evaluated[0], tmp_path / 'run')


def _table(out):
  """The report, without what is printed after it."""
  return out[out.index('| task') :].partition('\n\nTook')[0].rstrip()


def _content(workdir, *names):
  """The bytes of files below these names."""
  paths = [workdir / name for name in names]
  paths += [path for place in paths for path in place.rglob('*.jsonl')]
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in paths
    if path.is_file()
  }


def _answers(workdir):
  return {path: path.stat().st_mtime_ns for path in workdir.glob('samples/*/*')}


def test_what_an_evaluation_prints_and_keeps(evaluated, tiny):
  workdir, out = evaluated
  assert f'Model: tiny, weights {tiny.fingerprint[:12]}' in out
  assert _table(out) == (workdir / 'report.md').read_text().rstrip()
  assert '\n| commonsenseqa | 0 | accuracy | ' in out
  assert ' | 5 of 1,221 |\n' in out and 'commonsenseqa (5 of 1,221).' in out
  assert 'lacks mmlu, mbpp, math, bbh, tydiqa, c3, axb after 0 edits.' in out
  assert str(workdir / 'results.jsonl') in out
  rows = results.read_rows(workdir / 'results.jsonl')
  assert [r.task for r in rows] == ['commonsenseqa'] * 9 + ['sample_ppl'] * 2
  assert rows[0].metric == 'accuracy' and rows[9].metric == 'ppl'
  for row in rows:
    assert (row.run, row.method, row.model) == ('run', 'unedited', 'tiny')
    assert (row.edit_step, row.num_edits, row.n) == (0, 0, _LIMIT)
    assert row.state == tiny.fingerprint
  for task in ('commonsenseqa', 'sample_ppl'):
    for kind in ('samples', 'scores'):
      path = workdir / kind / task / '000000.jsonl'
      records = [json.loads(line) for line in path.read_text().splitlines()]
      assert len({r['doc_id'] for r in records}) == _LIMIT
      assert {r['state_fingerprint'] for r in records} == {tiny.fingerprint}
  config = json.loads((workdir / 'config.json').read_text())
  assert config['identity']['config']['evals']['profile'] == 'oc-2023-12'
  assert config['identity']['weights'] == tiny.fingerprint


def test_the_same_again_asks_nothing(evaluate, copied, evaluated):
  names = ('samples', 'scores', 'results.jsonl', 'report.md', 'config.json')
  before, answers = _content(copied, *names), _answers(copied)
  assert _table(evaluate(copied)) == _table(evaluated[1])
  assert _content(copied, *names) == before
  # No answer was written, not even the same again.
  assert _answers(copied) == answers


def test_an_interrupted_evaluation_goes_on(evaluate, copied, evaluated):
  """As a kill leaves it: in the middle of an answer to the second task."""
  names = ('samples', 'scores', 'results.jsonl', 'report.md')
  before = _content(copied, *names)
  path = copied / 'samples' / 'sample_ppl' / '000000.jsonl'
  path.write_bytes(path.read_bytes()[:-300])  # one line and a part
  for name in ('scores/sample_ppl/000000.jsonl', 'report.md'):
    (copied / name).unlink()
  rows = (copied / 'results.jsonl').read_text().splitlines(keepends=True)
  (copied / 'results.jsonl').write_text(''.join(rows[:9]))
  first = copied / 'samples' / 'commonsenseqa' / '000000.jsonl'
  written = first.stat().st_mtime_ns
  assert _table(evaluate(copied)) == _table(evaluated[1])
  assert _content(copied, *names) == before
  assert first.stat().st_mtime_ns == written


def test_a_task_is_added_later(evaluate, copied):
  before, answers = _content(copied, 'samples', 'scores'), _answers(copied)
  rows = (copied / 'results.jsonl').read_text()
  out = evaluate(copied, tasks='wikitext_ppl')
  assert (copied / 'results.jsonl').read_text().startswith(rows)
  assert {r.task for r in results.read_rows(copied / 'results.jsonl')} == {
    'commonsenseqa',
    'sample_ppl',
    'wikitext_ppl',
  }
  after = _content(copied, 'samples', 'scores')
  assert after.keys() - before.keys() == {
    f'{kind}/wikitext_ppl/000000.jsonl' for kind in ('samples', 'scores')
  }
  assert {name: after[name] for name in before} == before
  assert answers.items() <= _answers(copied).items()
  for task in ('commonsenseqa', 'sample_ppl', 'wikitext_ppl'):
    assert f'\n| {task} | 0 | ' in out


def test_another_evaluation_in_the_same_place_is_refused(start, evaluated):
  workdir, _ = evaluated
  before = _content(workdir, 'samples', 'results.jsonl')
  same = ('--model=tiny', '--tasks=sample_ppl', f'--workdir={workdir}')
  cases = {
    'config.limit: 5 there, 4 now': ['--limit=4'],
    "config.evals.profile: 'oc-2023-12' there": [
      f'--limit={_LIMIT}',
      '--evals.profile=oc-2024-01',
    ],
  }
  for message, args in cases.items():
    process = start(*same, *args)
    _, err = process.communicate()
    assert process.returncode == 1 and err.count('\n') == 1
    assert err.startswith('Error: ') and message in err
  assert _content(workdir, 'samples', 'results.jsonl') == before


def test_all_tasks_are_listed(start):
  lines = _finish(start('--list_tasks')).splitlines()
  listed = {line.split()[0]: line for line in lines[1:-1]}
  assert list(listed) == list(TASKS)
  for name, line in listed.items():
    assert len(line) > 50
    if name in OFFICIAL_ITEMS:
      assert f' {OFFICIAL_ITEMS[name]:,} ' in line
  assert 'bbh@4096' in lines[-1]


def test_data_at_hand_and_missing(start, root, tmp_path):
  """The first file that is missing is named, also one of exemplars."""
  test = tmp_path / 'half' / 'mmlu' / 'test'
  test.mkdir(parents=True)
  for subject in SUBJECTS:
    (test / f'{subject}_test.csv').write_text('Q?,1,2,3,4,A\n')
  everything = start('--check_data')
  half = start(
    '--check_data',
    '--tasks=mmlu,mmlu_cloze,wikitext_ppl,sample_ppl,bbh@4096',
    f'--data_root={tmp_path / "half"}',
  )
  found = _lines_by_task(_incomplete(everything))
  assert list(found) == list(TASKS)
  name, items, official, digest, known = found['commonsenseqa'].split(None, 4)
  assert (items, official, len(digest)) == ('12', '1,221', 16)
  assert known == 'not known here'
  assert found['sample_ppl'].endswith('  the text of this package')
  for name, file in (
    ('axb', 'superglue_axb/AX-b.jsonl'),
    ('bbh', 'bbh/boolean_expressions.json'),
    ('mmlu', 'mmlu/test/abstract_algebra_test.csv'),
    ('mbpp', 'mbpp/mbpp.jsonl'),
    ('tydiqa', 'tydiqa/dev/thai-dev.jsonl'),
  ):
    assert file in found[name] and found[name].split()[1] == '-'
    assert str(root / 'data') in found[name]
  found = _lines_by_task(_incomplete(half))
  assert 'mmlu/dev/abstract_algebra_dev.csv' in found['mmlu']
  assert found['mmlu_cloze'].split()[1:3] == ['57', '14,042']
  assert 'wikitext/wiki.test.raw' in found['wikitext_ppl']
  assert 'bbh/boolean_expressions.json' in found['bbh@4096']


def _incomplete(process):
  """What is printed where something is missing."""
  out, err = process.communicate()
  assert process.returncode == 1, err
  return out


def _lines_by_task(out):
  return {line.split()[0]: line for line in out.splitlines()[1:]}


_NO_WALLS = """
from absl import app
from launch import evaluate, evaluation

def sandbox():
  raise RuntimeError('there are no walls here')

evaluation.Sandbox = sandbox
app.run(evaluate.main)
"""


def test_what_is_refused_is_said_in_one_line(start, tmp_path):
  """Each with what it must say; started together, they wait for each other."""
  place = f'--workdir={tmp_path / "run"}'
  model = '--model=tiny'
  cases = [
    ([], ['either --model or --run']),
    ([model, place], ['--tasks and --workdir', '--list_tasks']),
    ([model, place + '1', '--tasks=mmul'], ["'mmul'", 'mean mmlu']),
    (
      [model, place + '2', '--tasks=sample_ppl,mbpp@4096'],
      ['mbpp@4096: ', 'programs that the model wrote', '--allow_code_exec'],
    ),
    (
      [model, place + '3', '--tasks=bbh', '--evals.profile=oc'],
      ['evals.profile must be one of', "'oc'"],
    ),
    (
      [model, place + '4', '--tasks=commonsenseqa', '--data_root=/none'],
      ['commonsenseqa/dev_rand_split.jsonl', '--data_root'],
    ),
    ([f'--run={tmp_path}', place + '5', '--tasks=bbh'], ['holds no run']),
    (['--check_data', '--tasks=hbb'], ["'hbb'", 'mean bbh']),
  ]
  processes = [start(*args) for args, _ in cases]
  cases.append(([], ['there are no walls here']))
  processes.append(
    start(
      model,
      '--tasks=mbpp',
      '--allow_code_execution',
      place + '6',
      program=('-c', _NO_WALLS),
    )
  )
  for process, (args, messages) in zip(processes, cases, strict=True):
    _, err = process.communicate()
    assert process.returncode == 1, args
    assert err.startswith('Error: ') and err.count('\n') == 1, err
    assert all(message in err for message in messages), err
  assert not list(tmp_path.glob('run*/samples'))


def test_scoring_gives_the_same_again(score, copied, evaluated):
  names = ('samples', 'scores', 'results.jsonl', 'config.json')
  before = _content(copied, *names)
  assert _table(score(copied)) == _table(evaluated[1])
  assert _content(copied, *names) == before
  shutil.rmtree(copied / 'scores')
  (copied / 'results.jsonl').unlink()
  out = score(copied)
  assert 'commonsenseqa, step 0: accuracy ' in out
  assert _content(copied, *names) == before


def test_another_profile_has_a_place_of_its_own(score, copied):
  names = ('samples', 'scores', 'results.jsonl', 'config.json', 'report.md')
  before = _content(copied, *names)
  score(copied, '--profile=oc-2024-01', '--tasks=commonsenseqa')
  assert _content(copied, *names) == before
  place = copied / 'rescored' / 'oc-2024-01'
  assert _content(place, 'scores').keys() == {
    'scores/commonsenseqa/000000.jsonl'
  }
  rows = results.read_rows(place / 'results.jsonl')
  # Of a base model's CommonsenseQA the profiles read the same.
  assert rows == results.read_rows(copied / 'results.jsonl')[: len(rows)]
  assert {row.task for row in rows} == {'commonsenseqa'}


def test_answers_that_cannot_be_scored(start, copied, tmp_path):
  path = copied / 'samples' / 'sample_ppl' / '000000.jsonl'
  path.write_bytes(path.read_bytes()[:-9])
  before = _content(copied, 'scores', 'results.jsonl')
  program = ('-m', 'launch.score')
  cases = {
    'holds no run: there is no config.json': [str(tmp_path / 'none')],
    'Expected one run directory': [],
    'no answer to 1 of 5 items': [str(copied), '--tasks=sample_ppl'],
    'evals.profile must be one of': [str(copied / '.'), '--profile=clean'],
  }
  for message, args in cases.items():
    process = start(*args, program=program)
    _, err = process.communicate()
    assert process.returncode == 1 and message in err, err
    assert err.startswith('Error: ') and err.count('\n') == 1, err
  assert _content(copied, 'scores', 'results.jsonl') == before


def test_what_can_be_scored_is_scored(start, copied):
  """All else is named at the end, whether it was asked for or is stored."""
  before = _content(copied, 'scores/commonsenseqa')
  path = copied / 'samples' / 'sample_ppl' / '000000.jsonl'
  path.write_bytes(path.read_bytes()[:-9])
  shutil.copytree(copied / 'samples/commonsenseqa', copied / 'samples/mbpp')
  no_answer = 'sample_ppl, step 0: ', 'no answer to 1 of 5 items'
  cases = {
    '': [('mbpp: ', 'Add --allow_code_execution'), no_answer],
    '--tasks=mbpp,sample_ppl,commonsenseqa,mmul,wikitext_ppl': [
      ('mbpp: ', 'Add --allow_code_execution'),
      no_answer,
      ('mmul: ', 'mean mmlu'),
      ('wikitext_ppl: ', 'no answers'),
    ],
  }
  for flag, expected in cases.items():
    shutil.rmtree(copied / 'scores')
    for name in ('results.jsonl', 'report.md'):
      (copied / name).unlink()
    args = [str(copied), *filter(None, [flag])]
    process = start(*args, program=('-m', 'launch.score'))
    out, err = process.communicate()
    assert process.returncode == 1
    assert 'commonsenseqa, step 0: accuracy ' in out
    assert 'n 5 of 1,221\n' in out
    for line, (task, reason) in zip(err.splitlines(), expected, strict=True):
      assert line.startswith(f'Error: not scored: {task}') and reason in line
    assert _content(copied, 'scores') == before
    rows = results.read_rows(copied / 'results.jsonl')
    assert {row.task for row in rows} == {'commonsenseqa'}
    assert _table(out) == (copied / 'report.md').read_text().rstrip()


@pytest.fixture
def edited(tiny, tmp_path):
  """The directory of a run of three facts in two edit steps."""
  weights = tmp_path / 'weights'
  load.save_orbax(weights, tiny)
  workdir = Workdir(tmp_path / 'edits')
  config = {
    'model': {'name': 'tiny', 'path': str(weights)},
    'method': {'name': 'rome'},
    'edit_batch_size': 2,
  }
  workdir.claim({'config': config, 'weights': tiny.fingerprint}, {})
  checkpoints = Checkpoints(workdir.checkpoints, tiny.fingerprint)
  for step, facts in ((1, [{}, {}]), (2, [{}])):
    rng = np.random.default_rng(step)
    draw = lambda *shape, rng=rng: jnp.asarray(rng.normal(size=shape), 'f4')
    edit = {'layers/2/mlp/down_proj/kernel': LowRank(draw(64, 1), draw(1, 32))}
    checkpoints.save(step, edit, {'requests': facts})
  checkpoints.close()
  return workdir.path


def test_the_edited_model_of_a_run(evaluate, score, edited, tiny, tmp_path):
  states, values = [tiny.fingerprint], []
  for step, facts, flag in ((1, 2, ['--edit_step=1']), (2, 3, [])):
    workdir = tmp_path / f'after{step}'
    run = (f'--run={edited}', *flag)
    evaluate(workdir, *run, tasks='sample_ppl', model=False)
    rows = results.read_rows(workdir / 'results.jsonl')
    for row in rows:
      assert (row.edit_step, row.num_edits) == (step, facts)
      assert (row.method, row.model) == ('rome', 'tiny')
    states.append(rows[0].state)
    values.append(rows[0].value)
    identity = Workdir(workdir).identity()
    assert identity['weights'] == rows[0].state
    assert identity['unedited'] == tiny.fingerprint
    checkpoints = Checkpoints(edited / 'checkpoints', tiny.fingerprint)
    assert identity['run_state'] == checkpoints.fingerprint(step)
    checkpoints.close()
    # Whoever scores must find the tokenizer where the run found it.
    model = {'name': 'tiny', 'path': str(tmp_path / 'weights')}
    assert identity['config']['model'] == model
    names = ('samples', 'scores', 'results.jsonl')
    before = _content(workdir, *names)
    assert f'scores/sample_ppl/{step:06d}.jsonl' in before
    shutil.rmtree(workdir / 'scores')
    score(workdir)
    assert _content(workdir, *names) == before
  assert len(set(states)) == 3 and values[0] != values[1]


@pytest.mark.slow
def test_a_killed_evaluation_resumes_to_the_same_bytes(start, evaluate, root):
  """Killed after the first answers, again after some more, and finished."""
  data = root / 'many'
  shutil.copytree(root / 'data', data)
  questions = [json.dumps(_question(i)) + '\n' for i in range(20, 140)]
  dev = data / 'commonsenseqa' / 'dev_rand_split.jsonl'
  dev.write_text(''.join(questions))
  tasks = 'commonsenseqa,commonsenseqa_cloze'
  undisturbed, killed = root / 'undisturbed', root / 'killed'
  evaluate(undisturbed, f'--data_root={data}', tasks=tasks, limit=0)
  log = killed / 'samples' / 'commonsenseqa' / '000000.jsonl'
  count = lambda: len(log.read_text().splitlines()) if log.exists() else 0
  for wanted in (1, 40):
    process = start(
      '--model=tiny',
      f'--tasks={tasks}',
      '--limit=0',
      f'--data_root={data}',
      f'--workdir={killed}',
    )
    while count() < wanted and process.poll() is None:
      time.sleep(0.01)
    process.kill()
    process.communicate()
    assert wanted <= count() < len(questions)
  evaluate(killed, f'--data_root={data}', tasks=tasks, limit=0)
  content = lambda path: {
    file.relative_to(path): file.read_bytes()
    for file in path.rglob('*.json*')
    if file.name != 'results.jsonl'
  }
  assert content(killed) == content(undisturbed)
  rows = [
    [dataclasses.replace(row, run='') for row in results.read_rows(path)]
    for path in (killed / 'results.jsonl', undisturbed / 'results.jsonl')
  ]
  assert rows[0] == rows[1]
