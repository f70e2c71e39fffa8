"""The program in what a model wrote."""

import ast
import re

from me_jax.evals.generation_task import Text

Code = str

_DONE = 'DONE'
_END = re.compile(r"(?:'\s*)?(?:\[DONE\]|DONE)")
_BEGIN = re.compile(r"(?:\[BEGIN\]|BEGIN)(?:'\s*)?")
_FENCE = '```'
_PYTHON_BLOCK = re.compile(r'```python(.*)```', re.DOTALL)


def between_marks(text: Text) -> Code:
  """What stands between `[BEGIN]` and `[DONE]` and in quotes, each of them as
  far as it is there: the rule of OpenCompass 0.2.0."""
  text = text.strip()
  if end := _END.search(text):
    text = text[: end.start()]
  if begin := _BEGIN.search(text):
    text = text[begin.end() :]
  return text.strip().removeprefix("'").removesuffix("'")


def decided(text: Text) -> bool:
  """Whether nothing that follows can change `between_marks`."""
  start = text.find(_DONE)
  if start < 0:
    return False
  # After `[DONE` the next character tells whether the bracket is code.
  is_open = text[:start].endswith('[')
  return not is_open or start + len(_DONE) < len(text)


def from_fence_or_marks(text: Text, *, keeps_backslashes: bool) -> Code:
  """`between_marks` of the first fenced block, or of all where none is: the
  rule of OpenCompass in January 2024.

  A text that is one Python string literal stands for its value. The reference
  evaluates any expression, which must not be done to what a model wrote.

  Args:
    text: What the model wrote.
    keeps_backslashes: The reference deletes them, and with them every escape
      in the program.
  """
  text = between_marks(_first_block(_unquoted(text)))
  if not keeps_backslashes:
    text = text.replace('\\', '')
  # Without backslashes there may be a fence where there was none.
  if block := _PYTHON_BLOCK.search(text):
    text = block[1].strip().partition(_FENCE)[0].strip()
  return text


def _unquoted(text: Text) -> Text:
  try:
    value = ast.literal_eval(text)
    if isinstance(value, str):
      value.encode()  # half of a surrogate pair is in no program
      return value
  except (
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
  ):
    return text
  return text


def _first_block(text: Text) -> Text:
  _, *blocks = text.split(_FENCE)
  if not blocks:
    return text
  block = blocks[0]
  is_closed = len(blocks) > 1
  if is_closed and not block.startswith('\n'):
    return block[block.find('\n') + 1 :]
  return block
