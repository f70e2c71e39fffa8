import json
import random
import re
import time

import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.config import EvalConfig
from me_jax.evals import axb, axb_patterns
from me_jax.evals.axb import read_items
from me_jax.evals.task import Item, TaskContext, fingerprint

PROFILES = ('oc-2023-12', 'oc-2024-01')


def _task(root, profile='oc-2023-12', is_chat=False):
  return axb.axb(
    TaskContext(
      sources=folder(root),
      tokenizer=CharTokenizer(),
      settings=EvalConfig(profile=profile),
      is_chat=is_chat,
    )
  )


def _item(label='A', **fields):
  return Item(id='0', group='test', fields={'label': label, **fields})


def _write(root, **changes):
  record = {
    'idx': '0',
    'label': 'entailment',
    'sentence1': 'S one.',
    'sentence2': 'S two.',
    'logic': '',
  }
  path = root / 'superglue_axb' / 'AX-b.jsonl'
  path.parent.mkdir(exist_ok=True)
  records = [record, {**record, 'idx': '1', **changes}]
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


def _vectors(spec_dir):
  return json.loads((spec_dir / 'benchmark_vectors.json').read_text())


@pytest.mark.parametrize('is_chat', [False, True])
def test_prompts_equal_the_vectors(spec_dir, tmp_path, is_chat):
  model = 'chat' if is_chat else 'base'
  [case] = [
    v
    for v in _vectors(spec_dir)['prompts']
    if v['task'] == 'ax_b' and v['model'] == model
  ]
  task, item = _task(tmp_path, is_chat=is_chat), _item(**case['fields'])
  assert task.prompt(item, task.fewshot(item)) == case['prompt']


@pytest.mark.parametrize('profile', PROFILES)
def test_extraction_equals_the_vectors(spec_dir, tmp_path, profile):
  cases = _vectors(spec_dir)['first_option_AB'][profile]
  assert cases
  task = _task(tmp_path, profile)
  for text, expected in cases:
    score = task.score(_item(), {'resps': [text]})
    assert score['filtered_resps']['oc'] == expected, text
    assert score['metrics']['accuracy'] == (expected == 'A')


# The four patterns that are not searched for as they stand.
_PLAIN = {
  29: r'答案是\s?\S+(。|$)',
  30: r'答案应该是\s?\S+(。|$)',
  31: r'答案为\s?\S+(。|$)',
  41: r'1.\s?.*?$',
}


@pytest.mark.parametrize('number', _PLAIN)
def test_fast_patterns_find_what_the_plain_ones_find(number):
  rng = random.Random(number)
  plain, fast = re.compile(_PLAIN[number]), axb_patterns._PATTERNS[number]
  pieces = {
    41: ['1', '1', '\n', '\n', ' ', '\r', 'A', 'B'],
    29: ['答案是', '答案是', '。', ' ', '\n', 'A', 'B', '答', '案是'],
    30: ['答案应该是', '答案应该是', '。', ' ', '\n', 'A', 'B', '是'],
    31: ['答案为', '答案为', '。', ' ', '\n', 'A', 'B', '答案'],
  }[number]
  hits = 0
  for _ in range(4000):
    text = ''.join(rng.choices(pieces, k=rng.randrange(12)))
    match = plain.search(text)
    assert fast(text) == (match[0] if match else ''), repr(text)
    hits += match is not None
  assert 400 < hits < 3950


def test_every_pattern_is_tried_in_its_order():
  assert axb_patterns._ORDER['oc-2024-01'] == tuple(range(1, 44))
  old = axb_patterns._ORDER['oc-2023-12']
  assert len(old) == 41
  assert sorted(old) == [n for n in range(1, 44) if n not in (37, 38)]


@pytest.mark.parametrize(
  ('number', 'text', 'found'),
  [
    (1, '答案 B', '答案 B'),
    (4, '答案应是B', '答案应是B'),
    (9, '只有选项 A 是对', '只有选项 A 是对'),
    (13, '说法对的是B', '说法对的是B'),
    (20, '1. B。\n', '1. B。'),
    (23, 'so\nB,', '\nB,'),
    (23, 'so (B', ''),
    (24, '，故A。', '，故A。'),
    (26, '为 B.', '为 B.'),
    (36, 'the answer to the question is A', None),
    (37, '\n选项A', ''),
    (38, 'B选项', 'B选项'),
    (39, 'B$', 'B$'),
    (40, 'no\nA', '\nA'),
    (42, 'xB:', 'B:'),
  ],
)
def test_single_patterns(number, text, found):
  expected = text if found is None else found
  assert axb_patterns._PATTERNS[number](text) == expected


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize(
  ('piece', 'tail'),
  [
    ('1', '\n\n\nx'),
    ('1. ', '\n\nx'),
    ('1.\n', '\n\n'),
    ('答案是', ' \n\n'),
    ('答案是 ', '\n\n'),
    ('答案为x。', ''),
    ('答案应该是', 'x x'),
    (' ', ''),
    ('。 ', ''),
    ('the answer is ', ''),
  ],
)
def test_hostile_texts_are_searched_in_linear_time(piece, tail, profile):
  text = piece * (40_000 // len(piece)) + tail
  start = time.process_time()
  assert axb_patterns.find_option(text, profile) == ''
  assert axb.clean_option(text) == ''
  # Both take some 10 ms, what is quadratic several seconds.
  assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
  ('text', 'clean', 'oc'),
  [
    ('Yes', 'A', ''),
    ('\n**no**, it is not', 'B', ''),
    (' YES. B', 'A', 'B'),
    ('No\nA. Yes', 'B', 'A'),
    ('Nobody', '', ''),
    ('Yesterday B', 'B', 'B'),
    ('Is it? Yes', '', ''),
    ('A. Yes', 'A', 'A'),
    ('', '', ''),
  ],
)
def test_clean_reads_a_leading_yes_or_no(tmp_path, text, clean, oc):
  score = _task(tmp_path).score(_item('B'), {'resps': [text]})
  assert score['filtered_resps'] == {'oc': oc, 'clean': clean}
  assert score['metrics'] == {
    'accuracy': float(oc == 'B'),
    'accuracy_clean': float(clean == 'B'),
  }


