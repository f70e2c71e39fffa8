import json
import math
import pathlib

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.evals import mmlu, mmlu_subjects
from me_jax.typing import ScoreResult

SUBJECT = 'global_facts'


@pytest.fixture
def sources(tmp_path):
  """One subject: five exemplars and two questions, with awkward text."""
  exemplars = [f' Q{i}?,a{i},b{i},c{i},d{i},{"ABCDA"[i]}' for i in range(5)]
  questions = ['"a ""b"",\nc",1,2,3,4,B', 'Long?,w,x,y,z,D']
  for split, rows in (('dev', exemplars), ('test', questions)):
    path = tmp_path / 'mmlu' / split / f'{SUBJECT}_{split}.csv'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(rows) + '\n')
  return folder(tmp_path)


def _task(sources, **kwargs):
  tokenizer = CharTokenizer(**kwargs)
  return mmlu.Mmlu(tokenizer, sources, subjects=(SUBJECT,)), tokenizer


def _result(endings, context=(-1.0, -2.0)):
  return ScoreResult(
    logprobs=tuple(np.array([e], np.float32) for e in endings),
    greedy=tuple(np.zeros(1, np.int32) for _ in endings),
    context_logprobs=np.array(context, np.float32),
  )


def test_prompts_equal_the_vectors(spec_dir):
  vectors = json.loads((spec_dir / 'benchmark_vectors.json').read_text())
  cases = [v for v in vectors['prompts'] if v['task'].startswith('mmlu/')]
  assert cases
  for case in cases:
    fields = case['fields']
    text = mmlu.prompt(
      case['task'].removeprefix('mmlu/'),
      fields['dev'],
      fields['test'],
      fields['scored_label'],
    )
    assert text == case['prompt']


def test_subjects_and_groups():
  sizes = {g: len(s) for g, s in mmlu_subjects.GROUPS.items()}
  assert sizes == {
    'stem': 19,
    'social_science': 12,
    'humanities': 13,
    'other': 13,
  }
  assert len(set(mmlu_subjects.SUBJECTS)) == 57


def test_all_items_of_the_real_data(data_root):
  items = mmlu.Mmlu(CharTokenizer(), folder(data_root)).items()
  assert len(items) == 14_042
  assert len({item.id for item in items}) == 14_042


def test_the_request_is_the_common_prefix_and_the_letters(sources):
  task, tokenizer = _task(sources)
  item = task.items()[0]
  assert item.id == 'global_facts/0'
  request = task.request(item)
  assert request.context[0] == 1
  text = tokenizer.decode(request.context)
  assert text.startswith('The following are multiple choice questions (with ')
  assert text.endswith('A\n\na "b",\nc\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: ')
  assert text.count('Answer:') == 6
  assert [tokenizer.decode(c) for c in request.continuations] == list('ABCD')


@pytest.mark.parametrize(
  ('fits', 'missing', 'shots', 'start'),
  [(5, 0, 5, 'The'), (5, 1, 4, 'The'), (0, 0, 0, 'The'), (0, 1, 0, 'he ')],
)
def test_exemplars_are_dropped_from_the_last_on(
  sources, monkeypatch, fits, missing, shots, start
):
  """The window holds `fits` exemplars but for `missing` tokens."""
  task, tokenizer = _task(sources)
  item = task.items()[1]
  path = sources.find(f'mmlu/dev/{SUBJECT}_dev.csv')
  names = ('input', *'ABCD', 'target')
  rows = [
    dict(zip(names, line.split(','), strict=True))
    for line in path.read_text().splitlines()
  ]
  text = mmlu.prompt(SUBJECT, rows[:fits], item.fields, 'A')
  monkeypatch.setattr(mmlu.prompts, 'WINDOW', 1 + len(text) - missing)
  request = task.request(item)
  text = tokenizer.decode(request.context)
  assert request.context[0] == 1
  assert text.startswith(start)
  assert text.count('Answer:') == shots + 1
  assert [f'Q{i}?' in text for i in range(5)] == [i < shots for i in range(5)]
  assert text.endswith('Answer: ')


