"""How fast a latent search could be: its arithmetic at the speed of matrices.

Only what cannot be avoided is counted: the layers above the edited one, on the
real tokens from the subject's last one on, forward and backward with respect
to activations, attention, and the logits that the loss reads.
"""

import time
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.edits.rows import Rows
from me_jax.models.config import ModelConfig

Shape = tuple[int, int, int]  # (m, k, n): [m, k] @ [k, n]
_REPEATS = 9
_FLOPS_PER_CALL = 5e8
_MOST_PER_CALL = 16


class Work(NamedTuple):
  """Floating-point operations of one search.

  Attributes:
    matmuls: How many products of an activation and a weight, by shape.
    attention: Operations of the products of two activations.
  """

  matmuls: Counter[Shape]
  attention: int

  @property
  def flops(self) -> int:
    """All operations, a multiplication and an addition counted as two."""
    products = sum(2 * m * k * n * c for (m, k, n), c in self.matmuls.items())
    return products + self.attention


def search_work(
  config: ModelConfig, rows: Rows, *, layer: int, evaluations: int
) -> Work:
  """Work of a search with that many evaluations, the last one forward only."""
  c = config
  depth = c.num_layers - layer - 1
  tails = rows.lengths - rows.lookups
  tokens = int(tails.sum())
  heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  block = [
    *[(c.embed_dim, heads)],
    *[(c.embed_dim, kv)] * 2,
    *[(heads, c.embed_dim)],
    *[(c.embed_dim, c.mlp_dim)] * 2,
    *[(c.mlp_dim, c.embed_dim)],
  ]
  # The divergence reads one more row of logits.
  predicted = int((rows.target_weights > 0).sum()) + 1
  matmuls: Counter[Shape] = Counter()
  for a, b in block:
    matmuls[tokens, a, b] += depth * evaluations
    matmuls[tokens, b, a] += depth * (evaluations - 1)
  matmuls[predicted, c.embed_dim, c.vocab_size] += evaluations
  matmuls[predicted, c.vocab_size, c.embed_dim] += evaluations - 1

  # Pairs of a tail token and a token that it sees.
  pairs = sum(
    (2 * int(p) + int(n) + 1) * int(n) // 2
    for p, n in zip(rows.lookups, tails, strict=True)
  )
  # Scores and mixtures forward; backward each again, and once more for the
  # keys and values of the tail.
  within = int((tails * (tails + 1) // 2).sum())
  forward = 4 * heads * pairs
  backward = 4 * heads * (pairs + within)
  attention = depth * (evaluations * forward + (evaluations - 1) * backward)
  return Work(matmuls, attention)


def seconds(work: Work) -> float:
  """Time of `work` at the speeds measured now.

  Each shape is timed alone, the best of a few, so that a disturbance never
  raises the floor; attention is charged at the mean speed of the rest.
  """
  products = 0.0
  for shape, count in work.matmuls.items():
    products += count * _matmul_seconds(shape)
  flops = work.flops
  return products * flops / (flops - work.attention)


def _matmul_seconds(shape: Shape) -> float:
  m, k, n = shape
  # Small products go several to a call, or the call would be what is timed.
  number = int(np.clip(_FLOPS_PER_CALL / (2 * m * k * n), 1, _MOST_PER_CALL))
  rng = np.random.default_rng(0)
  draw = lambda *size: jnp.asarray(rng.standard_normal(size, np.float32))
  x, weights = draw(m, k), [draw(k, n) for _ in range(number)]
  jax.block_until_ready(_matmuls(x, weights))
  best = float('inf')
  for _ in range(_REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(_matmuls(x, weights))
    best = min(best, time.perf_counter() - start)
  return best / number


@jax.jit
def _matmuls(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
  with jax.default_matmul_precision('highest'):
    return [x @ w for w in weights]
