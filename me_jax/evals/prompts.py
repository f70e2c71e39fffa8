"""Joining, cutting and splitting of prompts, shared by the benchmarks.

The rules are those of OpenCompass 0.2.0 for base models.
"""

from collections.abc import Sequence

from me_jax.typing import Tokenizer

WINDOW = 2048  # tokens that OpenCompass gives LLaMA-2


def base_prompt(turns: Sequence[str]) -> str:
  """The turns of a dialogue as a base model reads them.

  Empty turns are left out; a turn's own final newline is kept, so that it
  makes a blank line.
  """
  return '\n'.join(turn for turn in turns if turn)


def cut_left(
  ids: Sequence[int], limit: int, tokenizer: Tokenizer
) -> tuple[int, ...]:
  """The last `limit` tokens; a first special token (BOS) survives."""
  if len(ids) <= limit:
    return tuple(ids)
  if ids[0] in tokenizer.special_ids:
    return (ids[0], *ids[len(ids) - limit + 1 :])
  return tuple(ids[len(ids) - limit :])


def split_common_prefix(
  texts: Sequence[Sequence[int]],
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
  """The longest common prefix of token ids, and what each text adds to it.

  At least one token is left to each text, also where one text begins another.

  Raises:
    ValueError: The texts do not start with the same token.
  """
  longest = min(map(len, texts)) - 1
  size = 0
  while size < longest and len({ids[size] for ids in texts}) == 1:
    size += 1
  if size < 1:
    raise ValueError(
      'The texts to compare share no first token: '
      f'{[tuple(ids[:3]) for ids in texts]}. They cannot be scored as '
      'continuations of one context.'
    )
  return tuple(texts[0][:size]), tuple(tuple(ids[size:]) for ids in texts)