def test_scores_divide_by_all_tokens(sources):
  task, _ = _task(sources)
  sample = task.sample(task.items()[0], _result([-4.0, -1.0, -3.0, -2.0]))
  assert sample['resps'] == [7 / 4, 1.0, 6 / 4, 5 / 4]
  assert sample['letter_logprobs'] == [-4.0, -1.0, -3.0, -2.0]
  assert sample['filtered_resps'] == ['B'] and sample['correct']
  assert sample['n_tokens'] == 4
  assert not sample['near_tie'] and not sample['nonfinite']


def test_the_earliest_letter_wins_a_tie(sources):
  task, _ = _task(sources)
  sample = task.sample(task.items()[0], _result([-4.0, -2.0, -2.0, -2.0]))
  assert sample['filtered_resps'] == ['B']
  assert sample['near_tie']


@pytest.mark.parametrize(
  ('endings', 'prediction'),
  [
    ([math.nan] * 4, 'A'),
    ([-math.inf] * 4, 'A'),
    ([math.nan, -1.0, -2.0, -3.0], 'A'),
    ([-2.0, math.nan, -1.0, -3.0], 'C'),
  ],
)
def test_non_finite_scores_are_counted_and_keep_the_first(
  sources, endings, prediction
):
  task, _ = _task(sources)
  sample = task.sample(task.items()[0], _result(endings))
  assert sample['filtered_resps'] == [prediction]
  assert sample['nonfinite'] and not sample['near_tie']
  json.dumps(sample, allow_nan=False)
  metrics = {m.name: m for m in task.aggregate([_named(sample)], complete=True)}
  assert metrics['n_nonfinite'].value == 1


def _named(sample, group=SUBJECT):
  return {**sample, 'group': group}


def _samples(corrects):
  return [
    {
      'group': subject,
      'correct': correct,
      'filtered_resps': ['A'],
      'nonfinite': False,
      'near_tie': False,
    }
    for subject, values in corrects.items()
    for correct in values
  ]


def test_macro_and_weighted_means_differ_by_subject_size():
  corrects = {s: [False] for s in mmlu_subjects.SUBJECTS}
  corrects['virology'] = [True] * 44
  task = mmlu.Mmlu(CharTokenizer(), folder(pathlib.Path()))
  metrics = {
    m.name: m for m in task.aggregate(_samples(corrects), complete=True)
  }
  assert metrics['mmlu'].value == pytest.approx(100 / 57)
  assert metrics['mmlu_weighted'].value == pytest.approx(44.0)
  assert metrics['mmlu_other'].value == pytest.approx(100 / 13)
  assert metrics['mmlu_stem'].value == 0
  assert metrics['mmlu'].n == 100 and metrics['mmlu_other'].n == 56
  assert metrics['predicted_A'].value == 100
  for metric in metrics.values():
    if metric.ci_low is not None:
      assert metric.ci_low <= metric.value <= metric.ci_high


def test_a_missing_subject_is_an_error_only_if_all_were_asked_for():
  corrects = {s: [True] for s in mmlu_subjects.SUBJECTS if s != 'virology'}
  task = mmlu.Mmlu(CharTokenizer(), folder(pathlib.Path()))
  with pytest.raises(ValueError, match='1 of 57 MMLU subjects: virology'):
    task.aggregate(_samples(corrects), complete=True)
  names = [m.name for m in task.aggregate(_samples(corrects), complete=False)]
  assert names[0] == 'mmlu_of_56_subjects'
  assert 'mmlu_other_of_12_subjects' in names and 'mmlu_stem' in names
  assert 'mmlu' not in names and 'mmlu_other' not in names


def test_damaged_files_are_named(sources):
  path = sources.find(f'mmlu/test/{SUBJECT}_test.csv')
  path.write_text('Q?,1,2,3,4,A\nQ?,1,2,3,A\n')
  task, _ = _task(sources)
  with pytest.raises(ValueError, match=r'_test.csv: record 2 should be'):
    task.items()
  path = sources.find(f'mmlu/dev/{SUBJECT}_dev.csv')
  path.write_text('Q?,1,2,3,4,A\n')
  sources.find(f'mmlu/test/{SUBJECT}_test.csv').write_text('Q?,1,2,3,4,A\n')
  with pytest.raises(ValueError, match='expected 5 exemplars'):
    task.request(task.items()[0])
