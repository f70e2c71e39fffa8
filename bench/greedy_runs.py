"""Where two greedy continuations of one prompt part, and how narrowly."""

import dataclasses
from collections.abc import Sequence

# Of logits: what float32 sums in another order may rank apart. Logits are of
# the order of 20, and 30 layers round them to some 1e-4.
NEAR_TIE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parting:
  """Two continuations of an item's prompt that differ.

  Attributes:
    doc_id: The item.
    index: New tokens before the first that differs.
    gap: Distance of the logits of the two tokens that stand there. If these
      are the two best, it is what decided between them.
  """

  doc_id: str
  index: int
  gap: float

  @property
  def is_near_tie(self) -> bool:
    """Rounding may have decided."""
    return self.gap < NEAR_TIE


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
  """Index of the first token that differs; None if one begins the other.

  An end token stands for itself: an answer that ended is not the beginning of
  one that goes on.
  """
  pairs = zip(a, b, strict=False)
  return next((i for i, (x, y) in enumerate(pairs) if x != y), None)
