"""CommonsenseQA (Talmor et al. 2019), 8-shot, by generation.

Prompts and extraction are those of OpenCompass 0.2.0. Its default exemplars
(`commonsenseqa_gen_c946f2`) are in effect the eight nearest training questions
by an embedding, nearest first: `commonsenseqa_exemplars` lists them for whoever
has an embedding model. Without, the first eight training questions are taken
(`commonsenseqa_gen_1da2d0`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from me_jax.data.sources import DataSources, field, read_jsonl
from me_jax.evals import (
  aggregates,
  commonsenseqa_exemplars,
  hub_tables,
  letters,
)
from me_jax.evals.generation_task import GenerationTask
from me_jax.evals.prompts import Turn, bot, human
from me_jax.evals.task import Item, TaskContext

LETTERS = 'ABCDE'
SHOTS = 8


def commonsenseqa(context: TaskContext) -> GenerationTask:
  """The 1,221 questions of the development split."""
  fixed = context.settings.exemplars == 'fixed'
  return GenerationTask(
    name='commonsenseqa',
    version='commonsenseqa_gen_1da2d0'
    if fixed
    else 'commonsenseqa_gen_c946f2, listed exemplars',
    context=context,
    docs=lambda: read_items(context.sources, 'dev'),
    doc_to_turns=question,
    doc_to_target=lambda item: item.fields['answerKey'],
    fewshot=_exemplars(context),
    max_gen_toks=100,
    stop_when=letters.capital_decided(LETTERS),
    readings=letters.capital_readings(LETTERS, 'answerKey'),
    extra_metrics=lambda samples: aggregates.spread(samples, LETTERS, 'oc'),
  )


def commonsenseqa_whole(context: TaskContext) -> GenerationTask:
  """The same with answers that go on after they are decided, up to 100 tokens:
  what adjusted perplexity reads."""
  settings = dataclasses.replace(context.settings, early_stop=False)
  return dataclasses.replace(
    commonsenseqa(dataclasses.replace(context, settings=settings)),
    name='commonsenseqa_whole',
  )


def question(item: Item) -> list[Turn]:
  """The question; an exemplar's answer stands on a line of its own."""
  options = '\n'.join(f'{x}. {item.fields[x]}' for x in LETTERS)
  return [human(f'{item.fields["question"]}\n{options}\nAnswer:')]


def _exemplars(
  context: TaskContext,
) -> Callable[[Item], list[list[Turn]]]:
  @functools.cache
  def train() -> list[Item]:
    items = read_items(context.sources, 'train')
    if len(items) < SHOTS:
      raise ValueError(
        f'Expected at least {SHOTS} CommonsenseQA training questions for the '
        f'exemplars, found {len(items)}.'
      )
    return items

  path = context.settings.exemplars.removeprefix('file:')

  @functools.cache
  def listed() -> Mapping[str, list[Item]]:
    return commonsenseqa_exemplars.read(path, train())

  def rounds(item: Item) -> list[list[Turn]]:
    if context.settings.exemplars == 'fixed':
      chosen = train()[:SHOTS]
    elif item.id in listed():
      chosen = listed()[item.id]
    else:
      raise ValueError(
        f'{path}: no exemplars for the question {item.id!r}. Write the list '
        'for all questions of the development split.'
      )
    return [[*question(e), bot(e.fields['answerKey'])] for e in chosen]

  return rounds


def read_items(sources: DataSources, split: str) -> list[Item]:
  """The questions of `split` ('dev' or 'train') in file order, one group.

  Raises:
    FileNotFoundError: The file is nowhere.
    ValueError: A record has not the official form; names file and record.
  """
  path = sources.find(
    f'commonsenseqa/{split}_rand_split.jsonl', hub_tables.commonsenseqa(split)
  )
  return [
    _item(record, split, f'{path}: record {index}')
    for index, record in enumerate(read_jsonl(path))
  ]


def _item(record: Mapping[str, Any], split: str, where: str) -> Item:
  question = field(record, 'question', dict, where=where)
  options = {
    field(choice, 'label', str, where=where): field(
      choice, 'text', str, where=where
    )
    for choice in field(question, 'choices', list, where=where)
  }
  answer = field(record, 'answerKey', str, where=where)
  if sorted(options) != list(LETTERS) or answer not in options:
    raise ValueError(
      f'{where}: expected the choices {", ".join(LETTERS)} and one of them as '
      f'answerKey, found {sorted(options)} and {answer!r}.'
    )
  if not all(options.values()):
    raise ValueError(f'{where}: a choice has no text: {options}.')
  return Item(
    id=field(record, 'id', str, where=where),
    group=split,
    fields={
      'question': field(question, 'stem', str, where=where),
      **options,
      'answerKey': answer,
    },
  )
