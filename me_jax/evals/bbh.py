"""BIG-Bench Hard (Suzgun et al. 2022), 3-shot chain of thought, by generation.

Prompts, extraction and the mean over tasks are those of OpenCompass 0.2.0,
configuration `bbh_gen_5b92b0`.
"""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from me_jax.data.sources import DataSources, HubTable, field
from me_jax.evals import aggregates, letters
from me_jax.evals.bbh_tasks import CHOICE, TASKS
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn, human
from me_jax.evals.task import Item, Metric, Record, TaskContext

OPTIONS = tuple('ABCDEFGHIJKLMNOPQR')  # as many as a question has

_OC_MARK = re.compile('answer is ')
_CLEAN_MARK = re.compile('answer is[ :]')
_IN_PARENTHESES = re.compile(r'\(([A-Z])')
_CAPITAL = re.compile('[A-Z]')
_OPTION = re.compile(r'^\(([A-Z])\)', re.MULTILINE)


def bbh(context: TaskContext) -> GenerationTask:
  """The 6,511 items of the 27 tasks."""
  exemplars = functools.cache(
    lambda task: read_exemplars(context.sources, task)
  )
  return GenerationTask(
    name='bbh',
    version='bbh_gen_5b92b0',
    context=context,
    docs=lambda: read_items(context.sources),
    doc_to_turns=lambda item: _question(exemplars(item.group), item),
    doc_to_target=lambda item: item.fields['target'],
    max_gen_toks=512,
    stop_when=_stop_when,
    readings=(
      Reading(
        name='oc',
        filter=_read_oc,
        mark=lambda item, answer: {'accuracy': answer == _oc_target(item)},
      ),
      Reading(name='clean', filter=_read_clean, mark=_mark_clean),
    ),
    macro_over=tuple(TASKS),
    extra_metrics=_letters,
  )


def _letters(samples: Sequence[Record]) -> list[Metric]:
  """Which options were chosen in the tasks that have some, and how often what
  was read is none."""
  chosen = [s for s in samples if TASKS[s['group']].kind == CHOICE]
  if not chosen:
    return []
  found = aggregates.spread(chosen, OPTIONS, 'oc')
  others = sum(s['filtered_resps']['oc'] not in OPTIONS for s in chosen)
  return [
    *found,
    aggregates.share('predicted_no_option', others, len(chosen)),
  ]


def choice(text: str) -> str:
  """The option that a text chooses, as OpenCompass reads it.

  That is the first capital after an opening parenthesis, else the first
  capital, else all there is; where the text says 'answer is ', of what is
  between that and the next 'answer is '.
  """
  piece = _piece(text, _OC_MARK)
  found = _IN_PARENTHESES.search(piece)
  if found:
    return found[1]
  found = _CAPITAL.search(piece)
  return found[0] if found else piece


def free_form(text: str) -> str:
  """The first line after 'answer is ', or of the text, as OpenCompass reads
  it; without a full stop at its end."""
  return _first_line(_piece(text, _OC_MARK))


def _is_choice(item: Item) -> bool:
  return TASKS[item.group].kind == CHOICE


def _read_oc(item: Item, text: str) -> str:
  return choice(text) if _is_choice(item) else free_form(text)


def _oc_target(item: Item) -> str:
  target = item.fields['target']
  return choice(target) if _is_choice(item) else target


def _read_clean(item: Item, text: str) -> str:
  """Also after 'answer is:'; a letter without parentheses must be one of the
  item's options and stand alone."""
  piece = _piece(text, _CLEAN_MARK)
  if not _is_choice(item):
    return _first_line(piece)
  found = _IN_PARENTHESES.search(piece)
  if found:
    return found[1]
  return letters.first_option(piece, item.fields['options']) or piece


def _mark_clean(item: Item, answer: str) -> Mapping[str, float]:
  target = item.fields['target']
  if _is_choice(item):
    is_right = answer == _read_clean(item, target)
  else:
    is_right = answer.casefold() == target.casefold()
  return {'accuracy': float(is_right)}


def _piece(text: str, mark: re.Pattern[str]) -> str:
  """What is between the first two marks, trimmed; all of it if there is
  none."""
  pieces = mark.split(text, maxsplit=2)
  return pieces[1].strip() if len(pieces) > 1 else text


def _first_line(text: str) -> str:
  return text.partition('\n')[0].removesuffix('.')


def _stop_when(item: Item) -> Callable[[str], bool]:
  # Every mark of the first reading is one of the clean reading, so what is
  # decided for the first is decided for both.
  return _choice_decided if _is_choice(item) else _free_form_decided


