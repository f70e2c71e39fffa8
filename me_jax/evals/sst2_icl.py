"""SST-2 (Socher et al. 2013), sentiment learnt in context.

Prompt and demonstrations are those of Wang et al. 2023, *Label Words are
Anchors*, with lower-case label words, which are single tokens for LLaMA: one
training sentence of each class, drawn anew for each test sentence, the classes
always in the same order. The likelier of ` positive` and ` negative` is the
answer.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from me_jax.data.sources import DataSources, HubTable
from me_jax.evals.cloze_task import ClozeTask
from me_jax.evals.task import Item, TaskContext

LABELS = ('negative', 'positive')  # 0 and 1 in the files
SEED = 42  # the first of the reference's

Example = tuple[str, str]  # sentence, label word

_HEADER = 'sentence\tlabel'


def sst2_icl(context: TaskContext) -> ClozeTask:
  """The 872 sentences of the development split."""
  version = f'icl_2_shot_seed_{SEED}'
  if not context.sources.is_local('sst2/train_10000.tsv'):
    version += ', train of the hub'
  return ClozeTask(
    name='sst2_icl',
    version=version,
    context=context,
    docs=lambda: read_items(context.sources, SEED),
    doc_to_text=prompt,
    doc_to_choice=lambda item: LABELS,
    doc_to_target=lambda item: item.fields['label'],
    labels=LABELS,
    # Both words have eight characters, and each is what the other is not.
    readings=('sum',),
  )


def prompt(item: Item) -> str:
  """The demonstrations with their labels, then the sentence without."""
  return '\n'.join(
    [
      *(
        f'Review: {sentence}\nSentiment: {label}'
        for sentence, label in item.fields['demonstrations']
      ),
      f'Review: {item.fields["sentence"]}\nSentiment:',
    ]
  )


def read_items(sources: DataSources, seed: int) -> list[Item]:
  """The development split with its demonstrations, one group.

  Raises:
    FileNotFoundError: A file is nowhere.
    ValueError: A line has not the official form, or a class has no training
      sentence; names the file.
  """
  train = read_examples(sources, 'train_10000')
  by_label = {
    label: [example for example in train if example[1] == label]
    for label in LABELS
  }
  missing = [label for label, found in by_label.items() if not found]
  if missing:
    raise ValueError(
      f'sst2/train_10000.tsv: no {" and no ".join(missing)} sentence to '
      'demonstrate with. Restore the file.'
    )
  return [
    Item(
      id=str(index),
      group='dev',
      fields={
        'sentence': sentence,
        'label': label,
        'demonstrations': [
          list(example) for example in draw(by_label, str(index), seed)
        ],
      },
    )
    for index, (sentence, label) in enumerate(read_examples(sources, 'dev'))
  ]


def draw(
  by_label: Mapping[str, Sequence[Example]], item_id: str, seed: int
) -> list[Example]:
  """One example of each class, for this item; their order is the seed's."""

  def number(text: str) -> int:
    digest = hashlib.sha256(f'{seed}:{text}'.encode()).digest()
    return int.from_bytes(digest, 'big')

  return [
    by_label[label][number(f'{item_id}:{label}') % len(by_label[label])]
    for label in sorted(by_label, key=number)
  ]


def read_examples(sources: DataSources, split: str) -> list[Example]:
  """Stripped sentences with their label words, in file order.

  The 10,000 training sentences of `train_10000.tsv` are not the first 10,000
  that the hub has and that stand in for them: demonstrations differ, and the
  task's version says so.

  Args:
    sources: Where `sst2/` is.
    split: 'dev' or 'train_10000'.

  Raises:
    FileNotFoundError: The file is nowhere.
    ValueError: A line has not the official form; names file and line.
  """
  path = sources.find(f'sst2/{split}.tsv', hub_table(split))
  header, *lines = _text(path).rstrip('\n').split('\n')
  if header != _HEADER or not lines:
    raise ValueError(
      f'{path}: expected the header {_HEADER!r} and lines below it, found '
      f'{header!r:.60} and {len(lines)}. Restore the file.'
    )
  examples = []
  for number, line in enumerate(lines, start=2):
    sentence, tab, label = line.partition('\t')
    if not tab or not sentence.strip() or label not in ('0', '1'):
      raise ValueError(
        f'{path}:{number}: expected a sentence, a tab and 0 or 1, found '
        f'{line!r:.80}. Restore the file.'
      )
    examples.append((sentence.strip(), LABELS[int(label)]))
  return examples


def hub_table(split: str) -> HubTable:
  """One file of SST-2; `split` is 'dev' or 'train_10000'."""
  return HubTable(
    repo='stanfordnlp/sst2',
    split={'dev': 'validation', 'train_10000': 'train[:10000]'}[split],
    to_text=_tsv,
  )


def _tsv(rows: Iterable[Mapping[str, Any]]) -> str:
  lines = [f'{row["sentence"]}\t{row["label"]}' for row in rows]
  return '\n'.join([_HEADER, *lines, ''])


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path}: not UTF-8 text at byte {e.start}: {e.reason}. Restore the file.'
    ) from e
