import hashlib
import json

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources, HubTable
from me_jax.evals import hub_tables_math
from me_jax.evals import math as math_tasks
from me_jax.evals.task import Item, TaskContext
from me_jax.typing import GenerateResult

_TASKS = (
  math_tasks.math,
  math_tasks.math_plain,
  math_tasks.math_own_exemplars,
)


def _record(i, **changes):
  return {
    'problem': f'What is\n ${i}+0$?',
    'level': 'Level 1',
    'type': ('Algebra', 'Counting & Probability')[i % 2],
    'solution': f'It is\n $\\boxed{{{i}}}$.',
    **changes,
  }


def _write(root, name, records):
  path = root / 'math' / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


@pytest.fixture
def sources(tmp_path):
  _write(tmp_path, 'test_1000.jsonl', [_record(i) for i in range(3, 8)])
  _write(tmp_path, 'fewshot_pool.jsonl', [_record(i) for i in range(9)])
  return folder(tmp_path)


def _copy_minerva(data_root, root, change=lambda records: records):
  records = json.loads((data_root / 'math/minerva_fewshot.json').read_text())
  (root / 'math').mkdir(exist_ok=True)
  (root / 'math/minerva_fewshot.json').write_text(json.dumps(change(records)))


def _prompt(task, item):
  return task.prompt(item, task.fewshot(item))


@pytest.mark.parametrize('model', ['base', 'chat'])
@pytest.mark.parametrize('profile', ['oc-2023-12', 'oc-2024-01'])
def test_prompts_equal_the_vectors(spec_dir, data_root, model, profile):
  vectors = json.loads((spec_dir / 'benchmark_vectors.json').read_text())
  [case] = [
    v for v in vectors['prompts'] if (v['task'], v['model']) == ('math', model)
  ]
  task = math_tasks.math(
    TaskContext(
      sources=folder(data_root),
      settings=EvalConfig(profile=profile),
      is_chat=model == 'chat',
    )
  )
  text = _prompt(task, Item(id='0', group='algebra', fields=case['fields']))
  assert len(text) == case['chars']
  assert hashlib.sha256(text.encode()).hexdigest() == case['sha256']


def test_plain_exemplars_differ_in_their_braces_only(data_root):
  context = TaskContext(sources=folder(data_root))
  item = math_tasks.read_items(context.sources)[0]
  oc = _prompt(math_tasks.math(context), item)
  plain = _prompt(math_tasks.math_plain(context), item)
  query = f'Problem:\n{item.fields["problem"]}\nSolution:\n'
  assert oc.endswith(query) and plain.endswith(query)
  plain = plain.removesuffix(query)
  assert r'$\frac{\sqrt{x-2}}{\sqrt{5-x}}$' in plain
  doubled = plain.replace('{', '{{').replace('}', '}}')
  assert doubled == oc.removesuffix(query)


def test_own_exemplars_have_the_same_frame(sources):
  task = math_tasks.math_own_exemplars(TaskContext(sources=sources))
  items = task.items()
  rounds = [
    f'Problem:\nWhat is ${i}+0$?\nSolution:\n'
    f'It is $\\boxed{{{i}}}$.\n'
    f'Final Answer: The final answer is ${i}$. I hope it is correct.\n\n'
    for i in range(4)
  ]
  query = 'Problem:\nWhat is\n $4+0$?\nSolution:\n'
  assert _prompt(task, items[0]) == ''.join(rounds) + query


def test_own_exemplars_are_not_asked_for(sources):
  asked = lambda factory: [
    item.fields['answer']
    for item in factory(TaskContext(sources=sources)).items()
  ]
  assert asked(math_tasks.math) == ['3', '4', '5', '6', '7']
  assert asked(math_tasks.math_own_exemplars) == ['4', '5', '6', '7']


def test_the_real_data(data_root):
  context = TaskContext(sources=folder(data_root))
  items = math_tasks.math(context).items()
  assert len(items) in (1000, 5000)
  assert len({item.id for item in items}) == len(items)
  assert {item.group for item in items} == set(math_tasks.SUBJECTS.values())
  unboxed = [item for item in items if item.fields['answer'] is None]
  assert len(unboxed) < 0.01 * len(items)
  own = math_tasks.math_own_exemplars(context)
  assert len(own.items()) > 990
  assert _prompt(own, items[0]).count('I hope it is correct.') == 4


