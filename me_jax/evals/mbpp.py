"""MBPP (Austin et al. 2021), 3-shot: programs that must pass their tests.

Prompts, extraction and categories are those of OpenCompass 0.2.0. What the
model wrote is run, in `context.sandbox` and nowhere else.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from me_jax.data.sources import (
  DataSources,
  HubTable,
  field,
  read_jsonl,
  strings,
)
from me_jax.evals import mbpp_code
from me_jax.evals.generation_task import GenerationTask, Prediction, Reading
from me_jax.evals.prompts import Turn, bot, human
from me_jax.evals.task import Item, TaskContext

CATEGORIES = ('pass', 'wrong_answer', 'timeout', 'failed')

_EXEMPLARS = slice(1, 4)  # task ids 2 to 4
_TEST = slice(10, 510)  # task ids 11 to 510
# Of the turns of the exemplars, in order: first digits of their SHA-256.
_HASHES = (
  '1d64cf050356ad49',
  'eed18fbae4ee14a9',
  '6e4f0fa110ff4c64',
  'a770c225237f3d4f',
  'e96a85a3632619b3',
  '88f67e4b5f599466',
)


def mbpp(context: TaskContext) -> GenerationTask:
  """The 500 test problems; the headline is the share that pass.

  'oc' extracts by the rule of the profile. 'clean' keeps the backslashes that
  'oc-2024-01' deletes; 'oc-2023-12' deletes none and has no 'clean'.
  """
  rows = functools.cache(lambda: read_rows(context.sources))
  exemplars = functools.cache(lambda: exemplar_turns(rows()[_EXEMPLARS]))
  is_2023 = context.settings.profile == 'oc-2023-12'

  def docs() -> list[Item]:
    exemplars()  # a file of other exemplars is refused before any work
    return rows()[_TEST]

  return GenerationTask(
    name='mbpp',
    version='mbpp_gen_1e1056',
    context=context,
    docs=docs,
    doc_to_turns=lambda item: [
      *exemplars(),
      human(question(item.fields['text'], item.fields['test_list'])),
      bot('[BEGIN]\n'),
    ],
    doc_to_target=lambda item: item.fields['code'],
    max_gen_toks=512,
    # In January 2024 a fence may follow that replaces all before it.
    stop_when=(lambda item: mbpp_code.decided) if is_2023 else None,
    readings=_readings(context),
  )


def question(text: str, tests: Sequence[str]) -> str:
  """A problem with its tests, only the first of them indented."""
  return _instruction(text) + ' ' + '\n'.join(tests) + '  \n'


def exemplar_turns(rows: Sequence[Item]) -> list[Turn]:
  """The three solved problems, blanks as OpenCompass has them.

  Raises:
    ValueError: They are not the published ones; names those that differ.
  """
  turns = []
  for index, row in enumerate(rows):
    tests = ''.join(f' {test.rstrip()} \n' for test in row.fields['test_list'])
    if index == 0:
      tests = tests.replace(' \n', '\n', 1)
    turns += [
      human(_instruction(row.fields['text']) + tests),
      bot(f"[BEGIN]\n '{row.fields['code'].rstrip()}' \n[DONE] \n\n "),
    ]
  differ = [
    f'{"the problem" if turn.role == "HUMAN" else "the code"} of task '
    f'{rows[index // 2].id}'
    for index, (turn, want) in enumerate(zip(turns, _HASHES, strict=True))
    if hashlib.sha256(turn.text.encode()).hexdigest()[:16] != want
  ]
  if differ:
    raise ValueError(
      f'mbpp/mbpp.jsonl: {", ".join(differ)} should be as published, line ends '
      '(CRLF) included: they are shown to the model as exemplars. Fetch the '
      'file again.'
    )
  return turns


def read_rows(sources: DataSources) -> list[Item]:
  """All rows of the file, exemplars and test problems among them.

  Raises:
    FileNotFoundError: The file is nowhere.
    ValueError: A record has not the official form, or the first 510 are not
      the tasks 1 to 510; names file and record.
  """
  path = sources.find('mbpp/mbpp.jsonl', hub_table())
  items = [
    _item(record, f'{path}: record {index}')
    for index, record in enumerate(read_jsonl(path))
  ]
  found = [item.id for item in items[: _TEST.stop]]
  wanted = [str(number) for number in range(1, _TEST.stop + 1)]
  if found != wanted:
    raise ValueError(
      f'{path}: expected the tasks 1 to {_TEST.stop} first and in order, found '
      f'{len(items)} rows that begin with {", ".join(found[:5])}. Fetch the '
      'file again.'
    )
  return items


def hub_table() -> HubTable:
  """The file of all splits, by task id."""
  return HubTable(
    repo='google-research-datasets/mbpp',
    config='full',
    split='prompt+test+validation+train',
    to_text=_jsonl,
  )


def _readings(context: TaskContext) -> tuple[Reading, ...]:
  # Two readings mostly extract one program: it is run once.
  run = None
  if context.sandbox is not None:
    run = functools.lru_cache(maxsize=256)(context.sandbox.run)

  def mark(item: Item, code: Prediction) -> Mapping[str, float]:
    if run is None:
      raise ValueError(
        'mbpp: to score an answer is to run a program that a model wrote. '
        'Allow it with --allow_code_execution.'
      )
    outcome = run(code, tuple(item.fields['test_list']))
    return {name: float(outcome.category == name) for name in CATEGORIES}

  def reading(name: str, extract: Callable[[str], str]) -> Reading:
    return Reading(
      name=name, filter=lambda item, text: extract(text), mark=mark
    )

  if context.settings.profile == 'oc-2023-12':
    return (reading('oc', mbpp_code.between_marks),)
  return tuple(
    reading(
      name,
      functools.partial(
        mbpp_code.from_fence_or_marks, keeps_backslashes=name == 'clean'
      ),
    )
    for name in ('oc', 'clean')
  )


def _instruction(text: str) -> str:
  return (
    'You are an expert Python programmer, and here is your task: '
    f'{text} Your code should pass these tests:\n\n'
  )


def _item(record: Mapping[str, Any], where: str) -> Item:
  return Item(
    id=str(field(record, 'task_id', int, where=where)),
    group='test',
    fields={
      'text': field(record, 'text', str, where=where),
      'test_list': list(strings(record, 'test_list', where=where)),
      'code': field(record, 'code', str, where=where),
    },
  )


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
  in_order = sorted(rows, key=lambda row: row['task_id'])
  return ''.join(json.dumps(dict(row)) + '\n' for row in in_order)
