import hashlib
import json
import time

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.config import EvalConfig
from me_jax.evals import mbpp, mbpp_code
from me_jax.evals.task import Item, TaskContext
from me_jax.sandbox.execute import Outcome, Sandbox

PROFILES = ('oc-2023-12', 'oc-2024-01')


class Recorder(Sandbox):
  """Runs nothing; an outcome is what the program is called."""

  def __init__(self):
    self.asked = []

  def run(self, program, tests):
    self.asked.append((program, tuple(tests)))
    return Outcome(category=program.split()[0], detail='')


def _task(root, profile='oc-2023-12', *, is_chat=False, **context):
  return mbpp.mbpp(
    TaskContext(
      sources=folder(root),
      tokenizer=CharTokenizer(),
      settings=EvalConfig(profile=profile),
      is_chat=is_chat,
      **context,
    )
  )


def _item(**fields):
  return Item(
    id='11', group='test', fields={'test_list': ['t'], 'code': 'c', **fields}
  )


def _answer(text):
  return {'resps': [text], 'n_tokens': 1, 'stop_reason': 'eos'}


@pytest.fixture(scope='module')
def vectors(spec_dir):
  return json.loads((spec_dir / 'benchmark_vectors.json').read_text())


@pytest.mark.parametrize('profile', PROFILES)
def test_prompts_equal_the_vectors(vectors, data_root, profile):
  cases = [v for v in vectors['prompts'] if v['task'] == 'mbpp']
  assert {case['model'] for case in cases} == {'base', 'chat'}
  for case in cases:
    task = _task(data_root, profile, is_chat=case['model'] == 'chat')
    item = _item(**case['fields'])
    text = task.prompt(item, task.fewshot(item))
    assert len(text) == case['chars']
    assert hashlib.sha256(text.encode()).hexdigest() == case['sha256']


@pytest.mark.parametrize('profile', PROFILES)
def test_extraction_equals_the_vectors(vectors, profile):
  task = _task(None, profile)
  cases = vectors['mbpp_extract'][profile]
  assert cases
  for text, expected in cases:
    assert task.readings[0].filter(_item(), text) == expected


def test_the_real_data(data_root):
  task = _task(data_root)
  items = task.items()
  assert [item.id for item in items] == [str(i) for i in range(11, 511)]
  assert (
    items[0].fields['test_list'][0] == 'assert remove_Occ("hello","l") == "heo"'
  )
  text = CharTokenizer().decode(task.request(items[0]).prompt)
  assert text.endswith(
    'Your code should pass these tests:\n\n '
    'assert remove_Occ("hello","l") == "heo"\n'
    'assert remove_Occ("abcda","a") == "bcd"\n'
    'assert remove_Occ("PHP","P") == "H"  \n\n[BEGIN]\n'
  )
  assert task.request(items[0]).max_new_tokens == 512
  assert task.doc_to_target(items[0]).startswith('def remove_Occ')


@pytest.mark.parametrize(
  ('text', 'code', 'kept'),
  [
    # A fence that does not close keeps the name of the language.
    ('so:\n```python\nx = 1\n', 'python\nx = 1', None),
    ('```\nx = 1\n``` ```\ny = 2\n```', 'x = 1', None),
    ('```x = 1```', 'x = 1', None),
    # Only a text is worth what it says.
    ('7', '7', None),
    ("b'x'", "b'x", None),
    ('"\\ud800"', '"ud800"', '"\\ud800"'),
    # Deleting backslashes makes a fence.
    ('a `\\``python\nx\n`\\`` b', 'x', 'a `\\``python\nx\n`\\`` b'),
    ('print("a\\n")', 'print("an")', 'print("a\\n")'),
    ('', '', None),
  ],
)
def test_extraction_of_january(text, code, kept):
  oc, clean = _task(None, 'oc-2024-01').readings
  assert (oc.name, clean.name) == ('oc', 'clean')
  assert oc.filter(_item(), text) == code
  assert clean.filter(_item(), text) == (code if kept is None else kept)


def test_december_deletes_nothing_and_has_nothing_to_clean():
  [oc] = _task(None).readings
  assert oc.filter(_item(), 'print("a\\n")\n[DONE]') == 'print("a\\n")'


@pytest.mark.parametrize(
  'text',
  [
    '(' * 20_000,
    '-' * 20_000 + '1',
    '[' * 90 + ']' * 90,
    "'" * 20_001,
    "' " * 20_000,
    '```' * 20_000,
    '```python' * 20_000,
    '[BEGIN]' * 20_000 + '[DONE',
    "'" + ' ' * 20_000,
    '9' * 20_000,
    '\x00',
  ],
)
@pytest.mark.parametrize('profile', PROFILES)
def test_hostile_texts_are_read_in_no_time(text, profile):
  start = time.perf_counter()
  for reading in _task(None, profile).readings:
    assert isinstance(reading.filter(_item(), text), str)
  mbpp_code.decided(text)
  assert time.perf_counter() - start < 1


