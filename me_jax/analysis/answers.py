"""Generated text as an external model reads it: a context, then an answer."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from me_jax.evals.generation_task import GenerationTask
from me_jax.evals.samples import check_field
from me_jax.evals.task import Item, Record, prompt_hash
from me_jax.typing import Tokenizer


class Answer(NamedTuple):
  """Token ids of the model that judges.

  Attributes:
    item_id: What was answered.
    context: What the answer is read after, special tokens included; at least
      one token.
    tokens: The answer, up to its end token, without special tokens.
  """

  item_id: str
  context: tuple[int, ...]
  tokens: tuple[int, ...]


def from_samples(
  task: GenerationTask,
  samples: Mapping[str, Record],
  *,
  scorer: Tokenizer,
  context: str = 'question',
) -> list[Answer]:
  """The stored answers to a task, in the order of the log.

  The ids that the model generated are kept if the scorer reads them as the same
  text. If it has another vocabulary, text is tokenised anew, which is logged:
  numbers of tokens are then the scorer's.

  Args:
    task: With the settings and the tokenizer that the answers were made with.
    samples: From `evals.samples.read_samples`.
    scorer: Tokenizer of the model that judges.
    context: 'question': the query without exemplars; 'prompt': all that the
      model was given.

  Raises:
    ValueError: An answer is of another task, prompt or version, or may have
      been cut as soon as it was decided.
  """
  items = {item.id: item for item in task.items()}
  for doc_id, record in samples.items():
    _check(task, items, doc_id, record)
  own = task.context.tokenizer
  generated = {i: _plain(own, r['tokens']) for i, r in samples.items()}
  keeps_ids = all(
    scorer.decode(ids) == own.decode(ids) for ids in generated.values()
  )
  if not keeps_ids:
    logging.warning(
      'The scorer has another vocabulary than the model that wrote the answers '
      'to %s: they are tokenised anew.',
      task.name,
    )
  answers = []
  for doc_id, record in samples.items():
    item = items[doc_id]
    if context == 'question':
      before, ids = task.prompt(item, ()), None
    else:
      ids = task.request(item).prompt
      before = own.decode(ids)
    if keeps_ids:
      ids = tuple(scorer.encode(before)) if ids is None else ids
      answers.append(Answer(doc_id, ids, generated[doc_id]))
    else:
      answers.append(_tokenised(scorer, doc_id, before, record['resps'][0]))
  return answers


def from_texts(
  tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]
) -> list[Answer]:
  """Pairs of a context and the text right after it, numbered from 0.

  Raises:
    ValueError: No token is left of a context.
  """
  return [
    _tokenised(tokenizer, str(i), before, text)
    for i, (before, text) in enumerate(texts)
  ]


def _tokenised(
  tokenizer: Tokenizer, item_id: str, before: str, text: str
) -> Answer:
  """Both tokenised as one text; the answer starts where it parts from the
  tokens of the context alone."""
  full, alone = tokenizer.encode(before + text), tokenizer.encode(before)
  start = 0
  while start < min(len(full), len(alone)) and full[start] == alone[start]:
    start += 1
  if not start:
    raise ValueError(
      f'Item {item_id!r}: no token of the context {before!r:.80} is left '
      'before the answer. Give a context of at least a word.'
    )
  return Answer(item_id, tuple(full[:start]), _plain(tokenizer, full[start:]))


def _plain(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, ...]:
  """Ids before the end token, without special ones."""
  ids = list(ids)
  if tokenizer.eos_id in ids:
    ids = ids[: ids.index(tokenizer.eos_id)]
  return tuple(i for i in ids if i not in tokenizer.special_ids)


def _check(
  task: GenerationTask, items: Mapping[str, Item], doc_id: str, record: Record
) -> None:
  if doc_id not in items:
    raise ValueError(
      f'{task.name} has no item {doc_id!r}. Are the answers of another task?'
    )
  check_field(record, 'version', task.version, task.name)
  asked = prompt_hash(task.request(items[doc_id]))
  check_field(record, 'prompt_hash', asked, task.name)
  if 'tokens' not in record:
    raise ValueError(
      f'{task.name}: item {doc_id!r} was stored without its tokens. Delete the '
      'file to have its items computed again.'
    )
  if record['decode']['early_stop']:
    raise ValueError(
      f'{task.name}: answers were generated until they were decided, and what '
      'would have followed is missing. Generate them with '
      '--config.evals.early_stop=False.'
    )
