import csv

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.evals.mmlu_cloze import mmlu_cloze
from me_jax.evals.mmlu_subjects import SUBJECTS
from me_jax.evals.task import TaskContext
from me_jax.typing import ScoreResult


def _task(root):
  return mmlu_cloze(
    TaskContext(sources=folder(root), tokenizer=CharTokenizer())
  )


@pytest.fixture
def task(tmp_path):
  """Two questions a subject; the answer to all is B."""
  (tmp_path / 'mmlu' / 'test').mkdir(parents=True)
  for subject in SUBJECTS:
    path = tmp_path / 'mmlu' / 'test' / f'{subject}_test.csv'
    with open(path, 'w', newline='', encoding='utf-8') as f:
      csv.writer(f).writerows(
        [f' {subject}? ', 'the a', 'the b ', 'the cc', 'the d', 'B']
        for _ in range(2)
      )
  return _task(tmp_path)


def _samples(task, items, choose):
  """`choose` gives the index of the likeliest choice."""
  samples = []
  for item in items:
    values = [-9.0] * 4
    values[choose(item)] = -1.0
    result = ScoreResult(
      logprobs=tuple(np.float32([v]) for v in values),
      greedy=(np.zeros(1, np.int32),) * 4,
      context_logprobs=None,
      context_length=1,
    )
    answer = task.answer(item, result)
    score = task.score(item, answer)
    samples.append({'group': item.group, **answer, **score})
  return samples


def test_the_real_data(data_root):
  task = _task(data_root)
  items = task.items()
  assert len(items) == 14042
  assert {item.group for item in items} == set(SUBJECTS)
  assert all(text for item in items for text in task.doc_to_choice(item))
  item = next(item for item in items if item.id == 'astronomy/0')
  request = task.request(item)
  text = CharTokenizer().decode(request.context)
  assert text == f'Question: {item.fields["input"].strip()}\nAnswer:'
  assert len(request.continuations) == 4


def test_options_are_not_shown_and_choices_are_scored_whole(task):
  item = task.items()[0]
  request = task.request(item)
  decode = CharTokenizer().decode
  assert decode(request.context) == f'Question: {item.group}?\nAnswer:'
  assert [decode(c) for c in request.continuations] == [
    ' the a',
    ' the b',
    ' the cc',
    ' the d',
  ]


def test_the_headline_is_the_mean_over_subjects(task):
  items = task.items()
  chosen = [item for item in items if item.group != 'virology'] + [
    next(item for item in items if item.group == 'virology')
  ]
  samples = _samples(task, chosen, lambda item: int(item.group == 'virology'))
  metrics = task.aggregate(samples, complete=True)
  values = {m.name: m.value for m in metrics}
  assert [m.name for m in metrics][:6] == [
    'accuracy_per_char',
    'accuracy_per_token',
    'accuracy_sum',
    'accuracy_per_char_weighted',
    'accuracy_per_token_weighted',
    'accuracy_sum_weighted',
  ]
  assert values['accuracy_per_char'] == pytest.approx(100 / 57)
  assert values['accuracy_per_char_weighted'] == pytest.approx(100 / 113)
  assert values['predicted_A'] == pytest.approx(100 * 112 / 113)
  assert metrics[0].n == 113


def test_a_missing_subject_is_named(task):
  items = [item for item in task.items() if item.group != 'virology']
  samples = _samples(task, items, lambda item: 1)
  with pytest.raises(ValueError, match='mmlu_cloze: no samples of 1 of 57'):
    task.aggregate(samples, complete=True)
  headline = task.aggregate(samples, complete=False)[0]
  assert headline.name == 'accuracy_per_char_of_56_groups'
