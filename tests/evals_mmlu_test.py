import hashlib
import json
import math
import pathlib

import numpy as np
import pytest
from evals_fakes import (
  CharTokenizer,
  FakePredictor,
  folder,
  sample_of,
  task_context,
)

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


def _task(sources, tokenizer=None, **settings):
  context = task_context(sources, tokenizer, **settings)
  return mmlu.Mmlu(context=context, subjects=(SUBJECT,))


def _result(endings, context=(-1.0, -2.0), context_length=3):
  """Four letters after a context; None for one that was not scored."""
  return ScoreResult(
    logprobs=tuple(np.array([e], np.float32) for e in endings),
    greedy=tuple(np.zeros(1, np.int32) for _ in endings),
    context_logprobs=None if context is None else np.array(context, np.float32),
    context_length=context_length,
  )


@pytest.mark.parametrize('is_chat', [False, True])
def test_prompts_equal_the_vectors(spec_dir, is_chat):
  """Chat models read the same plain text."""
  vectors = json.loads((spec_dir / 'benchmark_vectors.json').read_text())
  model = 'chat' if is_chat else 'base'
  cases = [
    v
    for v in vectors['prompts']
    if v['task'].startswith('mmlu/') and v['model'] == model
  ]
  assert cases
  for case in cases:
    fields = case['fields']
    text = mmlu.prompt(
      case['task'].removeprefix('mmlu/'),
      fields['dev'],
      fields['test'],
      fields['scored_label'],
    )
    assert text == case['prompt'] and len(text) == case['chars']
    assert hashlib.sha256(text.encode()).hexdigest() == case['sha256']


def test_requests_are_the_same_for_base_and_chat(sources):
  plain, chat = (_task(sources, is_chat=value) for value in (False, True))
  for item in plain.items():
    assert plain.request(item) == chat.request(item)


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
  items = mmlu.mmlu(task_context(folder(data_root))).items()
  assert len(items) == 14_042
  assert len({item.id for item in items}) == 14_042


@pytest.mark.parametrize('one_forward', [True, False])
def test_the_request_is_the_common_prefix_and_the_letters(sources, one_forward):
  task, tokenizer = _task(sources, one_forward=one_forward), CharTokenizer()
  item = task.items()[0]
  assert item.id == 'global_facts/0'
  request = task.request(item)
  assert request.context[0] == 1
  text = tokenizer.decode(request.context)
  assert text.startswith('The following are multiple choice questions (with ')
  assert text.endswith('A\n\na "b",\nc\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: ')
  assert text.count('Answer:') == 6
  assert [tokenizer.decode(c) for c in request.continuations] == list('ABCD')
  assert request.score_context == (not one_forward)


class LongB(CharTokenizer):
  """The last letter of a text is two tokens if it is a B."""

  def encode(self, text):
    return [*super().encode(text), *([9] if text.endswith('B') else [])]


@pytest.mark.parametrize('tokenizer', ['a longer letter', 'fewer exemplars'])
def test_texts_that_differ_in_more_than_a_letter_are_scored_whole(
  sources, tokenizer
):
  """Also where one of them alone has lost an exemplar."""
  window = 2048
  if tokenizer == 'fewer exemplars':
    item = _task(sources).items()[1]
    whole = _task(sources, LongB(), window=10_000).request(item)
    window = len(whole.context) + 1  # B needs one more
  task = _task(sources, LongB(), window=window)
  request = task.request(task.items()[1])
  assert request.score_context
  lengths = [len(c) for c in request.continuations]
  if tokenizer == 'a longer letter':
    assert lengths == [1, 2, 1, 1]
  else:
    # Of B alone the fifth exemplar is gone.
    a, b, c, d = lengths
    assert a == c == d > b > 1
  # Its two tokens and the whole context count.
  predictor = FakePredictor()
  [(_, result)] = predictor.score(None, [request])
  answer = task.answer(item=task.items()[1], result=result)
  texts = [len(request.context) + n for n in lengths]
  expected = [
    -float((result.context_logprobs.sum(dtype=np.float64) + lp.sum()) / n)
    for lp, n in zip(result.logprobs, texts, strict=True)
  ]
  assert answer['resps'] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
  ('fits', 'missing', 'shots', 'start'),
  [(5, 0, 5, 'The'), (5, 1, 4, 'The'), (0, 0, 0, 'The'), (0, 1, 0, 'he ')],
)
def test_exemplars_are_dropped_from_the_last_on(
  sources, fits, missing, shots, start
):
  """The window holds `fits` exemplars but for `missing` tokens."""
  item = _task(sources).items()[1]
  path = sources.find(f'mmlu/dev/{SUBJECT}_dev.csv')
  names = ('input', *'ABCD', 'target')
  rows = [
    dict(zip(names, line.split(','), strict=True))
    for line in path.read_text().splitlines()
  ]
  text = mmlu.prompt(SUBJECT, rows[:fits], item.fields, 'A')
  request = _task(sources, window=1 + len(text) - missing).request(item)
  text = CharTokenizer().decode(request.context)
  assert request.context[0] == 1
  assert text.startswith(start)
  assert text.count('Answer:') == shots + 1
  assert [f'Q{i}?' in text for i in range(5)] == [i < shots for i in range(5)]
  assert text.endswith('Answer: ')


