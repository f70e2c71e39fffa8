"""C3 (Sun et al. 2020), the questions about dialogues, zero-shot.

Prompts and extraction are those of OpenCompass 0.2.0 (`CLUE_C3_gen_8c358f`),
whose file has the 1,825 questions of the dialogues, not all 3,816 of the
development set.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from me_jax import files
from me_jax.data.sources import DataSources, HubTable, field, strings
from me_jax.evals import aggregates, letters
from me_jax.evals.generation_task import GenerationTask
from me_jax.evals.prompts import Turn, human
from me_jax.evals.task import Item, TaskContext

LETTERS = 'ABCD'
# The hub has the dialogues first, then the other texts, numbered in one row.
_DIALOGUES = 1628
# Of the canonical JSON of [lines, questions] of all dialogues.
_SHA256 = 'b1f4692ab0b4e0afbb60382b0631a95a4e46f88e45108271f8daf53e6ae74592'


def c3(context: TaskContext) -> GenerationTask:
  """The 1,825 questions about dialogues of the development split."""
  return GenerationTask(
    name='c3',
    version='CLUE_C3_gen_8c358f',
    context=context,
    docs=lambda: read_items(context.sources),
    doc_to_turns=question,
    doc_to_target=lambda item: item.fields['label'],
    max_gen_toks=100,
    stop_when=letters.capital_decided(LETTERS),
    readings=letters.capital_readings(LETTERS, 'label'),
    extra_metrics=lambda samples: aggregates.spread(samples, LETTERS, 'oc'),
  )


def question(item: Item) -> list[Turn]:
  """The dialogue, the question, and always four choices."""
  options = '\n'.join(
    f'{letter}. {choice}'
    for letter, choice in zip(LETTERS, item.fields['choices'], strict=True)
  )
  return [
    human(
      f'{item.fields["content"]}\n问：{item.fields["question"]}\n{options}\n'
      '请从“A”，“B”，“C”，“D”中进行选择。\n答：'
    )
  ]


def hub_table() -> HubTable:
  """The dialogues of the public copy of the development set."""
  return HubTable(
    repo='clue/clue', config='c3', split='validation', to_text=_dialogues
  )


def _dialogues(rows: Iterable[Mapping[str, Any]]) -> str:
  """The file of the dialogues; their official ids are not on the hub.

  Raises:
    ValueError: They are not the official ones, letter by letter.
  """
  documents: dict[int, tuple[list, list]] = {}
  for row in rows:
    if row['id'] < _DIALOGUES:
      _, questions = documents.setdefault(row['id'], (list(row['context']), []))
      questions.append(
        {
          'question': row['question'],
          'choice': list(row['choice']),
          'answer': row['answer'],
        }
      )
  content = files.canonical_json([documents[i] for i in sorted(documents)])
  digest = hashlib.sha256(content.encode()).hexdigest()
  if digest != _SHA256:
    raise ValueError(
      f'the first {_DIALOGUES} texts of clue/clue, c3, are not the official '
      f'dialogues: SHA-256 {digest[:16]}, expected {_SHA256[:16]}. Take '
      'c3-d-dev.json from the repository nlpdata/c3'
    )
  return json.dumps(
    [[*documents[i], str(i)] for i in sorted(documents)], ensure_ascii=False
  )


def read_items(sources: DataSources) -> list[Item]:
  """The questions in file order, one group; an id is 'dialogue/question', by
  position.

  Raises:
    FileNotFoundError: The file is nowhere.
    ValueError: A record has not the official form; names file and record.
  """
  path = sources.find('c3/c3-d-dev.json', hub_table())
  try:
    entries = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{path}: not valid JSON: {e}. Restore the file.') from e
  if not isinstance(entries, list) or not entries:
    raise ValueError(f'{path}: expected a list of dialogues.')
  return [
    item
    for index, entry in enumerate(entries)
    for item in _items(entry, index, f'{path}: record {index}')
  ]


def _items(entry: Any, index: int, where: str) -> list[Item]:
  if not isinstance(entry, list) or len(entry) != 3:
    raise ValueError(
      f'{where}: expected [lines, questions, id], found {entry!r:.60}.'
    )
  record = {'lines': entry[0], 'questions': entry[1]}
  content = ''.join(strings(record, 'lines', where=where))
  questions = field(record, 'questions', list, where=where)
  return [
    _item(content, q, f'{index}/{number}', f'{where}: question {number}')
    for number, q in enumerate(questions)
  ]


def _item(content: str, record: Any, id: str, where: str) -> Item:
  if not isinstance(record, dict):
    raise ValueError(f'{where}: expected an object, found {record!r:.60}.')
  choices = strings(record, 'choice', where=where)
  answer = field(record, 'answer', str, where=where)
  if not 2 <= len(choices) <= len(LETTERS) or answer not in choices:
    raise ValueError(
      f'{where}: expected two to four choices with the answer among them, '
      f'found {choices} and {answer!r}.'
    )
  return Item(
    id=id,
    group='dialogue',
    fields={
      'content': content,
      'question': field(record, 'question', str, where=where),
      # What is not there is offered all the same, as OpenCompass does.
      'choices': [*choices, *['[NULL]'] * (len(LETTERS) - len(choices))],
      'label': LETTERS[choices.index(answer)],
    },
  )
