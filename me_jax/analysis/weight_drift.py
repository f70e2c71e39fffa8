"""How far edited weights are from what they were (Fig. 6 of the paper).

Lin et al., *Navigating the Dual Facets* (2024), correlate all entries a of a
matrix before editing with those, b, after t edits. Pearson's R is close to 1
there, so its distance from 1 is computed without cancellation. With
d = (b - mean b) - (a - mean a), A = ‖a - mean a‖ and B = ‖b - mean b‖:

    1 - R = (‖d‖² - (B - A)²) / (2 A B)
    B² - A² = 2 <a - mean a, d> + ‖d‖²

R is blind to a rescaling; the relative change ‖W_t - W_0‖_F / ‖W_0‖_F, the
ratio of the largest singular values and the largest entry are not.

All sums are float64. Of a change `left @ right` the difference is never formed:

    ‖left right‖² = sum((leftᵀ left) * (right rightᵀ))
    <W, left right> = sum((W rightᵀ) * left)

and singular values come from products with vectors (Lanczos). Only the largest
entry needs all entries, a block of rows at a time. What rounding to the dtype
of the weights adds, 6e-8 of each entry in float32, is in the dense form alone.

A method that leaves the weights alone (GRACE) has R = 1 by construction, and
there is nothing to compute.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import linalg

from me_jax.analysis.kernel_difference import (
  ByFactors,
  ByRows,
  Difference,
  of_array,
  row_blocks,
)
from me_jax.edits.edit import Change, LowRank


class Drift(NamedTuple):
  """One matrix after some edits, beside what it was.

  Attributes:
    pearson_r: R over all entries, in [-1, 1]; 1 for equal matrices.
    one_minus_r: 1 - R, to the relative precision of float64.
    rel_fro: ‖W_t - W_0‖_F / ‖W_0‖_F.
    max_abs: The largest |entry| of W_t.
    sigma1_ratio: The largest singular value of W_t over that of W_0.
    dtype: Of the weights.
  """

  pearson_r: float
  one_minus_r: float
  rel_fro: float
  max_abs: float
  sigma1_ratio: float
  dtype: str


class Reference(NamedTuple):
  """A matrix before editing, with what every comparison needs of it.

  Attributes:
    kernel: [in, out], as it is stored.
    mean: Of its entries.
    centred_norm: ‖a - mean a‖.
    norm: ‖a‖.
    sigma1: The largest singular value.
  """

  kernel: np.ndarray
  mean: float
  centred_norm: float
  norm: float
  sigma1: float


def reference(kernel: Any) -> Reference:
  """What comparisons with `kernel` [in, out], of any float dtype, need.

  Raises:
    ValueError: It has not two axes of at least 2, or all entries are equal:
      nothing correlates with them.
    FloatingPointError: An entry is not finite.
  """
  kernel = np.asarray(kernel)
  if kernel.ndim != 2 or min(kernel.shape) < 2:
    raise ValueError(
      'Expected a kernel [in, out] of at least two rows and columns, got '
      f'shape {kernel.shape}.'
    )
  own = of_array(kernel)
  blocks = row_blocks(kernel.shape)
  mean = sum(own.rows(b).sum() for b in blocks) / kernel.size
  _check_finite(mean, 'unedited')
  centred = sum(((own.rows(b) - mean) ** 2).sum() for b in blocks)
  norm = float(np.sqrt(centred + kernel.size * mean**2))
  # Rounding of the mean leaves some 1e-16 of each entry.
  if np.sqrt(centred) <= 1e-12 * norm:
    raise ValueError(
      f'All entries of the kernel are {float(kernel[0, 0])}, and no '
      'correlation with them is defined. Is it a kernel of a trained model?'
    )
  return Reference(
    kernel, float(mean), float(np.sqrt(centred)), norm, _largest(own)
  )


def of_kernels(base: Reference, edited: Any) -> Drift:
  """From the weights themselves, as they were rounded.

  Args:
    base: Of the matrix before.
    edited: The matrix after, [in, out], of any float dtype.

  Raises:
    ValueError: The shapes differ, or all entries of `edited` are equal.
    FloatingPointError: An entry is not finite.
  """
  edited = np.asarray(edited)
  if edited.shape != base.kernel.shape:
    raise ValueError(
      f'The matrices have shapes {base.kernel.shape} and {edited.shape}. Are '
      'they of the same model?'
    )
  before, after = of_array(base.kernel), of_array(edited)
  difference = ByRows(
    edited.shape, lambda block: after.rows(block) - before.rows(block)
  )
  return _drift(base, difference, str(edited.dtype))


def of_change(base: Reference, change: Change) -> Drift:
  """From an edit's change of the matrix, of which only factors are used.

  Factors of a higher rank than a matrix can have are multiplied out, a block of
  rows at a time: they are larger than it.

  Args:
    base: Of the matrix before.
    change: Of that matrix; of many edits `edit.compose` makes one.

  Raises:
    ValueError: The change does not fit, or makes all entries equal.
    FloatingPointError: An entry is not finite.
  """
  shape = (change[0].shape[0], change[-1].shape[1])
  if shape != base.kernel.shape:
    raise ValueError(
      f'The kernel has shape {base.kernel.shape}, the change {shape}. Was the '
      'edit made for another model?'
    )
  if isinstance(change, LowRank):
    left, right = (np.asarray(x, np.float64) for x in change)
    difference = ByFactors(left, right)
    if change.rank > min(shape):
      difference = ByRows(shape, difference.rows)
  else:
    difference = ByRows(shape, of_array(np.asarray(change.delta)).rows)
  return _drift(base, difference, str(base.kernel.dtype))


def _drift(base: Reference, difference: Difference, dtype: str) -> Drift:
  weights = of_array(base.kernel)
  sums = difference.sums(weights, base.mean)
  _check_finite(sums.squares, 'edited')
  centred = max(sums.squares - base.kernel.size * sums.mean**2, 0.0)
  before = base.centred_norm
  # B² - A², then B and B - A.
  growth = 2 * sums.cross + centred
  after = np.sqrt(max(before**2 + growth, 0.0))
  if after <= 1e-12 * before:
    raise ValueError(
      'All entries of the edited kernel are equal, and no correlation with '
      'them is defined. Was it zeroed?'
    )
  longer = growth / (after + before)
  length = np.sqrt(centred)
  one_minus_r = (length - longer) * (length + longer) / (2 * before * after)
  one_minus_r = float(np.clip(one_minus_r, 0.0, 2.0))
  return Drift(
    pearson_r=1 - one_minus_r,
    one_minus_r=one_minus_r,
    rel_fro=float(np.sqrt(sums.squares)) / base.norm,
    max_abs=float(
      max(
        np.abs(weights.rows(block) + difference.rows(block)).max()
        for block in row_blocks(difference.shape)
      )
    ),
    sigma1_ratio=_largest(weights, difference) / base.sigma1,
    dtype=dtype,
  )


def _largest(*summands: Difference) -> float:
  """The largest singular value of a sum of matrices, to some 1e-10."""
  operator = linalg.LinearOperator(
    summands[0].shape,
    matvec=lambda v: sum(m.times(np.ravel(v)) for m in summands),
    rmatvec=lambda u: sum(m.transposed_times(np.ravel(u)) for m in summands),
    dtype=np.float64,
  )
  # The same start each time, for the same number each time.
  start = np.random.default_rng(0).standard_normal(min(operator.shape))
  found = linalg.svds(
    operator, k=1, tol=1e-12, v0=start, return_singular_vectors=False
  )
  return float(found[0])


def _check_finite(total: float, which: str) -> None:
  if not np.isfinite(total):
    raise FloatingPointError(
      f'The {which} kernel has entries that are not finite. Has the model '
      'collapsed?'
    )
