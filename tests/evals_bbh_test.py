import hashlib
import json
import random

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.data.sources import DataSources
from me_jax.evals import bbh
from me_jax.evals.bbh_tasks import CHOICE, FREE_FORM, TASKS
from me_jax.evals.task import Item, TaskContext
from me_jax.typing import GenerateResult

_NOWHERE = DataSources(allow_hub=False)
_OPTIONS = '\nOptions:\n(A) one\n(B) two\n(C) three'


def _item(kind, target='(B)'):
  task = {CHOICE: 'snarks', FREE_FORM: 'navigate'}[kind]
  fields = {'input': f'Which?{_OPTIONS}', 'target': target, 'options': 'ABC'}
  return Item(id=f'{task}/0', group=task, fields=fields)


def _task(**context):
  return bbh.bbh(TaskContext(**context))


def _read(name, kind, text):
  readings = {r.name: r for r in _task(sources=_NOWHERE).readings}
  return readings[name].filter(_item(kind), text)


def _vectors(spec_dir):
  return json.loads((spec_dir / 'benchmark_vectors.json').read_text())


@pytest.mark.parametrize('model', ['base', 'chat'])
def test_prompts_equal_the_vectors(spec_dir, data_root, model):
  task = _task(sources=folder(data_root), is_chat=model == 'chat')
  seen = set()
  for case in _vectors(spec_dir)['prompts']:
    benchmark, _, name = case['task'].partition('/')
    if benchmark != 'bbh' or case['model'] != model:
      continue
    item = Item(id='0', group=name, fields=case['fields'])
    text = task.prompt(item, task.fewshot(item))
    assert len(text) == case['chars']
    assert hashlib.sha256(text.encode()).hexdigest() == case['sha256']
    seen.add(name)
  assert seen == set(TASKS)


@pytest.mark.parametrize(
  ('kind', 'rows'), [(CHOICE, 'bbh_choice'), (FREE_FORM, 'bbh_free')]
)
def test_extraction_equals_the_vectors(spec_dir, kind, rows):
  cases = _vectors(spec_dir)[rows]
  assert cases
  for text, expected in cases:
    assert _read('oc', kind, text) == expected


@pytest.mark.parametrize(
  ('kind', 'text', 'expected'),
  [
    (CHOICE, 'First (A). So the answer is: (B). Q: (C)', 'B'),
    (CHOICE, 'So the answer is (C). So the answer is (A).', 'C'),
    (CHOICE, 'The option that fits is B.', 'B'),
    (CHOICE, 'The answer is Bank (C)', 'C'),
    (CHOICE, 'So the answer is D or B', 'B'),
    (CHOICE, 'So the answer is Ann', 'Ann'),
    (FREE_FORM, 'So the answer is: no.\n\nQ: x', 'no'),
    (FREE_FORM, 'So the answer is yes.\n\nQ: the answer is: no.', 'yes'),
    (FREE_FORM, 'no mark', 'no mark'),
    (FREE_FORM, 'the answer is', 'the answer is'),
  ],
)
def test_the_clean_reading(kind, text, expected):
  assert _read('clean', kind, text) == expected


def test_the_real_data(data_root):
  task = _task(sources=folder(data_root))
  items = task.items()
  assert len({item.id for item in items}) == len(items) == 6511
  for name, known in TASKS.items():
    members = [item for item in items if item.group == name]
    assert len(members) == known.n_items
    # Raises if the exemplars are not the published ones.
    assert bbh.read_exemplars(folder(data_root), name).count('\nQ: ') == 3
  assert items[0].id == 'boolean_expressions/0'
  assert sum(known.kind == CHOICE for known in TASKS.values()) == 17


