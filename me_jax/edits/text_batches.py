"""Texts of many lengths in padded batches of few shapes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_SHORTEST = 16  # tokens a row is padded to, at least


@dataclasses.dataclass(frozen=True)
class Batch:
  """Some texts and the shape they are padded to.

  Attributes:
    rows: Indices of the texts.
    size: B of the arrays; rows without a text are empty.
    width: T of the arrays.
  """

  rows: tuple[int, ...]
  size: int
  width: int

  def arrays(
    self, token_rows: Sequence[Sequence[int]]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T], zeros after each text, and lengths [B]; int32."""
    ids = np.zeros((self.size, self.width), np.int32)
    lengths = np.zeros(self.size, np.int32)
    for row, i in enumerate(self.rows):
      ids[row, : len(token_rows[i])] = token_rows[i]
      lengths[row] = len(token_rows[i])
    return ids, lengths


def plan(
  lengths: Sequence[int], batch_tokens: int, groups: int = 1
) -> list[Batch]:
  """All texts in batches; those of one width have one shape.

  Longest first, so that running out of memory happens at once or never. Empty
  texts are left out.

  Args:
    lengths: Tokens of each text.
    batch_tokens: Padded tokens in a batch, at most, unless one text is longer.
    groups: Over how many groups of devices the rows of a batch are dealt, in
      equal parts; `batch_tokens` are of each.
  """
  by_width: dict[int, list[int]] = {}
  for i in np.argsort(-np.asarray(lengths), kind='stable').tolist():
    if lengths[i]:
      by_width.setdefault(_width(lengths[i]), []).append(i)
  batches = []
  for width, rows in by_width.items():
    # As few batches as fit, filled evenly: few rows are left empty.
    full = groups * max(1, batch_tokens // width)
    size = -(-len(rows) // -(-len(rows) // full))
    size = groups * -(-size // groups)
    batches.extend(
      Batch(tuple(rows[first : first + size]), size, width)
      for first in range(0, len(rows), size)
    )
  return batches


def _width(length: int) -> int:
  """The smallest of 16, 24, 32, 48, 64, 96, ... that holds `length`."""
  width = _SHORTEST
  while width < length:
    if width + width // 2 >= length:
      return width + width // 2
    width *= 2
  return width
