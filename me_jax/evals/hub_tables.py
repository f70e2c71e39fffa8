"""The public copies of the benchmarks, as the files that they stand for.

Asked only where no local file is found.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from me_jax.data.sources import HubTable

_Rows = Iterable[Mapping[str, Any]]


def mmlu(subject: str, split: str) -> HubTable:
  """One CSV file of MMLU; `split` is 'dev' or 'test'."""
  return HubTable(
    repo='cais/mmlu', config=subject, split=split, to_text=_mmlu_csv
  )


def commonsenseqa(split: str) -> HubTable:
  """One JSON-lines file of CommonsenseQA; `split` is 'dev' or 'train'."""
  return HubTable(
    repo='tau/commonsense_qa',
    split={'dev': 'validation', 'train': 'train'}[split],
    to_text=_commonsenseqa_jsonl,
  )


def wikitext_test() -> HubTable:
  """`wiki.test.raw` of WikiText-2."""
  return HubTable(
    repo='Salesforce/wikitext',
    config='wikitext-2-raw-v1',
    split='test',
    # The hub's rows are lines; blank ones lost their blank and newline.
    to_text=lambda rows: ''.join(row['text'] or ' \n' for row in rows),
  )


def _mmlu_csv(rows: _Rows) -> str:
  text = io.StringIO(newline='')
  writer = csv.writer(text, lineterminator='\n')
  for row in rows:
    writer.writerow([row['question'], *row['choices'], 'ABCD'[row['answer']]])
  return text.getvalue()


def _commonsenseqa_jsonl(rows: _Rows) -> str:
  lines = []
  for row in rows:
    choices = row['choices']
    record = {
      'answerKey': row['answerKey'],
      'id': row['id'],
      'question': {
        'stem': row['question'],
        'choices': [
          {'label': label, 'text': text}
          for label, text in zip(choices['label'], choices['text'], strict=True)
        ],
      },
    }
    lines.append(json.dumps(record, ensure_ascii=False) + '\n')
  return ''.join(lines)
