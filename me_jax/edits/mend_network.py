"""MEND's gradient transform: from the raw factors of a gradient to an edit's.

Mitchell et al., *Fast Model Editing at Scale* (2022), section 3.2 and its
published code. Matrices of one shape share a network and differ by their mode,
a scale and a shift for each layer. For each token row, with h = [x̂ ; ĝ] of
width in + out, where x̂ and ĝ are standardised by running statistics,

    h <- h + max(0, scale_mode * (U (V h) + b) + shift_mode)

twice or more, the last layer clamped as well; the halves of what comes out are
the row's x̃ and g̃, and a kernel [in, out] changes by ± α Σ x̃ ⊗ g̃, with a step
size α of its own for each. U, b and shift begin at zero, which makes the whole
the identity.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from me_jax.config import MendConfig
from me_jax.edits import mend_factors
from me_jax.edits.mend_factors import Factors, RawFactors
from me_jax.models.config import ModelConfig
from me_jax.typing import ParamPath

# {'networks': {'<in>x<out>': {'0': layer, ...}}, 'edit_lrs': [matrices]}
NetworkParams = dict[str, Any]

_EPSILON = 1e-7  # added to the deviation


class Statistics(NamedTuple):
  """Of all token rows that a network has seen, whatever their mode.

  Attributes:
    count: Rows.
    x_mean, g_mean: Means.
    x_m2, g_m2: Sums of squared differences from the mean.
  """

  count: Int[Array, '']
  x_mean: Float[Array, ' in']
  x_m2: Float[Array, ' in']
  g_mean: Float[Array, ' out']
  g_m2: Float[Array, ' out']


class Moments(NamedTuple):
  """What rows are standardised with; E is 1 where it is the same for all."""

  x_mean: Float[Array, 'E in']
  x_std: Float[Array, 'E in']
  g_mean: Float[Array, 'E out']
  g_std: Float[Array, 'E out']


def shape_name(in_dim: int, out_dim: int) -> str:
  """The name of the network for kernels of one shape."""
  return f'{in_dim}x{out_dim}'


def matrices(
  model: ModelConfig, layers: tuple[int, ...]
) -> dict[str, list[ParamPath]]:
  """The edited kernels by network; a kernel's mode is its place in the list."""
  found: dict[str, list[ParamPath]] = {}
  for path in mend_factors.edited_paths(layers):
    name = shape_name(*mend_factors.kernel_shape(model, path))
    found.setdefault(name, []).append(path)
  return found


def init_params(config: MendConfig, model: ModelConfig) -> NetworkParams:
  """Networks that change nothing, and the step sizes, float32."""
  width = model.embed_dim + model.mlp_dim
  rank = min(config.rank, width)
  by_network = matrices(model, tuple(config.layers))
  key = jax.random.key(config.seed)
  networks = {}
  for name, paths in by_network.items():
    modes = (len(paths), width)
    networks[name] = {}
    for layer in range(config.n_hidden + 1):
      key, draw = jax.random.split(key)
      networks[name][str(layer)] = {
        'v': jax.random.normal(draw, (rank, width), jnp.float32),
        'u': jnp.zeros((width, rank), jnp.float32),
        'b': jnp.zeros(width, jnp.float32),
        'scale': jnp.ones(modes, jnp.float32),
        'shift': jnp.zeros(modes, jnp.float32),
      }
  count = sum(map(len, by_network.values()))
  return {
    'networks': networks,
    'edit_lrs': jnp.full(count, config.edit_lr, jnp.float32),
  }


def num_params(config: MendConfig, model: ModelConfig) -> dict[str, int]:
  """The parameters of each network, none of which is made."""
  shapes = jax.eval_shape(lambda: init_params(config, model))['networks']
  return {
    name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network))
    for name, network in shapes.items()
  }


def init_statistics(
  config: MendConfig, model: ModelConfig
) -> dict[str, Statistics]:
  """No rows seen, for each network."""
  shapes = {
    name: mend_factors.kernel_shape(model, paths[0])
    for name, paths in matrices(model, tuple(config.layers)).items()
  }
  # Arrays of their own, so that each can be donated.
  zeros = lambda n: jnp.zeros(n, jnp.float32)
  return {
    name: Statistics(
      jnp.zeros((), jnp.int32), zeros(i), zeros(i), zeros(o), zeros(o)
    )
    for name, (i, o) in shapes.items()
  }


def kept_rows(
  x: Float[Array, '*B in'], g: Float[Array, '*B out']
) -> Bool[Array, '*B']:
  """Rows that say something: neither factor is all zero."""
  return (x != 0).any(axis=-1) & (g != 0).any(axis=-1)