def test_a_gold_answer_is_right_in_both_readings_or_a_known_quirk(data_root):
  task = math_tasks.math(TaskContext(sources=folder(data_root)))
  right = {'accuracy': 0, 'accuracy_clean': 0}
  items = task.items()
  for item in items:
    text = (
      'So. Final Answer: The final answer is '
      f'${item.fields["answer"]}$. I hope it is correct.\n\nProblem:\n'
    )
    assert task.stop_when(item)(text)
    for name, value in task.score(item, {'resps': [text]})['metrics'].items():
      right[name] += value
  # Decimals, \le and thousands separators are what the first loses.
  assert 0.9 < right['accuracy'] / len(items) < 0.95
  assert right['accuracy_clean'] >= 0.995 * len(items)


def test_the_full_file_is_preferred(sources):
  _write(sources.data_root, 'test.jsonl', [_record(i) for i in range(30)])
  assert len(math_tasks.read_items(sources)) == 30


def test_ids_do_not_depend_on_the_place_in_the_file(sources):
  few = math_tasks.read_items(sources)
  again = [_record(i) for i in (20, 7, 20, 6, 5, 4, 3)]
  _write(sources.data_root, 'test.jsonl', again)
  all_items = math_tasks.read_items(sources)
  ids = [item.id for item in all_items]
  assert {item.id for item in few} < set(ids)
  assert len(set(ids)) == len(ids) and ids[2] == f'{ids[0]}.2'
  assert ids[0].startswith('algebra/')
  assert ids[1].startswith('counting_and_probability/')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'type': 'Topology'}, "'type' must be one of Algebra"),
    ({'problem': 5}, "'problem' must be str"),
    ({'solution': None}, "'solution' must be str"),
  ],
)
def test_damaged_records_are_named(sources, changes, message):
  records = [_record(0), _record(1, **changes)]
  _write(sources.data_root, 'test_1000.jsonl', records)
  with pytest.raises(ValueError, match=message) as info:
    math_tasks.read_items(sources)
  assert 'test_1000.jsonl: record 1' in str(info.value)


def test_missing_problems_are_named(tmp_path):
  with pytest.raises(FileNotFoundError) as info:
    math_tasks.read_items(folder(tmp_path))
  for name in (
    'math/test.jsonl (5,000)',
    'math/test_1000.jsonl',
    '--data_root',
  ):
    assert name in str(info.value)


@pytest.mark.parametrize('factory', _TASKS[:2])
def test_missing_exemplars_point_to_the_substitute(sources, factory):
  task = factory(TaskContext(sources=sources))
  item = task.items()[0]
  with pytest.raises(FileNotFoundError, match='math_own_exemplars') as info:
    task.doc_to_turns(item)
  assert 'math/minerva_fewshot.json' in str(info.value)


def _spoilt(index, field, old, new):
  def change(records):
    assert old in records[index][field]
    records[index][field] = records[index][field].replace(old, new, 1)
    return records

  return change


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      _spoilt(0, 'problem', '$.}', '$.'),
      'differs for HUMAN of exemplar 1. Rest',
    ),
    (_spoilt(3, 'solution', '2', '3'), 'differs for BOT of exemplar 4. Rest'),
    (
      _spoilt(1, 'solution', 'I hope', 'We hope'),
      'record 1: the solution must',
    ),
    (lambda records: records[:3], 'four Minerva exemplars, found 3'),
  ],
)
@pytest.mark.parametrize('factory', _TASKS[:2])
def test_other_exemplars_are_refused(
  data_root, sources, factory, change, message
):
  _copy_minerva(data_root, sources.data_root, change)
  task = factory(TaskContext(sources=sources))
  with pytest.raises(ValueError, match=message):
    task.doc_to_turns(task.items()[0])


def test_a_pool_without_answers_is_refused(sources):
  task = math_tasks.math_own_exemplars(TaskContext(sources=sources))
  pool = [_record(i) for i in range(4)]
  pool[2]['solution'] = r'\boxed 5'
  _write(sources.data_root, 'fewshot_pool.jsonl', pool)
  with pytest.raises(ValueError, match='record 2: an exemplar must box'):
    task.items()
  _write(sources.data_root, 'fewshot_pool.jsonl', pool[:2])
  with pytest.raises(ValueError, match='at least 4 problems'):
    task.items()


def test_a_long_prompt_is_cut_on_the_left(data_root):
  tokenizer = CharTokenizer()
  task = math_tasks.math(
    TaskContext(sources=folder(data_root), tokenizer=tokenizer)
  )
  item = task.items()[0]
  request = task.request(item)
  assert request.max_new_tokens == 512
  assert len(request.prompt) == 2048 - 512 and request.prompt[0] == 1
  text = tokenizer.decode(request.prompt)
  assert _prompt(task, item).endswith(text)


