"""Rows as the hub gives them must become the official files."""

import csv
import json

from evals_fakes import folder

from me_jax.evals import commonsenseqa, hub_tables


def test_mmlu_rows_become_the_csv(data_root):
  path = data_root / 'mmlu' / 'dev' / 'formal_logic_dev.csv'
  with open(path, newline='', encoding='utf-8') as f:
    official = list(csv.reader(f))
  rows = [
    {'question': q, 'choices': choices, 'answer': 'ABCD'.index(answer)}
    for q, *choices, answer in official
  ]
  table = hub_tables.mmlu('formal_logic', 'dev')
  assert (table.config, table.split) == ('formal_logic', 'dev')
  text = table.to_text(rows)
  assert list(csv.reader(text.splitlines(keepends=True))) == official


def test_commonsenseqa_rows_become_the_json_lines(data_root, tmp_path):
  path = data_root / 'commonsenseqa' / 'dev_rand_split.jsonl'
  rows = []
  for record in map(json.loads, path.read_text().splitlines()):
    choices = record['question']['choices']
    rows.append(
      {
        'id': record['id'],
        'question': record['question']['stem'],
        'question_concept': record['question']['question_concept'],
        'choices': {k: [c[k] for c in choices] for k in ('label', 'text')},
        'answerKey': record['answerKey'],
      }
    )
  table = hub_tables.commonsenseqa('dev')
  assert table.split == 'validation'
  (tmp_path / 'commonsenseqa').mkdir()
  (tmp_path / 'commonsenseqa' / path.name).write_text(table.to_text(rows))
  assert commonsenseqa.read_items(
    folder(tmp_path), 'dev'
  ) == commonsenseqa.read_items(folder(data_root), 'dev')


def test_wikitext_rows_become_the_raw_file(data_root):
  text = (data_root / 'wikitext' / 'wiki.test.raw').read_bytes().decode()
  lines = [line + '\n' for line in text.split('\n')[:-1]]
  rows = [{'text': line if line.strip() else ''} for line in lines]
  assert hub_tables.wikitext_test().to_text(rows) == text
