import json
import math

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.evals import aggregates
from me_jax.evals.cloze_task import ClozeTask
from me_jax.evals.commonsenseqa_cloze import commonsenseqa_cloze
from me_jax.evals.task import Item, TaskContext
from me_jax.typing import ScoreResult

CHOICES = ('ab', 'a' * 40, 'abc')


def _task(choices=CHOICES, window=2048, **changes):
  settings = {
    'name': 'a_cloze',
    'version': '1',
    'context': TaskContext(
      sources=folder(None), tokenizer=CharTokenizer(), window=window
    ),
    'docs': lambda: [
      Item(id=str(i), group='gh'[i % 2], fields={'target': 'xyz'[i % 3]})
      for i in range(6)
    ],
    'doc_to_text': lambda item: f'Q{item.id}:',
    'doc_to_choice': lambda item: choices,
    'doc_to_target': lambda item: item.fields['target'],
    'labels': 'xyz',
  }
  return ClozeTask(**{**settings, **changes})


def _scored(*logprobs):
  return ScoreResult(
    logprobs=tuple(np.array(lp, np.float32) for lp in logprobs),
    greedy=tuple(np.zeros(len(lp), np.int32) for lp in logprobs),
    context_logprobs=None,
    context_length=1,
  )


def _sample(task, item, result):
  answer = task.answer(item, result)
  stored = json.loads(json.dumps(answer, allow_nan=False))
  assert task.score(item, stored) == task.score(item, answer)
  return {'group': item.group, **answer, **task.score(item, answer)}


def test_continuations_are_the_whole_choices():
  """Also where all begin alike."""
  task = _task()
  request = task.request(task.items()[0])
  decode = CharTokenizer().decode
  assert decode(request.context) == 'Q0:'
  assert [decode(c) for c in request.continuations] == [
    f' {choice}' for choice in CHOICES
  ]
  assert not request.score_context


def test_a_token_across_the_border_belongs_to_the_choice():
  class Merging(CharTokenizer):
    def encode(self, text):
      return [
        9 if i == 7 else i for i in super().encode(text.replace(': ', '\4'))
      ]

  context = TaskContext(sources=folder(None), tokenizer=Merging())
  task = _task(('b', 'c'), labels='xy', context=context)
  request = task.request(task.items()[0])
  assert CharTokenizer().decode(request.context) == 'Q0'
  assert request.continuations == ((9, ord('b') + 3), (9, ord('c') + 3))


@pytest.mark.parametrize('window', [43, 44, 45, 46])
def test_a_long_question_is_cut_on_the_left(window):
  task = _task(window=window)
  request = task.request(task.items()[0])
  room = window - len(' ' + CHOICES[1])
  assert len(request.context) == min(room, len('Q0:') + 1)
  assert request.context[0] == 1
  text = CharTokenizer().decode(request.context)
  assert text == 'Q0:'[len('Q0:') - (len(request.context) - 1) :]


def test_a_choice_must_fit_and_have_a_text():
  task = _task(window=41)
  with pytest.raises(ValueError, match="'0' fills the window of 41"):
    task.request(task.items()[0])
  task = _task(('a', '', 'b'))
  with pytest.raises(ValueError, match='a choice without text'):
    task.request(task.items()[0])


def test_three_readings():
  task = _task()
  item = task.items()[0]
  sample = _sample(task, item, _scored([-3.0], [-8.0], [-2.0, -2.0]))
  assert sample['resps'] == [-3, -8, -4]
  assert sample['n_tokens'] == [1, 1, 2]
  assert sample['filtered_resps'] == {
    'per_char': 'y',
    'per_token': 'z',
    'sum': 'x',
  }
  assert sample['target'] == 'x' and not sample['nonfinite']
  metrics = task.aggregate([sample], complete=True)
  assert [(m.name, m.value) for m in metrics] == [
    ('accuracy_per_char', 0),
    ('accuracy_per_token', 0),
    ('accuracy_sum', 100),
    ('predicted_x', 0),
    ('predicted_y', 100),
    ('predicted_z', 0),
    ('n_nonfinite', 0),
  ]


