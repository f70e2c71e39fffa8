"""What prompts have in common, found from their token ids.

Whatever text a prompt came from, equal ids are equal ids: nothing has to be
assumed about where a tokenizer puts the borders.
"""

from collections.abc import Sequence

import numpy as np

_STEP = 16  # tokens; prefixes are multiples of it
_MIN_GROUP = 4  # a smaller group leaves most of its batch empty
# Of a group's tokens. Groups are answered apart: for less, fuller batches of
# mixed prompts are faster (TyDiQA, whose languages share an instruction).
_MIN_SHARE = 0.25


def shared_lengths(prompts: Sequence[Sequence[int]]) -> list[int]:
  """How many first tokens of each prompt to compute once for its group.

  A group is all prompts that begin with the same tokens; groups are chosen to
  save most of them. At least one token of each prompt stays its own. The
  answer for a prompt depends on the whole list, so it is computed once, before
  a part of the list may be done.
  """
  order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
  common = [
    _common(prompts[a], prompts[b])
    for a, b in zip(order, order[1:], strict=False)
  ]
  lengths = [0] * len(prompts)
  for first, last, length in _groups(common, 0, len(order)):
    members = order[first:last]
    total = sum(len(prompts[i]) for i in members)
    if length * len(members) < _MIN_SHARE * total:
      continue
    for i in members:
      lengths[i] = length
  return lengths


def _common(a: Sequence[int], b: Sequence[int]) -> int:
  """Common first tokens of two prompts, in whole steps."""
  longest = min(len(a), len(b)) - 1
  differs = np.nonzero(np.not_equal(a[:longest], b[:longest]))[0]
  size = int(differs[0]) if len(differs) else longest
  return size // _STEP * _STEP


def _groups(
  common: Sequence[int], first: int, last: int
) -> list[tuple[int, int, int]]:
  """Groups [first, last) of sorted prompts with the length they share.

  Either all of the range is one group, or it falls apart where neighbours
  have least in common, whichever saves more.
  """
  if last - first < _MIN_GROUP:
    return []
  inner = common[first : last - 1]
  least = min(inner)
  cuts = [first + i + 1 for i, size in enumerate(inner) if size == least]
  borders = [first, *cuts, last]
  parts = [
    group
    for a, b in zip(borders, borders[1:], strict=False)
    for group in _groups(common, a, b)
  ]
  if _saved(parts) > _saved([(first, last, least)]) or least == 0:
    return parts
  return [(first, last, least)]


def _saved(groups: Sequence[tuple[int, int, int]]) -> int:
  return sum((last - first - 1) * length for first, last, length in groups)
