from collections import Counter

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.evals import sst2_icl
from me_jax.evals.task import Item, TaskContext
from me_jax.typing import ScoreResult

TRAIN = [('bad film', 0), ('dull', 0), ('fine', 1), ('a joy ', 1)]
DEV = [('it works ', 1), ('no', 0), ('never again', 0)]


def _write(root, split, rows, header='sentence\tlabel'):
  path = root / 'sst2' / f'{split}.tsv'
  path.parent.mkdir(exist_ok=True)
  lines = [header, *(f'{sentence}\t{label}' for sentence, label in rows)]
  path.write_text('\n'.join(lines) + '\n')


@pytest.fixture
def task(tmp_path):
  _write(tmp_path, 'train_10000', TRAIN)
  _write(tmp_path, 'dev', DEV)
  return _task(tmp_path)


def _task(root):
  return sst2_icl.sst2_icl(
    TaskContext(sources=folder(root), tokenizer=CharTokenizer())
  )


def test_the_prompt_is_that_of_the_saliency_analysis(golden):
  for sample in golden('saliency.json')['samples']:
    *shots, query, end = sample['text'].split('Review: ')[1:] + ['']
    item = Item(
      id='0',
      group='dev',
      fields={
        'demonstrations': [
          shot.rstrip('\n').split('\nSentiment: ') for shot in shots
        ],
        'sentence': query.removesuffix('\nSentiment:'),
        'label': 'positive',
      },
    )
    assert len(shots) == 2 and not end
    assert sst2_icl.prompt(item) == sample['text']


def test_the_real_data(data_root):
  items = _task(data_root).items()
  assert len(items) == 872 and len({item.id for item in items}) == 872
  assert items[0].fields['sentence'] == (
    "it 's a charming and often affecting journey ."
  )
  labels = Counter(item.fields['label'] for item in items)
  assert labels == {'positive': 444, 'negative': 428}
  train = dict(sst2_icl.read_examples(folder(data_root), 'train_10000'))
  drawn = [tuple(d) for i in items for d in i.fields['demonstrations']]
  assert all(train[sentence] == label for sentence, label in drawn)
  # Drawn from the whole file: of 1,744 few are drawn twice.
  assert len(set(drawn)) > 1500


def test_a_request_scores_the_two_label_words(task):
  item = task.items()[0]
  request = task.request(item)
  decode = CharTokenizer().decode
  assert decode(request.context) == sst2_icl.prompt(item)
  assert decode(request.context).endswith('\nReview: it works\nSentiment:')
  assert [decode(c) for c in request.continuations] == [
    ' negative',
    ' positive',
  ]


def test_demonstrations_are_one_of_each_class_in_a_fixed_order(task):
  orders, drawn = set(), set()
  by_label = {
    'negative': [(str(i), 'negative') for i in range(5)],
    'positive': [(str(i), 'positive') for i in range(5)],
  }
  for item_id in map(str, range(300)):
    shots = sst2_icl.draw(by_label, item_id, 42)
    assert shots == sst2_icl.draw(by_label, item_id, 42)
    orders.add(tuple(label for _, label in shots))
    drawn.add(tuple(sorted(shots)))
  assert len(orders) == 1 and len(drawn) == 25
  seeds = [
    tuple(label for _, label in sst2_icl.draw(by_label, '0', seed))
    for seed in range(42, 62)
  ]
  assert set(seeds) == {('negative', 'positive'), ('positive', 'negative')}


def test_the_likelier_word_is_the_answer(task):
  samples = []
  for item, gap in zip(task.items(), (1, -1, 1), strict=True):
    result = ScoreResult(
      logprobs=tuple(np.float32([x]) for x in (-5, -5 + gap)),
      greedy=(np.zeros(1, np.int32),) * 2,
      context_logprobs=None,
      context_length=1,
    )
    answer = task.answer(item, result)
    samples.append({'group': 'dev', **answer, **task.score(item, answer)})
  metrics = {m.name: m.value for m in task.aggregate(samples, complete=True)}
  assert list(metrics) == [
    'accuracy_sum',
    'predicted_negative',
    'predicted_positive',
    'n_nonfinite',
  ]
  assert metrics['accuracy_sum'] == pytest.approx(200 / 3)
  assert metrics['predicted_positive'] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
  ('split', 'rows', 'message'),
  [
    ('dev', [('fine', 2)], r'dev.tsv:2: expected a sentence, a tab and 0 or 1'),
    ('dev', [('ok', 1), ('', 1)], 'dev.tsv:3: expected a sentence'),
    ('dev', [], 'dev.tsv: expected the header .* and 0'),
    ('train_10000', [('fine', 1)], 'no negative sentence to demonstrate'),
  ],
)
def test_damaged_files_are_named(task, split, rows, message):
  root = task.context.sources.data_root
  _write(root, split, rows)
  with pytest.raises(ValueError, match=message):
    task.items()


def test_other_formats_are_refused(task):
  root = task.context.sources.data_root
  _write(root, 'dev', DEV, header='label,sentence')
  with pytest.raises(ValueError, match="found 'label,sentence'"):
    task.items()
  (root / 'sst2' / 'dev.tsv').write_bytes(b'sentence\tlabel\n\xff\t1\n')
  with pytest.raises(ValueError, match='not UTF-8 text at byte 15'):
    task.items()


def test_hub_rows_become_the_file(data_root):
  text = (data_root / 'sst2' / 'dev.tsv').read_text()
  rows = [
    {'idx': i, 'sentence': sentence, 'label': int(label)}
    for i, (sentence, label) in enumerate(
      line.split('\t') for line in text.splitlines()[1:]
    )
  ]
  table = sst2_icl.hub_table('dev')
  assert (table.repo, table.split) == ('stanfordnlp/sst2', 'validation')
  assert table.to_text(rows) == text
  assert sst2_icl.hub_table('train_10000').split == 'train[:10000]'
