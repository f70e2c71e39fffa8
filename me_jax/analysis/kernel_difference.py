"""What is asked of a matrix [in, out] or of a change of one, in float64.

`ByRows` has its entries, a block of rows at a time; `ByFactors` has `left` and
`right`, and multiplies them out for single blocks only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_BLOCK = 1 << 22  # entries that are in float64 at once


class Sums(NamedTuple):
  """Of a change d of weights w.

  Attributes:
    mean: Of the entries of d.
    squares: ‖d‖².
    cross: <w - mean w, d>.
  """

  mean: float
  squares: float
  cross: float


class ByRows(NamedTuple):
  """A matrix whose rows can be had.

  Attributes:
    shape: [in, out].
    rows: From a slice of the first axis to those rows, float64.
  """

  shape: tuple[int, int]
  rows: Callable[[slice], np.ndarray]

  def sums(self, weights: 'ByRows', mean: float) -> Sums:
    """See `Sums`; `mean` is that of the weights."""
    total = squares = cross = 0.0
    for block in row_blocks(self.shape):
      d = self.rows(block)
      total += d.sum()
      squares += (d * d).sum()
      cross += ((weights.rows(block) - mean) * d).sum()
    return Sums(
      float(total / np.prod(self.shape)), float(squares), float(cross)
    )

  def times(self, v: np.ndarray) -> np.ndarray:
    """The matrix times `v` [out], [in]."""
    return np.concatenate([self.rows(b) @ v for b in row_blocks(self.shape)])

  def transposed_times(self, u: np.ndarray) -> np.ndarray:
    """The transposed matrix times `u` [in], [out]."""
    return sum(u[b] @ self.rows(b) for b in row_blocks(self.shape))


class ByFactors(NamedTuple):
  """`left @ right`.

  Attributes:
    left: float64 [in, R].
    right: float64 [R, out].
  """

  left: np.ndarray
  right: np.ndarray

  @property
  def shape(self) -> tuple[int, int]:
    """[in, out]."""
    return (self.left.shape[0], self.right.shape[1])

  def rows(self, block: slice) -> np.ndarray:
    """Those rows, float64."""
    return self.left[block] @ self.right

  def sums(self, weights: ByRows, mean: float) -> Sums:
    """See `Sums`; `mean` is that of the weights."""
    total = self.left.sum(axis=0) @ self.right.sum(axis=1)
    gram = (self.left.T @ self.left) * (self.right @ self.right.T)
    cross = sum(
      ((weights.rows(b) @ self.right.T) * self.left[b]).sum()
      for b in row_blocks(self.shape)
    )
    return Sums(
      float(total / np.prod(self.shape)),
      # Never below zero but by rounding, where changes cancel.
      float(np.maximum(gram.sum(), 0.0)),
      float(cross - mean * total),
    )

  def times(self, v: np.ndarray) -> np.ndarray:
    """The matrix times `v` [out], [in]."""
    return self.left @ (self.right @ v)

  def transposed_times(self, u: np.ndarray) -> np.ndarray:
    """The transposed matrix times `u` [in], [out]."""
    return (u @ self.left) @ self.right


Difference = ByRows | ByFactors


def of_array(array: np.ndarray) -> ByRows:
  """The matrix [in, out] itself, whatever its dtype."""
  return ByRows(array.shape, lambda block: array[block].astype(np.float64))


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
  """Slices of the first axis that cover it."""
  size = max(1, _BLOCK // shape[1])
  return [slice(i, i + size) for i in range(0, shape[0], size)]