def absorb(
  seen: Statistics, x: Float[Array, 'R in'], g: Float[Array, 'R out']
) -> Statistics:
  """The statistics after these rows, as if updated row by row (Chan et al.)."""
  kept = kept_rows(x, g)
  new = kept.sum(dtype=jnp.int32)
  count = seen.count + new
  share = new / jnp.maximum(count, 1)

  def merge(mean, m2, rows):
    rows_mean = (rows * kept[:, None]).sum(axis=0) / jnp.maximum(new, 1)
    rows_m2 = (jnp.square(rows - rows_mean) * kept[:, None]).sum(axis=0)
    shift = rows_mean - mean
    m2 = m2 + rows_m2 + jnp.square(shift) * (seen.count * share)
    return mean + shift * share, m2

  x_mean, x_m2 = merge(seen.x_mean, seen.x_m2, x)
  g_mean, g_m2 = merge(seen.g_mean, seen.g_m2, g)
  return Statistics(count, x_mean, x_m2, g_mean, g_m2)


def moments(seen: Statistics) -> Moments:
  """Means and deviations (n - 1), E = 1; deviation 0 before the second row."""
  std = lambda m2: jnp.sqrt(m2 / jnp.maximum(seen.count - 1, 1))[None]
  return Moments(
    seen.x_mean[None], std(seen.x_m2), seen.g_mean[None], std(seen.g_m2)
  )


def frozen_moments(
  statistics: dict[str, Statistics], raw: RawFactors
) -> dict[ParamPath, Moments]:
  """What each matrix is standardised with outside of training."""
  return {path: moments(statistics[_network(f)]) for path, f in raw.items()}


def running_moments(
  statistics: dict[str, Statistics], raw: RawFactors
) -> tuple[dict[str, Statistics], dict[ParamPath, Moments]]:
  """The statistics after all rows, and what each example is standardised with.

  Example by example, matrix by matrix: the rows of a matrix are counted right
  before they are used.
  """

  def example(seen, factors):
    used = {}
    for path in mend_factors.ordered(factors):
      name = _network(factors[path])
      seen = {**seen, name: absorb(seen[name], *factors[path])}
      used[path] = jax.tree.map(lambda a: a[0], moments(seen[name]))
    return seen, used

  return jax.lax.scan(example, statistics, raw)


def transform(
  params: NetworkParams, used: dict[ParamPath, Moments], raw: RawFactors
) -> RawFactors:
  """x̃ and g̃ of every matrix; rows that are not kept are zero in both."""
  found = {}
  order = mend_factors.ordered(raw)
  for name, network in params['networks'].items():
    paths = [path for path in order if _network(raw[path]) == name]
    x, g = (jnp.stack(a) for a in zip(*(raw[p] for p in paths), strict=True))
    by_matrix = zip(*(used[path] for path in paths), strict=True)
    m = Moments(*(jnp.stack(a)[:, :, None] for a in by_matrix))
    kept = kept_rows(x, g)[..., None]
    h = jnp.concatenate(
      [
        (x - m.x_mean) / (m.x_std + _EPSILON),
        (g - m.g_mean) / (m.g_std + _EPSILON),
      ],
      axis=-1,
    )
    with jax.default_matmul_precision('highest'):
      for _, layer in sorted(network.items()):
        h = _layer(layer, h)
    h = jnp.where(kept, h, 0)
    at = x.shape[-1]
    for mode, path in enumerate(paths):
      found[path] = Factors(h[mode, ..., :at], h[mode, ..., at:])
  return {path: found[path] for path in order}


def changes(
  params: NetworkParams,
  used: dict[ParamPath, Moments],
  raw: RawFactors,
  step_sign: str,
) -> dict[ParamPath, tuple[jax.Array, jax.Array]]:
  """left [E, R, in] and right [E, R, out] of each kernel's change."""
  sign = -1.0 if step_sign == 'minus' else 1.0
  transformed = transform(params, used, raw)
  return {
    path: (x, sign * alpha * g)
    for alpha, (path, (x, g)) in zip(
      params['edit_lrs'], transformed.items(), strict=True
    )
  }


def _layer(layer: dict[str, jax.Array], h: jax.Array) -> jax.Array:
  """One residual layer on [M, E, R, width], mode by mode."""
  z = (h @ layer['v'].T) @ layer['u'].T + layer['b']
  z = layer['scale'][:, None, None] * z + layer['shift'][:, None, None]
  # Not relu: at exactly 0, where every entry begins, the gradient must be 1.
  return h + jnp.where(z >= 0, z, 0)


def _network(factors: Factors) -> str:
  return shape_name(factors.x.shape[-1], factors.g.shape[-1])
