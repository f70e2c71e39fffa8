"""MEMIT's and EMMET's closed forms, in float64, with N x N systems only.

MEMIT (Meng et al., *Mass-Editing Memory in a Transformer*, 2023, equation 14)
wants the keys K [F, N] of a batch to give E [D, N] more than they do, and all
other keys, with second moment C, to give what they gave:

    ΔW = E Aᵀ,  A = (λ C + K Kᵀ)⁻¹ K = Y (λ I + Kᵀ Y)⁻¹,  Y = C⁻¹ K

The second form is the first after Woodbury's identity: C is factored once for
all edits, and an edit solves as many equations as it has facts. One key alone
delivers q / (λ + q) of what it is asked for, q = kᵀ C⁻¹ k.

Keys Q of earlier batches that are to stay, too, come in as keys that are asked
for nothing: A is the last N columns of `C⁻¹ [Q K] (λ I + ...)⁻¹`.

EMMET (Gupta et al., *A Unified Framework for Model Editing*, 2024) poses
`(W + ΔW) K = V` as constraints, softened by λ_e on the diagonal. Its closed
form is the same expression with λ_e for λ; at λ_e = 0 and N = 1 it is r-ROME's.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from me_jax.edits.second_moment_factor import Factor

# Of the solution put back into its equations. With λ = 0, keys that nearly
# depend on each other leave more, and what was solved for is noise.
_RESIDUAL = 1e-6


class Solution(NamedTuple):
  """What the keys of a batch turn residuals into a change with.

  Attributes:
    left: A; the kernel's change is `left @ residuals`.
    delivered: Of what each key is asked for, the fraction that it gets from
      its own column; the diagonal of Aᵀ K.
  """

  left: Float64[np.ndarray, 'F N']
  delivered: Float64[np.ndarray, ' N']


def solve(
  keys: Float64[np.ndarray, 'F N'],
  factor: Factor,
  weight: float,
  previous: Float64[np.ndarray, 'F P'] | None = None,
) -> Solution:
  """A, and how much of its residual each key delivers.

  Args:
    keys: K, a column for each fact.
    factor: Of the second moment.
    weight: λ of MEMIT, λ_e of EMMET, both for a second moment that is a mean.
    previous: Keys of earlier batches that are to stay.

  Raises:
    ValueError: Keys depend on each other and `weight` is too small to choose
      among the solutions.
  """
  count = keys.shape[1]
  joined = keys if previous is None else np.concatenate([previous, keys], 1)
  solved = factor.solve(joined)
  gram = joined.T @ solved
  # Symmetric but for rounding, which must not depend on the order of keys.
  system = (gram + gram.T) / 2 + weight * np.eye(len(gram))
  wanted = np.eye(len(gram))[:, -count:]
  try:
    inverse = np.linalg.solve(system, wanted)
    missed = np.abs(system @ inverse - wanted).max()
  except np.linalg.LinAlgError:
    missed = np.inf
  # Written so that a NaN fails.
  if not missed <= _RESIDUAL:
    raise ValueError(
      f'The keys of {gram.shape[0]} facts depend on each other, so that '
      f'lambda = {weight} leaves no unique edit. Set it higher, or put facts '
      'about the same subject into different batches.'
    )
  left = solved @ inverse
  return Solution(left, (left * keys).sum(axis=0))