def test_scores_divide_by_all_tokens(sources):
  task = _task(sources, one_forward=False)
  result = _result([-4.0, -1.0, -3.0, -2.0])
  sample = sample_of(task, task.items()[0], result)
  assert sample['resps'] == [7 / 4, 1.0, 6 / 4, 5 / 4]
  assert sample['letter_logprobs'] == [-4.0, -1.0, -3.0, -2.0]
  assert sample['filtered_resps'] == {'oc': 'B'}
  assert sample['target'] == 'B' and sample['metrics'] == {'accuracy': 1}
  assert sample['n_tokens'] == 4
  assert not sample['near_tie'] and not sample['nonfinite']


def test_one_forward_differs_by_what_all_scores_share(sources):
  task, item = _task(sources), _task(sources).items()[0]
  endings = [-4.0, -1.0, -3.0, -2.0]
  short = sample_of(task, item, _result(endings, context=None))
  whole = sample_of(task, item, _result(endings))
  assert short['resps'] == [1.0, 1 / 4, 3 / 4, 2 / 4]
  differences = np.subtract(whole['resps'], short['resps'])
  assert differences == pytest.approx([3 / 4] * 4, rel=1e-12)
  for name in ('filtered_resps', 'letter_logprobs', 'n_tokens', 'near_tie'):
    assert short[name] == whole[name]


@pytest.mark.parametrize('context', [(-1.0, -2.0), None])
def test_near_ties_are_told_by_the_score(sources, context):
  """Per token of the text: 4e-4 nats of the letter are 1e-4 of the score."""
  task, item = _task(sources), _task(sources).items()[0]
  found = [
    task.answer(item, _result([-1.0, -1.0 - gap, -9.0, -9.0], context))
    for gap in (3e-4, 5e-4)
  ]
  assert [answer['near_tie'] for answer in found] == [True, False]


@pytest.mark.parametrize('context', [(-1.0, -2.0), None])
def test_the_earliest_letter_wins_a_tie(sources, context):
  task = _task(sources)
  result = _result([-4.0, -2.0, -2.0, -2.0], context)
  sample = sample_of(task, task.items()[0], result)
  assert sample['filtered_resps'] == {'oc': 'B'}
  assert sample['near_tie']


@pytest.mark.parametrize('context', [(-1.0, -2.0), None])
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
  sources, endings, prediction, context
):
  task = _task(sources)
  sample = sample_of(task, task.items()[0], _result(endings, context))
  assert sample['filtered_resps'] == {'oc': prediction}
  assert sample['nonfinite'] and not sample['near_tie']
  metrics = {m.name: m for m in task.aggregate([sample], complete=True)}
  assert metrics['n_nonfinite'].value == 1


def _samples(corrects):
  return [
    {
      'group': subject,
      'metrics': {'accuracy': float(correct)},
      'filtered_resps': {'oc': 'A'},
      'nonfinite': False,
      'near_tie': False,
    }
    for subject, values in corrects.items()
    for correct in values
  ]


def test_macro_and_weighted_means_differ_by_subject_size():
  corrects = {s: [False] for s in mmlu_subjects.SUBJECTS}
  corrects['virology'] = [True] * 44
  task = mmlu.mmlu(task_context(folder(pathlib.Path())))
  metrics = {
    m.name: m for m in task.aggregate(_samples(corrects), complete=True)
  }
  assert next(iter(metrics)) == 'mmlu'
  assert metrics['mmlu'].value == pytest.approx(100 / 57)
  assert metrics['mmlu_weighted'].value == pytest.approx(44.0)
  assert metrics['mmlu_other'].value == pytest.approx(100 / 13)
  assert metrics['mmlu_stem'].value == 0
  assert metrics['mmlu'].n == 100 and metrics['mmlu_other'].n == 56
  assert metrics['accuracy_virology'].value == 100
  assert metrics['accuracy_virology'].n == 44
  assert metrics['accuracy_anatomy'].value == 0
  assert metrics['predicted_A'].value == 100
  for metric in metrics.values():
    if metric.ci_low is not None:
      assert metric.ci_low <= metric.value <= metric.ci_high


def test_a_missing_subject_is_an_error_only_if_all_were_asked_for():
  corrects = {s: [True] for s in mmlu_subjects.SUBJECTS if s != 'virology'}
  task = mmlu.mmlu(task_context(folder(pathlib.Path())))
  with pytest.raises(ValueError, match='mmlu: .* 1 of 57 groups: virology'):
    task.aggregate(_samples(corrects), complete=True)
  names = [m.name for m in task.aggregate(_samples(corrects), complete=False)]
  assert names[0] == 'mmlu_of_56_subjects'
  assert 'mmlu_other_of_12_subjects' in names and 'mmlu_stem' in names
  assert 'mmlu' not in names and 'mmlu_other' not in names
  assert 'accuracy_virology' not in names and 'accuracy_anatomy' in names


def test_damaged_files_are_named(sources):
  path = sources.find(f'mmlu/test/{SUBJECT}_test.csv')
  path.write_text('Q?,1,2,3,4,A\nQ?,1,2,3,A\n')
  task = _task(sources)
  with pytest.raises(ValueError, match=r'_test.csv: record 2 should be'):
    task.items()
  path = sources.find(f'mmlu/dev/{SUBJECT}_dev.csv')
  path.write_text('Q?,1,2,3,4,A\n')
  sources.find(f'mmlu/test/{SUBJECT}_test.csv').write_text('Q?,1,2,3,4,A\n')
  with pytest.raises(ValueError, match='expected 5 exemplars'):
    task.request(task.items()[0])