def test_targets_are_right_in_both_readings(data_root):
  task = _task(sources=folder(data_root))
  lost = {'accuracy': set(), 'accuracy_clean': set()}
  for item in task.items():
    target = item.fields['target']
    text = f'First (A), no. So the answer is {target}.\n\nQ: And this?'
    sample = task.score(item, {'resps': [text]})
    for name, value in sample['metrics'].items():
      if value != 1:
        lost[name].add(target)
    wrong = task.score(item, {'resps': ['So the answer is (Z).']})
    assert set(wrong['metrics'].values()) == {0}
  # Targets of choices that are no letters: what follows is read with them.
  odd = {'dearth, wind, & fire', 'rita, sue and bob poo'}
  assert lost == {'accuracy': odd, 'accuracy_clean': odd | {'Monsters, Inc'}}


@pytest.mark.parametrize(
  ('kind', 'target', 'text', 'oc', 'clean'),
  [
    (CHOICE, '(B)', 'answer is (B).', 1, 1),
    (CHOICE, '(B)', 'The right one is B.', 0, 1),
    (CHOICE, '(B)', 'answer is: (B) and not (A)', 1, 1),
    (CHOICE, 'Monsters, Inc', 'answer is Monsters, Inc', 1, 1),
    (CHOICE, 'Monsters, Inc', 'answer is (M)', 1, 0),
    (FREE_FORM, 'No', 'answer is No.', 1, 1),
    (FREE_FORM, 'No', 'answer is no.', 0, 1),
    (FREE_FORM, 'No', 'answer is: No', 0, 1),
    (FREE_FORM, 'No', '', 0, 0),
  ],
)
def test_marks(kind, target, text, oc, clean):
  sample = _task(sources=_NOWHERE).score(_item(kind, target), {'resps': [text]})
  assert sample['metrics'] == {'accuracy': oc, 'accuracy_clean': clean}
  assert sample['target'] == target


_FRAGMENTS = (
  *('answer is ', 'answer is', 'answer is:', 'answer ', 'ans', ' is ', 'er is'),
  *(':', '(A)', '(', '(B', 'B', 'C', 'x', '\n', '\n\n', '.', ' ', '7', 'Q:'),
  *('no', 'True', '\t', '\u3000', 'é', ')', 'final answer', '$'),
)


@pytest.mark.parametrize('kind', [CHOICE, FREE_FORM])
def test_a_decided_text_never_changes_its_answer(kind):
  rng = random.Random(0)
  glue = lambda n: ''.join(rng.choice(_FRAGMENTS) for _ in range(n))
  item, task = _item(kind), _task(sources=_NOWHERE)
  decided = task.stop_when(item)
  n_decided = 0
  for _ in range(3000):
    text = glue(rng.randint(0, 4)) + 'answer is ' + glue(rng.randint(0, 9))
    end = next((e for e in range(len(text) + 1) if decided(text[:e])), None)
    if end is None:
      continue
    n_decided += 1
    longer = [text, *(text[:end] + glue(4) for _ in range(3))]
    for reading in task.readings:
      read = {reading.filter(item, t) for t in longer}
      assert read == {reading.filter(item, text[:end])}
    assert all(decided(t) for t in longer)
  assert n_decided > 800


@pytest.mark.parametrize(
  ('kind', 'text', 'expected'),
  [
    (CHOICE, 'It is (A). So the answer is ', False),
    (CHOICE, 'So the answer is (A', True),
    (CHOICE, 'So the answer is: (A)', False),
    (CHOICE, 'So the answer is B.\nQ', False),
    (CHOICE, 'The answer is no. The answer is ', True),
    (FREE_FORM, 'So the answer is no.', False),
    (FREE_FORM, 'So the answer is no.\n\n', False),
    (FREE_FORM, 'So the answer is no.\n\nQ', True),
    (FREE_FORM, 'So the answer is no.\nanswer is', False),
    (FREE_FORM, 'So the answer is \n\nno.\n', False),
    (FREE_FORM, 'no\nno\nno', False),
  ],
)
def test_when_an_answer_is_decided(kind, text, expected):
  stop_when = _task(sources=_NOWHERE).stop_when
  assert stop_when(_item(kind))(text) is expected


