"""Prompts whose information flow is measured: SST-2 with a demonstration of
each class, as `evals/sst2_icl.py` asks them."""

import logging
from collections.abc import Sequence

from me_jax.analysis.saliency import Prompt
from me_jax.data.sources import DataSources
from me_jax.evals import sst2_icl
from me_jax.evals.subset import subset
from me_jax.evals.task import Item
from me_jax.typing import Tokenizer

# Of the demonstrations, as in Wang et al. 2023.
SEEDS = (42, 43, 44, 45, 46)

_STEM = 'Sentiment:'


def read_prompts(
  sources: DataSources,
  tokenizer: Tokenizer,
  *,
  seed: int = SEEDS[0],
  limit: int | None = None,
) -> list[Prompt]:
  """The development split with the demonstrations of a seed.

  Args:
    sources: Where `sst2/` is.
    tokenizer: The model's. The token that it puts before a text stays.
    seed: Of the demonstrations and of their order, which is the same for all
      sentences.
    limit: Sentences, the same for every seed, nested in every larger number;
      None for all 872.

  Raises:
    FileNotFoundError: A file is nowhere.
    ValueError: A file is damaged, or a label word is not where it should be.
  """
  items = subset(sst2_icl.read_items(sources, seed), limit, SEEDS[0])
  labels = label_ids(tokenizer, sst2_icl.LABELS)
  return [build_prompt(tokenizer, item, labels) for item in items]


def label_ids(tokenizer: Tokenizer, labels: Sequence[str]) -> tuple[int, ...]:
  """The first token of each label word behind `Sentiment:`.

  Of a word with more than one token the others are not looked at, as in the
  reference; that is logged.

  Raises:
    ValueError: Two words begin with one token, or the tokens of `Sentiment:`
      change with what follows.
  """
  stem = tokenizer.encode(_STEM)
  first = []
  for label in labels:
    ids = tokenizer.encode(f'{_STEM} {label}')
    word = ids[len(stem) :]
    if ids[: len(stem)] != stem or not word:
      raise ValueError(
        f'The tokens of {_STEM!r} and a blank before {label!r} merge. The '
        'analysis needs a tokenizer that keeps them apart.'
      )
    if len(word) > 1:
      logging.warning(
        'The label word %r has %d tokens; only the first is looked at.',
        label,
        len(word),
      )
    first.append(word[0])
  if len(set(first)) < len(first):
    raise ValueError(
      f'The label words {", ".join(labels)} begin with the same token, so the '
      'model cannot tell them apart there. Choose other words.'
    )
  return tuple(first)


def build_prompt(
  tokenizer: Tokenizer, item: Item, label_ids: Sequence[int]
) -> Prompt:
  """The prompt of an item of `sst2_icl`.

  Label words are where a label's token follows the last two of `Sentiment:`.

  Args:
    tokenizer: The model's.
    item: Sentence, label and demonstrations.
    label_ids: In the order of `sst2_icl.LABELS`.

  Raises:
    ValueError: There are more or fewer such places than demonstrations.
  """
  ids = tokenizer.encode(sst2_icl.prompt(item))
  colon = tokenizer.encode(_STEM)[-2:]
  found = tuple(
    i
    for i in range(2, len(ids))
    if ids[i] in label_ids and ids[i - 2 : i] == colon
  )
  expected = len(item.fields['demonstrations'])
  if len(found) != expected or ids[-2:] != colon:
    raise ValueError(
      f'Item {item.id!r}: expected {expected} label words behind {_STEM!r} and '
      f'{_STEM!r} at the end, found label words at {list(found)} of '
      f'{len(ids)} tokens. Does a sentence hold the template itself?'
    )
  gold = sst2_icl.LABELS.index(item.fields['label'])
  return Prompt(tuple(ids), found, gold)
