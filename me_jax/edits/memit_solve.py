"""MEMIT's and EMMET's closed forms, in float64, with N x N systems only.

MEMIT (Meng et al., *Mass-Editing Memory in a Transformer*, 2023, equation 14)
wants the keys K [F, N] of a batch to give E [D, N] more than they do, and all
other keys, with second moment C, to give what they gave:

    ΔW = E Aᵀ,  A = (λ C + K Kᵀ)⁻¹ K = Y (λ I + Kᵀ Y)⁻¹,  Y = C⁻¹ K

The second form is the first after Woodbury's identity: C is factored once for
all edits, and an edit solves as many equations as it has facts. One key alone
delivers q / (λ + q) of what it is asked for, q = kᵀ C⁻¹ k.

Keys Q of earlier batches that are to stay, too, come in as keys that are asked
for nothing: A is the last N columns of `C⁻¹ [Q K] (λ I + ...)⁻¹`. Of Q only
C⁻¹ Q and Qᵀ C⁻¹ Q are needed, which were computed when Q was new.

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


class Solved(NamedTuple):
  """Keys Q of earlier batches, as far as later ones need them.

  Attributes:
    keys: C⁻¹ Q.
    gram: Qᵀ C⁻¹ Q.
  """

  keys: Float64[np.ndarray, 'F P']
  gram: Float64[np.ndarray, 'P P']


class Solution(NamedTuple):
  """What the keys of a batch turn residuals into a change with.

  Attributes:
    left: A; the kernel's change is `left @ residuals`.
    delivered: Of what each key is asked for, the fraction that it gets from
      its own column; the diagonal of Aᵀ K.
    keys: Y = C⁻¹ K.
    gram: [Q K]ᵀ C⁻¹ [Q K], Q being the keys of earlier batches.
  """

  left: Float64[np.ndarray, 'F N']
  delivered: Float64[np.ndarray, ' N']
  keys: Float64[np.ndarray, 'F N']
  gram: Float64[np.ndarray, 'M M']


def solve(
  keys: Float64[np.ndarray, 'F N'],
  factor: Factor,
  weight: float,
  previous: Solved | None = None,
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
  solved, gram = factor.solve(keys), np.zeros((0, 0))
  columns = solved
  if previous is not None:
    columns = np.concatenate([previous.keys, solved], axis=1)
    gram = previous.gram
  below = columns.T @ keys
  gram = np.block([[gram, below[:-count]], [below.T]])
  # Symmetric but for rounding, which must not depend on the order of keys.
  gram = (gram + gram.T) / 2
  system = gram + weight * np.eye(len(gram))
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
  left = columns @ inverse
  return Solution(left, (left * keys).sum(axis=0), solved, gram)