def test_nothing_after_a_decided_text_changes_its_program():
  """Random texts of the marks, quotes and blanks that rule extraction."""
  task = _task(None)
  pieces = ['DONE', '[', ']', 'DO', 'NE', "'", ' ', '\n', '[BEGIN]', 'BEGIN']
  pieces += ['x', '```', '[DONE]', '\\', '"', 'B', 'é']
  rng = np.random.default_rng(0)
  n_stopped = 0
  for _ in range(5000):
    text, tail = (
      ''.join(rng.choice(pieces, size=rng.integers(1, 14))) for _ in range(2)
    )
    decided = task.stop_when(_item())
    ends = (end for end in range(len(text)) if decided(text[:end]))
    if (end := next(ends, None)) is None:
      continue
    n_stopped += 1
    for reading in task.readings:
      programs = {
        reading.filter(_item(), t)
        for t in (text[:end], text, text[:end] + tail, text + tail)
      }
      assert len(programs) == 1, (text, end, tail)
  assert n_stopped > 1000


def test_generation_ends_at_done_in_december_only(data_root):
  for profile, early in zip(PROFILES, (True, False), strict=True):
    task = _task(data_root, profile)
    decided = task.request(task.items()[0]).decided
    assert (decided is not None) == early
  decided = mbpp_code.decided
  assert decided('x\nDONE') and decided('[DONE]') and decided('[DONE ')
  assert not decided('x') and not decided('DON') and not decided("x'\n[DONE")


def test_an_answer_is_run_and_its_outcome_counted(data_root):
  sandbox = Recorder()
  task = _task(data_root, sandbox=sandbox)
  samples = []
  for item, name in zip(
    task.items(), ('pass', 'pass', *mbpp.CATEGORIES[1:]), strict=False
  ):
    score = task.score(item, _answer(f" '{name} x'\n[DONE]"))
    assert score['filtered_resps'] == {'oc': f'{name} x'}
    assert sandbox.asked[-1] == (f'{name} x', tuple(item.fields['test_list']))
    samples.append({'group': 'test', 'nonfinite': False, **score})
  metrics = task.aggregate(samples, complete=True)
  assert [(m.name, m.value) for m in metrics] == [
    ('pass', 40),
    ('wrong_answer', 20),
    ('timeout', 20),
    ('failed', 20),
    ('predicted_empty', 0),
    ('n_nonfinite', 0),
  ]


def test_one_program_is_run_once(data_root):
  sandbox = Recorder()
  task = _task(data_root, 'oc-2024-01', sandbox=sandbox)
  first, second, *_ = task.items()
  score = task.score(first, _answer('pass x'))
  assert len(sandbox.asked) == 1
  assert list(score['metrics'])[:1] == ['pass']
  assert score['metrics']['pass'] == score['metrics']['pass_clean'] == 1
  task.score(second, _answer('pass x'))  # other tests: another program
  assert len(sandbox.asked) == 2
  score = task.score(first, _answer('failed\\ x'))
  assert [code for code, _ in sandbox.asked[2:]] == ['failed x', 'failed\\ x']
  assert score['metrics']['failed'] == 1


def test_without_a_sandbox_nothing_is_scored(data_root):
  task = _task(data_root)
  item = task.items()[0]
  assert task.request(item)
  with pytest.raises(ValueError, match='--allow_code_execution'):
    task.score(item, _answer('x'))


def test_real_programs(data_root):
  try:
    sandbox = Sandbox()
  except RuntimeError as e:
    pytest.skip(f'no sandbox here: {e}')
  task = _task(data_root, sandbox=sandbox)
  item = task.items()[0]
  solution = item.fields['code']
  for text, category in (
    (f"[BEGIN]\n '{solution}' \n[DONE]", 'pass'),
    (solution.replace('range', 'list'), 'failed'),
    ('def remove_Occ(s, c):\n  return s', 'wrong_answer'),
    ('def remove_Occ(s, c):', 'failed'),
    ('while True: pass', 'timeout'),
    ('', 'failed'),
    ('\x00', 'failed'),
  ):
    metrics = task.score(item, _answer(text))['metrics']
    assert metrics == {name: name == category for name in mbpp.CATEGORIES}


def _rows(data_root):
  text = (data_root / 'mbpp' / 'mbpp.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _write(root, rows):
  (root / 'mbpp').mkdir()
  (root / 'mbpp' / 'mbpp.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  return root


def test_other_exemplars_are_refused(data_root, tmp_path):
  rows = _rows(data_root)
  rows[1]['code'] = rows[1]['code'].replace('\r\n', '\n')
  rows[3]['text'] += ' Please.'
  task = _task(_write(tmp_path, rows))
  message = 'the code of task 2, the problem of task 4 should be as published'
  with pytest.raises(ValueError, match=message):
    task.items()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda rows: rows[:400], 'expected the tasks 1 to 510 first'),
    (lambda rows: rows[5:], 'begin with 6, 7, 8, 9, 10'),
    (lambda rows: [{**rows[0], 'text': 3}], "record 0: field 'text' must be"),
    (
      lambda rows: [rows[0], {**rows[1], 'test_list': [1]}],
      "record 1: field 'test_list' must be a list of texts",
    ),
  ],
)
def test_damaged_files_are_refused(data_root, tmp_path, damage, message):
  task = _task(_write(tmp_path, damage(_rows(data_root))))
  with pytest.raises(ValueError, match=message):
    task.items()


def test_hub_rows_become_the_file(data_root, tmp_path):
  rows = _rows(data_root)
  table = mbpp.hub_table()
  assert (table.repo, table.config) == ('google-research-datasets/mbpp', 'full')
  text = table.to_text([*rows[600:], *rows[:600]])  # whatever their order
  assert text == ''.join(json.dumps(row) + '\n' for row in rows)
  _write(tmp_path, map(json.loads, text.splitlines()))
  assert _task(tmp_path).items() == _task(data_root).items()
