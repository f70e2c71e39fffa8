"""Dialogues as a model reads them; cutting and splitting of prompts.

The rules are those of OpenCompass 0.2.0 for LLaMA-2, base and chat.
"""

import dataclasses
from collections.abc import Sequence

from me_jax.typing import Tokenizer

INSTRUCTION = '[INST]'


@dataclasses.dataclass(frozen=True)
class Turn:
  """One turn of a dialogue.

  Attributes:
    role: 'HUMAN', 'BOT', or 'TEXT' for what is no dialogue and is put to
      base and chat models alike.
    text: What is said.
  """

  role: str
  text: str


def human(text: str) -> Turn:
  """What the user says."""
  return Turn('HUMAN', text)


def bot(text: str) -> Turn:
  """What the model says, or begins to say."""
  return Turn('BOT', text)


def render(turns: Sequence[Turn], *, is_chat: bool) -> str:
  """The prompt.

  Base models read the turns joined by newlines; empty turns are left out; a
  turn's own final newline is kept, so that it makes a blank line. Chat models
  read each HUMAN turn in LLaMA-2's instruction marks and nothing between
  turns; what the BOT should begin with is dropped.
  """
  if not is_chat or all(turn.role == 'TEXT' for turn in turns):
    return '\n'.join(turn.text for turn in turns if turn.text)
  turns = list(turns)
  while turns and turns[-1].role == 'BOT':
    turns.pop()
  return ''.join(
    f' [INST] {turn.text} [/INST] ' if turn.role == 'HUMAN' else turn.text
    for turn in turns
  )


def before_instruction(text: str) -> tuple[str, bool]:
  """What a chat model said before it invented the user's next turn.

  Returns:
    The text before the first `[INST]`, and True; or, where there is none, the
    text without what may be the beginning of one, and False.
  """
  head, mark, _ = text.partition(INSTRUCTION)
  if mark:
    return head, True
  for size in range(len(INSTRUCTION) - 1, 0, -1):
    if text.endswith(INSTRUCTION[:size]):
      return text[:-size], False
  return text, False


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
