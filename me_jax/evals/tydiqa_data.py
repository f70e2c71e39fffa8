"""The questions of TyDiQA: OpenCompass's files, and the official ones."""

import collections
import json
from collections.abc import Iterable, Mapping
from typing import Any

from me_jax.data.sources import DataSources, HubTable, field, read_jsonl
from me_jax.evals.task import Item
from me_jax.evals.tydiqa_languages import LANGUAGES

OFFICIAL = tuple(name for name in LANGUAGES if LANGUAGES[name].official)
# Of Japanese and Thai only the sum is known.
COUNTS: Mapping[tuple[str, ...], int] = {
  **{(name,): LANGUAGES[name].official for name in OFFICIAL},
  ('japanese', 'thai'): 1245,
}


def read_items(
  sources: DataSources, counts: Mapping[tuple[str, ...], int] = COUNTS
) -> list[Item]:
  """OpenCompass's questions, language after language.

  Raises:
    FileNotFoundError: Names every language whose file is nowhere.
    ValueError: A record has not the expected form, or the questions are not
      as many as `counts` says; names what is wrong.
  """
  asked = {name for names in counts for name in names}
  paths, missing = {}, {}
  for name in LANGUAGES:
    if name in asked:
      try:
        paths[name] = sources.find(f'tydiqa/dev/{name}-dev.jsonl')
      except FileNotFoundError as e:
        missing[name] = e
  if missing:
    raise FileNotFoundError(
      f'The task tydiqa needs {len(asked)} files of the data that OpenCompass '
      'distributes. Missing are '
      + ', '.join(f'tydiqa/dev/{name}-dev.jsonl' for name in missing)
      + '. For the nine languages of the public data set there is the task '
      f'tydiqa_goldp. {next(iter(missing.values()))}'
    )
  items = [
    _item(record, name, f'{name}/{index}', f'{path}: record {index}')
    for name, path in paths.items()
    for index, record in enumerate(read_jsonl(path))
  ]
  found = collections.Counter(item.group for item in items)
  wrong = [
    f'{total} in {" and ".join(names)}, found {sum(found[n] for n in names)}'
    for names, total in counts.items()
    if sum(found[n] for n in names) != total
  ]
  if wrong:
    raise ValueError(
      'tydiqa: the questions below tydiqa/dev are not those that OpenCompass '
      f'asks: expected {"; ".join(wrong)}. Take the files of its archive.'
    )
  return items


def read_goldp_items(sources: DataSources) -> list[Item]:
  """The official questions, language after language.

  Files with a hundred questions of each language (`-dev_100.jsonl`) are taken
  if there is one of the first language; then there must be one of each.

  Raises:
    FileNotFoundError: A file is nowhere.
    ValueError: A record has not the expected form; names file and record.
  """
  sample = [f'tydiqa_goldp/{name}-dev_100.jsonl' for name in OFFICIAL]
  if _has(sources, sample[0]):
    paths = [sources.find(file) for file in sample]
  else:
    paths = [
      sources.find(f'tydiqa_goldp/{name}-dev.jsonl', hub_table(name))
      for name in OFFICIAL
    ]
  items = []
  for name, path in zip(OFFICIAL, paths, strict=True):
    for index, record in enumerate(read_jsonl(path)):
      where = f'{path}: record {index}'
      id = field(record, 'id', str, where=where)
      items.append(_item(record, name, id, where, 'context', 'question'))
  return items


def _has(sources: DataSources, file: str) -> bool:
  try:
    sources.find(file)
  except FileNotFoundError:
    return False
  return True


def _item(
  record: Mapping[str, Any],
  language: str,
  id: str,
  where: str,
  passage: str = 'passage_text',
  question: str = 'question_text',
) -> Item:
  """`passage` and `question` are the names of the fields that hold them."""
  answers = []
  for answer in field(record, 'answers', list, where=where):
    if not isinstance(answer, dict):
      raise ValueError(
        f'{where}: expected answers with a text, found {answer!r:.60}.'
      )
    answers.append(field(answer, 'text', str, where=where))
  if not answers:
    raise ValueError(f'{where}: expected at least one answer, found none.')
  return Item(
    id=id,
    group=language,
    fields={
      'passage': field(record, passage, str, where=where),
      'question': field(record, question, str, where=where),
      'answers': list(dict.fromkeys(answers)),
    },
  )


def hub_table(language: str) -> HubTable:
  """The official questions in one language; their ids begin with its name."""

  def to_text(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [_line(row) for row in rows if row['id'].startswith(f'{language}-')]
    expected = LANGUAGES[language].official
    if len(lines) != expected:
      raise ValueError(
        f'expected {expected} questions in {language}, found {len(lines)}'
      )
    return ''.join(lines)

  return HubTable(
    repo='google-research-datasets/tydiqa',
    config='secondary_task',
    split='validation',
    to_text=to_text,
  )


def _line(row: Mapping[str, Any]) -> str:
  record = {
    'id': row['id'],
    'title': row['title'],
    'context': row['context'],
    'question': row['question'],
    'answers': [
      {'text': text, 'answer_start': start}
      for text, start in zip(
        row['answers']['text'], row['answers']['answer_start'], strict=True
      )
    ],
  }
  return json.dumps(record, ensure_ascii=False) + '\n'
