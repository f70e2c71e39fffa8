"""Prompt, target and subject as token ids, the same for editing and scoring.

Everything is read off one tokenisation of the whole text. Tokenising the
target alone, as published editors do, adds a stray blank or shifts the targets,
depending on the tokenizer's version.
"""

from typing import NamedTuple

from me_jax.typing import Tokenizer


class JointIds(NamedTuple):
  """`prompt + ' ' + target`, tokenised once.

  Attributes:
    full: All ids, special tokens of the tokenizer included.
    num_prompt: Tokens before the first target token.
    boundary_merged: The target's first token swallowed the prompt's end.
  """

  full: tuple[int, ...]
  num_prompt: int
  boundary_merged: bool

  @property
  def prompt(self) -> tuple[int, ...]:
    """Ids before the target."""
    return self.full[: self.num_prompt]

  @property
  def target(self) -> tuple[int, ...]:
    """Ids to predict; the model is fed `full[:-1]`, and `target[j]` is
    predicted at position `num_prompt - 1 + j`."""
    return self.full[self.num_prompt :]


def joint_ids(tokenizer: Tokenizer, prompt: str, target: str) -> JointIds:
  """Ids of a prompt and the target after it.

  The target starts where the tokens of `prompt + ' ' + target` and those of
  `prompt` alone part.

  Raises:
    ValueError: Nothing is left to predict, nothing is there to predict from,
      or a special token stands in the target or, after the first token, in the
      prompt.
  """
  prompt, target = prompt.strip(), target.strip()
  full = tokenizer.encode(f'{prompt} {target}')
  alone = tokenizer.encode(prompt)
  num_prompt = 0
  for a, b in zip(full, alone, strict=False):
    if a != b:
      break
    num_prompt += 1
  ids = JointIds(tuple(full), num_prompt, num_prompt < len(alone))
  if not ids.target or not num_prompt:
    raise ValueError(
      f'Prompt {prompt!r} and target {target!r} need at least one token each, '
      f'got {num_prompt} and {len(ids.target)}.'
    )
  if special := tokenizer.special_ids.intersection(ids.target):
    raise ValueError(
      f'The target {target!r} holds special tokens {sorted(special)}; a model '
      'cannot be taught to say those. Remove them from the text.'
    )
  # The first token may be the one that the tokenizer itself puts there.
  if special := tokenizer.special_ids.intersection(ids.prompt[1:]):
    raise ValueError(
      f'The prompt {prompt!r} holds special tokens {sorted(special)} after its '
      'first token. Remove them from the text.'
    )
  return ids


class Lookup(NamedTuple):
  """Where a subject ends.

  Attributes:
    position: Index of the last token that overlaps its last character.
    prefix_length_agrees: Cutting the text after the subject and counting
      tokens, as published editors do, gives the same index.
  """

  position: int
  prefix_length_agrees: bool


def lookup_position(tokenizer: Tokenizer, text: str, end: int) -> Lookup:
  """The token of `text` at which a subject ending before character `end` is
  complete.

  Raises:
    ValueError: No token covers that character.
  """
  _, offsets = tokenizer.encode_with_offsets(text)
  covering = [i for i, (a, b) in enumerate(offsets) if a < end <= b]
  if not covering:
    raise ValueError(
      f'No token covers character {end - 1} of {text!r}, where the subject '
      'ends. Does the subject end with a blank?'
    )
  legacy = len(tokenizer.encode(text[:end])) - 1
  return Lookup(covering[-1], covering[-1] == legacy)