def test_clean_is_the_same_in_both_profiles(tmp_path):
  text = '1. A or B. The answer is B because'
  found = [
    _task(tmp_path, profile).score(_item(), {'resps': [text]})['filtered_resps']
    for profile in PROFILES
  ]
  assert found == [{'oc': 'A', 'clean': 'A'}, {'oc': 'B', 'clean': 'A'}]


def test_answers_are_never_ended_early(tmp_path):
  _write(tmp_path)
  task = _task(tmp_path)
  request = task.request(task.items()[0])
  assert request.decided is None and request.max_new_tokens == 100


def _samples(pairs):
  return [
    {
      'group': 'test',
      'target': target,
      'filtered_resps': {'oc': answer, 'clean': target},
      'metrics': {
        'accuracy': float(target == answer),
        'accuracy_clean': 1.0,
      },
      'nonfinite': False,
    }
    for target, answer in pairs
  ]


def test_matthews_is_that_of_the_two_by_two_table():
  # tp 6, fn 2, fp 1, tn 3
  pairs = [('A', 'A')] * 6 + [('A', 'B')] * 2 + [('B', 'A')] + [('B', 'B')] * 3
  metric = axb.matthews(_samples(pairs), 'oc')
  expected = 100 * (6 * 3 - 1 * 2) / (8 * 4 * 7 * 5) ** 0.5
  assert metric.value == pytest.approx(expected, rel=1e-12)
  assert metric.n == 12 and metric.name == 'mcc'
  assert -100 < metric.ci_low < metric.value < metric.ci_high <= 100


def test_matthews_with_missing_answers():
  """Three classes, by hand: 3 of 5 right, labels 3 and 2, answers 2, 2, 1."""
  pairs = [('A', 'A'), ('A', 'A'), ('A', ''), ('B', 'B'), ('A', 'B')]
  value = axb.matthews(_samples(pairs), 'oc').value
  common = 3 * 5 - (4 * 2 + 1 * 2)
  spread = (25 - 16 - 1) * (25 - 4 - 4 - 1)
  assert value == pytest.approx(100 * common / spread**0.5, rel=1e-12)


@pytest.mark.parametrize('answer', ['A', 'B', ''])
def test_matthews_of_one_answer_for_all_is_zero(answer):
  pairs = [('A', answer)] * 4 + [('B', answer)] * 6
  metric = axb.matthews(_samples(pairs), 'oc')
  assert (metric.value, metric.ci_low, metric.ci_high) == (0, 0, 0)


def test_aggregate(tmp_path):
  pairs = [('A', 'A'), ('A', 'B'), ('B', 'B'), ('B', '')]
  metrics = _task(tmp_path).aggregate(_samples(pairs), complete=True)
  values = {m.name: m.value for m in metrics}
  assert metrics[0].name == 'accuracy'
  assert values == {
    'accuracy': 50,
    'accuracy_clean': 100,
    'mcc': values['mcc'],
    'mcc_clean': pytest.approx(100, rel=1e-12),
    'predicted_A': 25,
    'predicted_B': 50,
    'predicted_empty': 25,
    'n_nonfinite': 0,
  }


def test_the_real_data(data_root):
  task = _task(data_root)
  items = task.items()
  assert len({item.id for item in items}) == len(items) == 1104
  labels = [item.fields['label'] for item in items]
  assert (labels.count('A'), labels.count('B')) == (460, 644)
  assert task.prompt(items[0], ()) == (
    'The cat sat on the mat.\nThe cat did not sit on the mat.\n'
    'Is the sentence below entailed by the sentence above?\n'
    'A. Yes\nB. No\nAnswer:'
  )
  assert len(fingerprint(task)) == 16


def test_hub_rows_become_the_file(data_root, tmp_path):
  path = data_root / 'superglue_axb' / 'AX-b.jsonl'
  rows = [
    {
      'idx': int(record['idx']),
      'sentence1': record['sentence1'],
      'sentence2': record['sentence2'],
      'label': ['entailment', 'not_entailment'].index(record['label']),
    }
    for record in map(json.loads, path.read_text().splitlines())
  ]
  table = axb.hub_table()
  assert (table.repo, table.config) == ('aps/super_glue', 'axb')
  (tmp_path / 'superglue_axb').mkdir()
  (tmp_path / 'superglue_axb' / 'AX-b.jsonl').write_text(table.to_text(rows))
  assert read_items(folder(tmp_path)) == read_items(folder(data_root))
  with pytest.raises(ValueError, match='row 0 has the label -1, expected 0'):
    table.to_text([{**rows[0], 'label': -1}])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'label': 'neutral'}, 'entailment or not_entailment, found .neutral'),
    ({'label': 0}, "'label' must be str"),
    ({'sentence2': None}, "'sentence2' must be str"),
    ({'idx': None}, "'idx' must be str or int"),
  ],
)
def test_damaged_records_are_named(tmp_path, changes, message):
  _write(tmp_path, **changes)
  with pytest.raises(ValueError, match=message) as info:
    _task(tmp_path).items()
  assert 'AX-b.jsonl: record 1' in str(info.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='superglue_axb/AX-b.jsonl'):
    _task(tmp_path).items()