def _choice_decided(text: str) -> bool:
  """A letter in parentheses, which no other can precede, or a second mark,
  after which nothing counts."""
  _, *pieces = _OC_MARK.split(text, maxsplit=2)
  if len(pieces) != 1:
    return len(pieces) == 2
  return _IN_PARENTHESES.search(pieces[0]) is not None


def _free_form_decided(text: str) -> bool:
  """A line and something on later ones, which may not turn out to be a second
  mark: then the end of the line is the end of the piece, and trimmed. Or a
  second mark."""
  _, *pieces = _OC_MARK.split(text, maxsplit=2)
  if len(pieces) != 1:
    return len(pieces) == 2
  later = pieces[0].lstrip().partition('\n')[2].strip()
  # Both marks begin so; the next character tells whether it is one.
  return later != '' and not 'answer is '.startswith(later)


def _question(exemplars: str, item: Item) -> list[Turn]:
  return [
    human(
      'Follow the given examples and answer the question.\n'
      f'{exemplars}\n\nQ: {item.fields["input"]}\n'
      "A: Let's think step by step."
    )
  ]


def read_exemplars(sources: DataSources, task: str) -> str:
  """The three worked examples of `task`, to the byte.

  Raises:
    FileNotFoundError: The file is nowhere; says where it is published.
    ValueError: It is not the published text; names the task.
  """
  name = f'bbh/cot-prompts/{task}.txt'
  try:
    path = sources.find(name)
  except FileNotFoundError as e:
    raise FileNotFoundError(
      f'{e} It is cot-prompts/{task}.txt of the public repository '
      'suzgunmirac/BIG-Bench-Hard; copy that folder to <root>/bbh/cot-prompts.'
    ) from e
  # Not read_text, which would change line ends.
  content = path.read_bytes()
  _, line, text = content.partition(b'-----\n')
  found = hashlib.sha256(text).hexdigest()[:12]
  expected = TASKS[task].prompt_hash
  if not line or found != expected:
    raise ValueError(
      f'{path}: the exemplars of {task}, which are all that follows the line '
      f'-----, should have the SHA-256 {expected}..., found '
      f'{found if line else "no such line"}. Restore the file from the public '
      'repository suzgunmirac/BIG-Bench-Hard, without changing line ends.'
    )
  return text.decode('utf-8')


def read_items(sources: DataSources) -> list[Item]:
  """The items of all tasks; ids are `task/row`.

  Raises:
    FileNotFoundError: The file of a task is nowhere.
    ValueError: A file has not the official form; names file and record.
  """
  items = []
  for task in TASKS:
    path = sources.find(f'bbh/{task}.json', hub_table(task))
    for row, record in enumerate(_examples(path)):
      where = f'{path}: example {row}'
      items.append(_item(task, row, record, where))
  return items


def hub_table(task: str) -> HubTable:
  """`bbh/{task}.json`.

  The copy is the one that lm-evaluation-harness uses; older ones are loading
  scripts, which `datasets` no longer runs.
  """
  return HubTable(
    repo='SaylorTwift/bbh', config=task, split='test', to_text=_json
  )


def _json(rows: Iterable[Mapping[str, Any]]) -> str:
  examples = [{'input': r['input'], 'target': r['target']} for r in rows]
  return json.dumps({'examples': examples}, ensure_ascii=False)


def _examples(path: pathlib.Path) -> list[Any]:
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{path}: not valid JSON: {e}. Restore the file.') from e
  if not isinstance(content, dict):
    raise ValueError(
      f"{path}: expected an object with the field 'examples', found "
      f'{type(content).__name__}.'
    )
  examples = field(content, 'examples', list, where=str(path))
  if not examples:
    raise ValueError(f'{path}: there are no examples. Restore the file.')
  return examples


def _item(task: str, row: int, record: Any, where: str) -> Item:
  if not isinstance(record, dict):
    raise ValueError(
      f'{where}: expected an object, found {type(record).__name__}.'
    )
  text = field(record, 'input', str, where=where)
  fields = {'input': text, 'target': field(record, 'target', str, where=where)}
  if TASKS[task].kind == CHOICE:
    fields['options'] = ''.join(_OPTION.findall(text))
    if not fields['options']:
      raise ValueError(
        f'{where}: {task} offers a choice, but no line of the input begins '
        f'with (A) or another letter: {text!r:.60}.'
      )
  return Item(id=f'{task}/{row}', group=task, fields=fields)
