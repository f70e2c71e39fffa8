import json
import random

import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources
from me_jax.evals import c3
from me_jax.evals.task import Item, TaskContext

PROFILES = ('oc-2023-12', 'oc-2024-01')


def _task(root, profile='oc-2023-12', is_chat=False):
  return c3.c3(
    TaskContext(
      sources=folder(root),
      tokenizer=CharTokenizer(),
      settings=EvalConfig(profile=profile),
      is_chat=is_chat,
    )
  )


def _entry(**changes):
  question = {
    'question': '他们是谁？',
    'choice': ['朋友', '同学', '夫妻'],
    'answer': '同学',
    **changes,
  }
  return [['男：你好。', '女：再见。'], [question, question], '1-1']


def _write(root, entries):
  path = root / 'c3' / 'c3-d-dev.json'
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(entries), encoding='utf-8')


def _vectors(spec_dir):
  return json.loads((spec_dir / 'benchmark_vectors.json').read_text())


@pytest.mark.parametrize('is_chat', [False, True])
def test_prompts_equal_the_vectors(spec_dir, tmp_path, is_chat):
  model = 'chat' if is_chat else 'base'
  [case] = [
    v
    for v in _vectors(spec_dir)['prompts']
    if v['task'] == 'c3' and v['model'] == model
  ]
  fields = case['fields']
  assert fields['choice3'] == '[NULL]'
  choices = [fields[f'choice{i}'] for i in range(3)]
  _write(
    tmp_path,
    [
      [
        [fields['content'][:6], fields['content'][6:]],
        [{**fields, 'choice': choices, 'answer': choices[0]}],
        '1',
      ]
    ],
  )
  task = _task(tmp_path, is_chat=is_chat)
  [item] = task.items()
  assert task.prompt(item, task.fewshot(item)) == case['prompt']
  assert task.doc_to_target(item) == fields['label']


def test_extraction_equals_the_vectors(spec_dir, tmp_path):
  cases = _vectors(spec_dir)['first_capital']
  assert cases
  for text, expected in cases:
    item = Item(id='0/0', group='dialogue', fields={'label': 'B'})
    score = _task(tmp_path).score(item, {'resps': [text]})
    assert score['filtered_resps']['oc'] == expected
    assert score['metrics']['accuracy'] == (expected == 'B')


def test_clean_may_choose_what_is_not_there(tmp_path):
  """[NULL] is offered, so it can be the answer that was read."""
  _write(tmp_path, [_entry()])
  task = _task(tmp_path)
  item = task.items()[0]
  assert item.fields['choices'][3] == '[NULL]'
  score = task.score(item, {'resps': ['The answer is D.']})
  assert score['filtered_resps'] == {'oc': 'T', 'clean': 'D'}
  assert score['metrics'] == {'accuracy': 0, 'accuracy_clean': 0}


def test_items_by_position(tmp_path):
  _write(tmp_path, [_entry(), _entry(answer='夫妻')])
  items = _task(tmp_path).items()
  assert [item.id for item in items] == ['0/0', '0/1', '1/0', '1/1']
  assert [item.fields['label'] for item in items] == ['B', 'B', 'C', 'C']
  assert items[0].fields['content'] == '男：你好。女：再见。'


@pytest.mark.parametrize('is_chat', [False, True])
@pytest.mark.parametrize('profile', PROFILES)
def test_a_decided_text_never_changes_its_answers(tmp_path, profile, is_chat):
  _write(tmp_path, [_entry()])
  task = _task(tmp_path, profile, is_chat)
  item = task.items()[0]
  decided = task.request(item).decided
  read = lambda text: task.score(item, {'resps': [text]})['filtered_resps']
  pieces = ['A', 'B', 'É', 'a', '选', ' ', '\n', '.', '[', '[INST', ']', '(c)']
  rng = random.Random(0)
  fired = 0
  for _ in range(1500):
    text = ''.join(rng.choices(pieces, k=8))
    end = next((e for e in range(len(text) + 1) if decided(text[:e])), None)
    if end is not None:
      fired += 1
      tail = ''.join(rng.choices(pieces, k=4))
      answers = [read(t) for t in (text[:end], text, text[:end] + tail)]
      assert answers[0] == answers[1] == answers[2], repr(text)
  assert fired > 500


def test_aggregate(tmp_path):
  _write(tmp_path, [_entry(), _entry()])
  task = _task(tmp_path)
  samples = []
  for item, text in zip(
    task.items(), ('B', 'The B', '', 'Answer: B'), strict=True
  ):
    answer = {'resps': [text], 'nonfinite': False}
    samples.append({**answer, 'group': item.group, **task.score(item, answer)})
  metrics = {m.name: m.value for m in task.aggregate(samples, complete=True)}
  assert metrics == {
    'accuracy': 25,
    'accuracy_clean': 75,
    'predicted_A': 25,
    'predicted_B': 25,
    'predicted_C': 0,
    'predicted_D': 0,
    'predicted_empty': 25,
    'n_nonfinite': 0,
  }


