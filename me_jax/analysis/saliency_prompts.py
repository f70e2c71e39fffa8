"""Prompts whose information flow is measured: SST-2 with a demonstration of
each class, as `evals/sst2_icl.py` asks them."""

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from me_jax.analysis.saliency import Prompt
from me_jax.data.sources import DataSources
from me_jax.evals import sst2_icl
from me_jax.evals.subset import subset
from me_jax.evals.task import Item
from me_jax.typing import Tokenizer

# Of the subset of sentences, whatever the demonstrations' is.
_SUBSET_SEED = 42

_STEM = 'Sentiment:'


class LabelWords(NamedTuple):
  """What follows `Sentiment:`.

  Attributes:
    shared: Tokens that all words begin with, none of most tokenizers. They are
      part of the prompt, whose last token is the target.
    ids: The token of each word after those.
  """

  shared: tuple[int, ...]
  ids: tuple[int, ...]


def read_prompts(
  sources: DataSources,
  tokenizer: Tokenizer,
  *,
  seed: int = _SUBSET_SEED,
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
  items = subset(sst2_icl.read_items(sources, seed), limit, _SUBSET_SEED)
  words = label_words(tokenizer, sst2_icl.LABELS)
  return [build_prompt(tokenizer, item, words) for item in items]


def label_words(tokenizer: Tokenizer, labels: Sequence[str]) -> LabelWords:
  """The tokens by which the label words behind `Sentiment:` are known.

  Of a word with more tokens the others are not looked at, as in the reference;
  that is logged.

  Raises:
    ValueError: A word begins with the whole of another, or the tokens of
      `Sentiment:` change with what follows.
  """
  stem = tokenizer.encode(_STEM)
  words = []
  for label in labels:
    ids = tokenizer.encode(f'{_STEM} {label}')
    if ids[: len(stem)] != stem or len(ids) == len(stem):
      raise ValueError(
        f'The tokens of {_STEM!r} and a blank before {label!r} merge. The '
        'analysis needs a tokenizer that keeps them apart.'
      )
    words.append(ids[len(stem) :])
  shared = len(os.path.commonprefix(words))
  for label, word in zip(labels, words, strict=True):
    if len(word) == shared:
      raise ValueError(
        f'The label words {", ".join(labels)} begin with the tokens of '
        f'{label!r}, so the model cannot tell them apart there. Choose other '
        'words.'
      )
    if len(word) > 1:
      logging.warning(
        'The label word %r has %d tokens; only number %d is looked at.',
        label,
        len(word),
        shared + 1,
      )
  ids = tuple(word[shared] for word in words)
  if len(set(ids)) < len(ids):
    raise ValueError(
      f'Some of the label words {", ".join(labels)} begin with the same token, '
      'so the model cannot tell them apart there. Choose other words.'
    )
  return LabelWords(tuple(words[0][:shared]), ids)


def build_prompt(tokenizer: Tokenizer, item: Item, words: LabelWords) -> Prompt:
  """The prompt of an item of `sst2_icl`.

  Label words are where a label's token follows the last two of `Sentiment:` and
  what all words begin with.

  Args:
    tokenizer: The model's.
    item: Sentence, label and demonstrations.
    words: In the order of `sst2_icl.LABELS`.

  Raises:
    ValueError: There are more or fewer such places than demonstrations.
  """
  ids = [*tokenizer.encode(sst2_icl.prompt(item)), *words.shared]
  cue = [*tokenizer.encode(_STEM)[-2:], *words.shared]
  found = tuple(
    i
    for i in range(len(cue), len(ids))
    if ids[i] in words.ids and ids[i - len(cue) : i] == cue
  )
  expected = len(item.fields['demonstrations'])
  if len(found) != expected or ids[-len(cue) :] != cue:
    raise ValueError(
      f'Item {item.id!r}: expected {expected} label words behind {_STEM!r} and '
      f'{_STEM!r} at the end, found label words at {list(found)} of '
      f'{len(ids)} tokens. Does a sentence hold the template itself?'
    )
  gold = sst2_icl.LABELS.index(item.fields['label'])
  return Prompt(tuple(ids), found, gold)
