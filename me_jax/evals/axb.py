"""SuperGLUE's broad-coverage diagnostics, AX-b (Wang et al. 2019), zero-shot.

Prompts and extraction are those of OpenCompass 0.2.0
(`SuperGLUE_AX_b_gen_4dfefa`). Always saying A gives 41.7 % accuracy, always B
58.3 %; Matthews' correlation is 0 for both.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from me_jax.data.sources import DataSources, HubTable, field, read_jsonl
from me_jax.evals import aggregates, axb_patterns, statistics
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn, human
from me_jax.evals.task import Item, Metric, Record, TaskContext

LETTERS = {'entailment': 'A', 'not_entailment': 'B'}
# The classes of the hub's integer labels, in their order.
_HUB_LABELS = ('entailment', 'not_entailment')
_YES_NO = re.compile(r'\W*(yes|no)\b', re.IGNORECASE)


def axb(context: TaskContext) -> GenerationTask:
  """The 1,104 pairs of sentences.

  An answer is never ended early: a pattern of higher rank may still appear.
  """
  profile = context.settings.profile
  mark = lambda item, answer: {'accuracy': answer == item.fields['label']}
  return GenerationTask(
    name='axb',
    version='SuperGLUE_AX_b_gen_4dfefa',
    context=context,
    docs=lambda: read_items(context.sources),
    doc_to_turns=question,
    doc_to_target=lambda item: item.fields['label'],
    max_gen_toks=100,
    readings=(
      Reading(
        name='oc',
        filter=lambda item, text: axb_patterns.find_option(text, profile),
        mark=mark,
      ),
      Reading(
        name='clean', filter=lambda item, text: clean_option(text), mark=mark
      ),
    ),
    extra_metrics=_extra_metrics,
  )


def question(item: Item) -> list[Turn]:
  """Two sentences, and whether the first entails the second."""
  return [
    human(
      f'{item.fields["sentence1"]}\n{item.fields["sentence2"]}\n'
      'Is the sentence below entailed by the sentence above?\n'
      'A. Yes\nB. No\nAnswer:'
    )
  ]


def clean_option(text: str) -> str:
  """A or B if the first word is yes or no, in whatever case and after
  whatever marks; else what the patterns of 2023-12 find, in every profile."""
  found = _YES_NO.match(text)
  if found:
    return 'A' if found[1].lower() == 'yes' else 'B'
  return axb_patterns.find_option(text, 'oc-2023-12')


def matthews(
  samples: Sequence[Record], reading: str, name: str = 'mcc'
) -> Metric:
  """Matthews' correlation of answers and labels, times 100, with a bootstrap
  interval over items.

  No answer counts as a third answer, which is never right (Gorodkin 2004);
  without such the coefficient is that of Matthews (1975). It is 0 where all
  answers, or all labels, are the same.
  """
  cells = [(label, answer) for label in 'AB' for answer in ('A', 'B', '')]
  column = {cell: i for i, cell in enumerate(cells)}
  counts = np.zeros((len(samples), len(cells)))
  for row, sample in enumerate(samples):
    cell = sample['target'], sample['filtered_resps'][reading]
    counts[row, column[cell]] = 1
  low, high = statistics.bootstrap(_correlation, counts)
  return Metric(
    name=name,
    value=100 * float(_correlation(counts.sum(axis=0, keepdims=True))[0]),
    n=len(samples),
    ci_low=100 * low,
    ci_high=100 * high,
  )


def _correlation(totals: np.ndarray) -> np.ndarray:
  """From counts [draws, label x answer] to coefficients [draws]."""
  table = totals.reshape(-1, 2, 3).astype(np.float64)
  n = table.sum(axis=(1, 2))
  labels, answers = table.sum(axis=2), table.sum(axis=1)
  right = table[:, 0, 0] + table[:, 1, 1]
  common = right * n - (labels * answers[:, :2]).sum(axis=1)
  spread = (n**2 - (labels**2).sum(axis=1)) * (n**2 - (answers**2).sum(axis=1))
  return np.divide(
    common, np.sqrt(spread), out=np.zeros_like(common), where=spread > 0
  )


def _extra_metrics(samples: Sequence[Record]) -> list[Metric]:
  return [
    matthews(samples, 'oc'),
    matthews(samples, 'clean', 'mcc_clean'),
    *aggregates.spread(samples, 'AB', 'oc'),
  ]


def hub_table() -> HubTable:
  """The public copy of the file."""
  return HubTable(
    repo='aps/super_glue', config='axb', split='test', to_text=_jsonl
  )


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
  lines = []
  for row in rows:
    if row['label'] not in range(len(_HUB_LABELS)):
      raise ValueError(
        f'aps/super_glue, axb: row {row["idx"]} has the label '
        f'{row["label"]!r}, expected 0 (entailment) or 1 (not_entailment)'
      )
    record = {
      'idx': str(row['idx']),
      'label': _HUB_LABELS[row['label']],
      'sentence1': row['sentence1'],
      'sentence2': row['sentence2'],
    }
    lines.append(json.dumps(record, ensure_ascii=False) + '\n')
  return ''.join(lines)


def read_items(sources: DataSources) -> list[Item]:
  """The pairs in file order, one group.

  Raises:
    FileNotFoundError: The file is nowhere.
    ValueError: A record has not the official form; names file and record.
  """
  path = sources.find('superglue_axb/AX-b.jsonl', hub_table())
  return [
    _item(record, f'{path}: record {index}')
    for index, record in enumerate(read_jsonl(path))
  ]


def _item(record: Mapping[str, Any], where: str) -> Item:
  label = field(record, 'label', str, where=where)
  if label not in LETTERS:
    raise ValueError(
      f'{where}: expected the label {" or ".join(LETTERS)}, found {label!r}.'
    )
  return Item(
    id=str(field(record, 'idx', (str, int), where=where)),
    group='test',
    fields={
      'sentence1': field(record, 'sentence1', str, where=where),
      'sentence2': field(record, 'sentence2', str, where=where),
      'label': LETTERS[label],
    },
  )