@pytest.mark.parametrize('factory', _TASKS)
def test_names_and_versions_tell_the_tasks_apart(sources, factory):
  task = factory(TaskContext(sources=sources))
  assert task.name == factory.__name__
  assert (task.version == 'math_gen_265cce') == (task.name == 'math')


def _sample(task, item, text):
  result = GenerateResult(
    tokens=np.zeros(3, np.int32), text=text, stop_reason='eos'
  )
  answer = task.answer(item, result)
  return {'group': item.group, **answer, **task.score(item, answer)}


def test_scores(sources):
  task = math_tasks.math(TaskContext(sources=sources))
  items = task.items()
  samples = [
    _sample(task, item, text)
    for item, text in zip(
      items,
      (
        'Final Answer: The final answer is $3$. I hope it is correct.',
        'It is 4',
        'Final Answer: The final answer is $\\sqrt{{5}}$. I hope',
        'Final Answer: The final answer is $6.0$. I hope',
        '',
      ),
      strict=True,
    )
  ]
  assert [s['filtered_resps']['oc'] for s in samples] == [
    '3',
    'Itis4',
    r'\sqrt{{5}}',
    '6',
    '',
  ]
  assert [s['filtered_resps']['clean'] for s in samples] == [
    '3',
    'Itis4',
    r'\sqrt{5}',
    '6.0',
    '',
  ]
  assert [s['target'] for s in samples] == list('34567')
  values = {m.name: m.value for m in task.aggregate(samples, complete=True)}
  assert list(values)[0] == 'accuracy'
  assert values['accuracy'] == 40 and values['accuracy_clean'] == 20
  assert values['accuracy_counting_and_probability'] == pytest.approx(100 / 3)
  assert values['accuracy_algebra'] == 50
  assert values['predicted_empty'] == 20


def test_the_profile_decides_the_first_reading_alone(sources):
  for profile, expected in (
    ('oc-2023-12', 'Theansweris3'),
    ('oc-2024-01', '3'),
  ):
    task = math_tasks.math(
      TaskContext(sources=sources, settings=EvalConfig(profile=profile))
    )
    sample = _sample(task, task.items()[0], 'The answer is 3')
    assert sample['filtered_resps'] == {'oc': expected, 'clean': 'Theansweris3'}


def test_an_item_without_gold_is_never_right(sources):
  record = _record(0, solution=r'It is \boxed 5')
  _write(sources.data_root, 'test_1000.jsonl', [record])
  task = math_tasks.math(TaskContext(sources=sources))
  [item] = task.items()
  for text in ('', 'None', 'The final answer is $5$. I hope'):
    sample = _sample(task, item, text)
    assert sample['target'] == ''
    assert set(sample['metrics'].values()) == {0}


def test_hub_rows_become_the_files(sources, tmp_path, monkeypatch):
  rows = {
    subject: [_record(i, type=kind) for i in range(2 * k, 2 * k + 2)]
    for k, (kind, subject) in enumerate(math_tasks.SUBJECTS.items())
  }

  def fetch(self, relative_path):
    assert self.repo == 'EleutherAI/hendrycks_math'
    path = tmp_path / 'hub' / relative_path.replace('/', '_')
    path.parent.mkdir(exist_ok=True)
    path.write_text(self.to_text(rows[self.config]))
    return path

  monkeypatch.setattr(HubTable, 'fetch', fetch)
  items = math_tasks.read_items(DataSources())
  assert [item.fields['answer'] for item in items] == [*map(str, range(14))]
  assert {item.group for item in items} == set(rows)
  assert hub_tables_math.test('geometry').split == 'test'
  # A folder that has a local copy never asks.
  local = DataSources(data_root=sources.data_root)
  assert len(math_tasks.read_items(local)) == 5


def test_hub_rows_become_the_pool(sources):
  table = hub_tables_math.fewshot_pool()
  assert table.split == 'train[:4]'
  rows = [{**_record(i), 'extra': 1} for i in range(4)]
  path = sources.data_root / 'math/fewshot_pool.jsonl'
  task = lambda: math_tasks.math_own_exemplars(TaskContext(sources=sources))
  before = _prompt(task(), task().items()[0])
  path.write_text(table.to_text(rows))
  assert _prompt(task(), task().items()[0]) == before