def test_a_long_prompt_is_cut_on_the_left(data_root):
  tokenizer = CharTokenizer()
  task = _task(sources=folder(data_root), tokenizer=tokenizer)
  item = task.items()[0]
  request = task.request(item)
  assert request.max_new_tokens == 512
  assert len(request.prompt) == 2048 - 512 and request.prompt[0] == 1
  text = tokenizer.decode(request.prompt)
  assert task.prompt(item, ()).endswith(text)
  assert text.endswith(
    f"\n\nQ: {item.fields['input']}\nA: Let's think step by step."
  )


def _samples(task, names):
  samples = []
  for i, name in enumerate(names):
    for right in (True, i % 2 == 0):
      fields = {'input': '', 'target': '(A)', 'options': 'AB'}
      item = Item(id=f'{name}/{right}', group=name, fields=fields)
      result = GenerateResult(
        tokens=np.zeros(1, np.int32),
        text=f'So the answer is {"(A)" if right else "(B)"}',
        stop_reason='eos',
      )
      answer = task.answer(item, result)
      samples.append({'group': name, **answer, **task.score(item, answer)})
  return samples


def test_the_headline_is_the_mean_over_tasks():
  task = _task(sources=_NOWHERE)
  metrics = task.aggregate(_samples(task, TASKS), complete=True)
  values = {m.name: m.value for m in metrics}
  assert metrics[0].name == 'accuracy'
  assert metrics[0].value == pytest.approx(100 * (14 + 13 / 2) / 27)
  assert values['accuracy_boolean_expressions'] == 100
  assert values['accuracy_causal_judgement'] == 50


def test_a_missing_task_is_named():
  task = _task(sources=_NOWHERE)
  names = [name for name in TASKS if name != 'snarks']
  with pytest.raises(ValueError, match='1 of 27 groups: snarks'):
    task.aggregate(_samples(task, names), complete=True)


def _write(root, name, content):
  path = root / 'bbh' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def test_missing_exemplars_say_where_they_are_published(tmp_path):
  with pytest.raises(FileNotFoundError) as info:
    bbh.read_exemplars(folder(tmp_path), 'snarks')
  for name in ('bbh/cot-prompts/snarks.txt', 'suzgunmirac/BIG-Bench-Hard'):
    assert name in str(info.value)


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    (b'sarcastic', b'ironic', 'exemplars of snarks'),
    (b'\n', b'\r\n', 'no such line'),
    (b'-----\n', b'', 'no such line'),
  ],
)
def test_other_exemplars_are_refused(data_root, tmp_path, old, new, message):
  name = 'cot-prompts/snarks.txt'
  content = (data_root / 'bbh' / name).read_bytes()
  assert old in content
  _write(tmp_path, name, content.replace(old, new))
  with pytest.raises(ValueError, match=message):
    bbh.read_exemplars(folder(tmp_path), 'snarks')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{', 'not valid JSON'),
    (b'[]', "object with the field 'examples', found list"),
    (b'{"examples": []}', 'no examples'),
    (b'{"examples": [{"input": "x"}]}', "example 0: no field 'target'"),
    (b'{"examples": ["x"]}', 'example 0: expected an object, found str'),
  ],
)
def test_damaged_files_are_named(tmp_path, content, message):
  _write(tmp_path, 'boolean_expressions.json', content)
  with pytest.raises(ValueError, match=message) as info:
    bbh.read_items(folder(tmp_path))
  assert 'boolean_expressions.json' in str(info.value)


def test_a_choice_without_options_is_refused(tmp_path, data_root):
  for name in TASKS:
    _write(
      tmp_path,
      f'{name}.json',
      b'{"examples": [{"input": "Which?", "target": "(A)"}]}',
    )
  with pytest.raises(ValueError, match='date_understanding offers a choice'):
    bbh.read_items(folder(tmp_path))


def test_hub_rows_become_the_file(data_root, tmp_path):
  for name in TASKS:
    path = data_root / 'bbh' / f'{name}.json'
    table = bbh.hub_table(name)
    assert (table.config, table.split) == (name, 'test')
    rows = json.loads(path.read_text())['examples']
    _write(tmp_path, path.name, table.to_text(rows).encode())
  assert bbh.read_items(folder(tmp_path)) == bbh.read_items(folder(data_root))
