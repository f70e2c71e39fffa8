"""MATH (Hendrycks et al. 2021), 4-shot, by generation.

`math` has prompts, extraction and score of OpenCompass 0.2.0, configuration
`math_gen_265cce`. Its exemplars show every brace doubled; `math_plain` is the
same without that. `math_own_exemplars` is for whoever has not got the file of
exemplars: same frame, other problems, so its scores stand for themselves.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from me_jax.data.sources import DataSources, field, read_jsonl
from me_jax.evals import (
  aggregates,
  hub_tables_math,
  math_answers,
  math_exemplars,
)
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn, human
from me_jax.evals.task import Item, Metric, Record, TaskContext

# By `type` in the data: the group of an item, and the hub's configuration.
SUBJECTS: Mapping[str, str] = {
  'Algebra': 'algebra',
  'Counting & Probability': 'counting_and_probability',
  'Geometry': 'geometry',
  'Intermediate Algebra': 'intermediate_algebra',
  'Number Theory': 'number_theory',
  'Prealgebra': 'prealgebra',
  'Precalculus': 'precalculus',
}
FULL_FILE = 'math/test.jsonl'
SAMPLE_FILE = 'math/test_1000.jsonl'


def math(context: TaskContext) -> GenerationTask:
  """The problems, after OpenCompass's exemplars."""
  return _task(
    context,
    'math',
    version='math_gen_265cce',
    exemplars=lambda: math_exemplars.minerva(context.sources, doubled=True),
  )


def math_plain(context: TaskContext) -> GenerationTask:
  """The problems, after the same exemplars with their braces as published."""
  return _task(
    context,
    'math_plain',
    version='math_gen_265cce, single braces',
    exemplars=lambda: math_exemplars.minerva(context.sources, doubled=False),
  )


def math_own_exemplars(context: TaskContext) -> GenerationTask:
  """The problems that are no exemplars, after four exemplars of the pool."""
  exemplars = functools.cache(lambda: math_exemplars.own(context.sources))

  def other_items() -> list[Item]:
    shown = {turn.text for turn in exemplars()}
    return [
      item
      for item in read_items(context.sources)
      if math_exemplars.question(item.fields['problem']) not in shown
    ]

  pool = 'math/fewshot_pool.jsonl'
  origin = 'other' if context.sources.is_local(pool) else 'hub'
  return _task(
    context,
    'math_own_exemplars',
    version=f'math_gen_265cce, {origin} exemplars',
    exemplars=exemplars,
    docs=other_items,
  )


def _task(
  context: TaskContext,
  name: str,
  *,
  version: str,
  exemplars: Callable[[], list[Turn]],
  docs: Callable[[], list[Item]] | None = None,
) -> GenerationTask:
  exemplars = functools.cache(exemplars)
  reads_answer_is = context.settings.profile == 'oc-2024-01'
  return GenerationTask(
    name=name,
    version=version,
    context=context,
    docs=docs or (lambda: read_items(context.sources)),
    doc_to_turns=lambda item: [*exemplars(), _query(item)],
    doc_to_target=lambda item: item.fields['answer'] or '',
    max_gen_toks=512,
    stop_when=lambda item: math_answers.decided,
    readings=(
      Reading(
        name='oc',
        filter=lambda item, text: math_answers.normal(
          math_answers.piece(text), reads_answer_is=reads_answer_is
        ),
        mark=_mark_oc,
      ),
      Reading(
        name='clean',
        filter=lambda item, text: math_answers.clean_normal(
          math_answers.clean_piece(text)
        ),
        mark=_mark_clean,
      ),
    ),
    extra_metrics=_by_subject,
  )


def _query(item: Item) -> Turn:
  # Unlike the exemplars', it ends with a newline.
  return human(f'Problem:\n{item.fields["problem"]}\nSolution:\n')


def _mark_oc(item: Item, answer: str) -> Mapping[str, float]:
  is_right = math_answers.equivalent(answer, item.fields['answer'])
  return {'accuracy': float(is_right)}


def _mark_clean(item: Item, answer: str) -> Mapping[str, float]:
  gold = item.fields['answer']
  if gold is not None:
    gold = math_answers.clean_normal(gold)
  return {'accuracy': float(math_answers.equivalent(answer, gold))}


def _by_subject(samples: Sequence[Record]) -> list[Metric]:
  found = []
  for subject in SUBJECTS.values():
    members = [s for s in samples if s['group'] == subject]
    if members:
      found.append(aggregates.mean(f'accuracy_{subject}', members, 'accuracy'))
  return found


def read_items(sources: DataSources) -> list[Item]:
  """The test problems: all 5,000 where `FULL_FILE` is at hand, the 1,000 of
  `SAMPLE_FILE` where that is, else all 5,000 from the hub.

  An item's id is its subject and a hash of the problem, the same in all
  copies; a repeated problem is numbered. `answer` is None where the solution
  boxes none.

  Raises:
    FileNotFoundError: There is no copy.
    ValueError: A record has not the official form; names file and record.
  """
  items, seen = [], Counter()
  for path in _paths(sources):
    for index, record in enumerate(read_jsonl(path)):
      item = _item(record, f'{path}: record {index}')
      seen[item.id] += 1
      if seen[item.id] > 1:
        item = dataclasses.replace(item, id=f'{item.id}.{seen[item.id]}')
      items.append(item)
  return items


def _paths(sources: DataSources) -> list[pathlib.Path]:
  for name in (FULL_FILE, SAMPLE_FILE):
    try:
      return [sources.find(name)]
    except FileNotFoundError:
      continue
  try:
    return [
      sources.find(f'math/test/{subject}.jsonl', hub_tables_math.test(subject))
      for subject in SUBJECTS.values()
    ]
  except FileNotFoundError as e:
    raise FileNotFoundError(
      f'Expected the test problems of MATH as {FULL_FILE} (5,000), as '
      f'{SAMPLE_FILE} (1,000 of them), or by subject. {e}'
    ) from e


def _item(record: Mapping[str, Any], where: str) -> Item:
  problem = field(record, 'problem', str, where=where)
  kind = field(record, 'type', str, where=where)
  if kind not in SUBJECTS:
    raise ValueError(
      f"{where}: field 'type' must be one of {', '.join(SUBJECTS)}, found "
      f'{kind!r}.'
    )
  subject = SUBJECTS[kind]
  solution = field(record, 'solution', str, where=where)
  digest = hashlib.sha256(problem.encode()).hexdigest()[:12]
  return Item(
    id=f'{subject}/{digest}',
    group=subject,
    fields={'problem': problem, 'answer': math_answers.gold(solution)},
  )