def test_the_first_reading_is_the_headline():
  task = _task(readings=('sum',))
  sample = _sample(task, task.items()[0], _scored([-3.0], [-8.0], [-4.0]))
  names = [m.name for m in task.aggregate([sample], complete=True)]
  assert names[:2] == ['accuracy_sum', 'predicted_x']
  assert list(sample['filtered_resps']) == ['sum']


@pytest.mark.parametrize(
  ('values', 'label'),
  [
    ((math.nan, math.nan, math.nan), 'x'),
    ((-1.0, math.nan, -0.5), 'z'),
    ((-math.inf, -math.inf, -9.0), 'z'),
    ((-2.0, -1.0, -1.0), 'y'),
  ],
)
def test_ties_and_non_finite_scores(values, label):
  """A leading NaN wins, others never do, the first of equals does."""
  task = _task(readings=('sum',))
  sample = _sample(task, task.items()[0], _scored(*[[v] for v in values]))
  assert sample['filtered_resps']['sum'] == label
  assert sample['nonfinite'] == (not np.isfinite(values).all())


def test_a_sum_of_finite_terms_is_taken_in_float64():
  task = _task()
  answer = task.answer(
    task.items()[0], _scored([-1e8, -1.0, -1.0], [-1.0], [-1.0])
  )
  assert answer['resps'][0] == -100000002


def _right(task, item, is_right):
  target = 'xyz'.index(item.fields['target'])
  best = target if is_right else (target + 1) % 3
  values = [[-1.0 if i == best else -99.0] for i in range(3)]
  return _sample(task, item, _scored(*values))


def test_groups_are_averaged_and_the_items_beside_them():
  task = _task(('a', 'b', 'c'), macro_over=('g', 'h'), readings=('sum',))
  items = task.items()
  samples = [
    _right(task, item, i in (0, 1, 2)) for i, item in enumerate(items[:5])
  ]
  macro, weighted, *_ = task.aggregate(samples, complete=True)
  # Group g has items 0, 2, 4, group h items 1 and 3.
  assert macro.name == 'accuracy_sum' and macro.n == 5
  assert macro.value == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
  assert weighted.name == 'accuracy_sum_weighted'
  assert weighted == aggregates.share('accuracy_sum_weighted', 3, 5)


def test_a_missing_group_is_an_error_or_in_the_name():
  task = _task(('a', 'b', 'c'), macro_over=('g', 'h'), readings=('sum',))
  samples = [_right(task, item, True) for item in task.items()[::2]]
  with pytest.raises(ValueError, match='a_cloze: no samples of 1 of 2 .*: h'):
    task.aggregate(samples, complete=True)
  macro = task.aggregate(samples, complete=False)[0]
  assert macro.name == 'accuracy_sum_of_1_groups' and macro.value == 100


def test_commonsenseqa(data_root):
  task = commonsenseqa_cloze(
    TaskContext(sources=folder(data_root), tokenizer=CharTokenizer())
  )
  assert (task.name, task.mode) == ('commonsenseqa_cloze', 'ppl')
  items = task.items()
  assert len(items) == 1221
  request = task.request(items[0])
  decode = CharTokenizer().decode
  assert decode(request.context).endswith('at a what?\nAnswer:')
  assert [decode(c) for c in request.continuations] == [
    ' bank',
    ' library',
    ' department store',
    ' mall',
    ' new york',
  ]
  answer = task.answer(items[0], _scored(*[[-5.0], [-9.0]], *[[-19.0]] * 3))
  score = task.score(items[0], answer)
  assert score['target'] == 'A'
  assert score['filtered_resps'] == {
    'per_char': 'C',
    'per_token': 'A',
    'sum': 'A',
  }