def test_the_real_data(data_root):
  task = _task(data_root)
  items = task.items()
  assert len({item.id for item in items}) == len(items) == 1825
  filled = [item for item in items if '[NULL]' in item.fields['choices']]
  assert len(filled) == 313
  assert all(len(item.fields['choices']) == 4 for item in items)
  assert task.prompt(items[0], ()) == (
    '男：听说你们公司要派你去南方工作?'
    '女：是呀，虽说那边环境好，待遇也不错，可我还是觉得在家里最好。\n'
    '问：他们在谈论什么?\nA. 旅行\nB. 坏境\nC. 工作\nD. 家庭\n'
    '请从“A”，“B”，“C”，“D”中进行选择。\n答：'
  )
  assert items[0].fields['label'] == 'C'
  assert task.request(items[0]).max_new_tokens == 100


def _hub_rows(data_root):
  """As the hub has them: dialogues, then texts, a number for each."""
  entries = [
    entry
    for part in 'dm'
    for entry in json.loads(
      (data_root / 'c3' / f'c3-{part}-dev.json').read_text(encoding='utf-8')
    )
  ]
  return [
    {'id': number, 'context': lines, **question}
    for number, (lines, questions, _) in enumerate(entries)
    for question in questions
  ]


def test_hub_rows_become_the_dialogues(data_root, tmp_path):
  rows = _hub_rows(data_root)
  assert len(rows) == 3816
  table = c3.hub_table()
  assert (table.repo, table.config) == ('clue/clue', 'c3')
  (tmp_path / 'c3').mkdir()
  (tmp_path / 'c3' / 'c3-d-dev.json').write_text(table.to_text(rows))
  assert c3.read_items(folder(tmp_path)) == c3.read_items(folder(data_root))


@pytest.mark.parametrize('damage', ['a letter', 'order', 'a question less'])
def test_other_rows_are_not_taken_for_the_dialogues(data_root, damage):
  rows = _hub_rows(data_root)
  if damage == 'a letter':
    rows[7] = {**rows[7], 'question': rows[7]['question'] + '?'}
  elif damage == 'order':
    rows[0], rows[1] = {**rows[1], 'id': 0}, {**rows[0], 'id': 1}
  else:
    del rows[1000]
  with pytest.raises(ValueError, match='are not the official dialogues'):
    c3.hub_table().to_text(rows)


def test_a_hub_with_other_rows_is_a_missing_file(monkeypatch, tmp_path):
  datasets = pytest.importorskip('datasets')
  row = {'id': 0, 'context': [], 'question': '', 'choice': [], 'answer': ''}
  monkeypatch.setattr(datasets, 'load_dataset', lambda *a, **k: [row])
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path)
  with pytest.raises(FileNotFoundError, match='not the official') as info:
    c3.read_items(DataSources())
  assert 'c3/c3-d-dev.json' in str(info.value)


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    (_entry(answer='老师'), 'question 0: expected two to four choices'),
    (_entry(choice=['同学']), 'expected two to four choices'),
    (_entry(choice=list('甲乙丙丁') + ['同学']), 'expected two to four'),
    (_entry(choice=['同学', 3]), "'choice' must be a list of texts"),
    (_entry(question=None), "'question' must be str"),
    ([['男：你好。'], []], r'expected \[lines, questions, id\]'),
    ([['男：你好。'], ['谁？'], '1'], 'expected an object'),
    (['男：你好。', [], '1'], "'lines' must be list"),
    ({'lines': []}, r'expected \[lines, questions, id\]'),
  ],
)
def test_damaged_records_are_named(tmp_path, entry, message):
  _write(tmp_path, [_entry(), entry])
  with pytest.raises(ValueError, match=message) as info:
    c3.read_items(folder(tmp_path))
  assert 'c3-d-dev.json: record 1' in str(info.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'[[', 'not valid JSON'),
    (b'\xff', 'not valid JSON'),
    (b'{}', 'a list of dialogues'),
    (b'[]', 'a list of dialogues'),
  ],
)
def test_damaged_files_are_named(tmp_path, content, message):
  _write(tmp_path, [])
  (tmp_path / 'c3' / 'c3-d-dev.json').write_bytes(content)
  with pytest.raises(ValueError, match=f'c3-d-dev.json: .*{message}'):
    c3.read_items(folder(tmp_path))
