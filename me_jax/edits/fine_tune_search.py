"""Adam on one `down_proj`, compiled as a whole.

Nothing below the matrix depends on it, nor does attention in its layer:
`prepare` computes that once, a step of `search` runs the layers above. What is
searched is the change, from zero, so that the edit is to the bit what the loss
was computed with.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from me_jax.edits import mend_factors, target_texts
from me_jax.edits.target_texts import TextRows
from me_jax.models import llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


class SearchConfig(NamedTuple):
  """The part of the hyper-parameters that the search needs."""

  lr: float
  num_steps: int
  early_stop_loss: float
  norm_constraint: float


class Prepared(NamedTuple):
  """All that the search needs and no step changes.

  Attributes:
    keys: Input of the matrix.
    x: Residual stream that its output is added to.
  """

  keys: Float[Array, 'N S F']
  x: Float[Array, 'N S D']


class Found(NamedTuple):
  """The result of `search`.

  Attributes:
    delta: The change of the matrix.
    num_evaluations: How many of `losses` were computed.
    losses: Of each row, before each step.
    final_losses: Of each row, with `delta`.
  """

  delta: Float[Array, 'F D']
  num_evaluations: Int[Array, '']
  losses: Float[Array, 'steps N']
  final_losses: Float[Array, ' N']


class _Searching(NamedTuple):
  """The state between two steps."""

  delta: Float[Array, 'F D']
  moments: optax.OptState
  stop: Bool[Array, '']
  num_evaluations: Int[Array, '']
  losses: Float[Array, 'steps N']


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def prepare(
  config: ModelConfig, params: Params, rows: TextRows, *, layer: int
) -> Prepared:
  """One pass up to the matrix."""
  key_site = sites.site(layer, 'mlp/key')
  output_site = sites.site(layer, 'mlp/out')
  positions, mask = target_texts.layout(rows.lengths, rows.ids.shape[1])
  below = llama.run_layers(
    config,
    params,
    llama.embed(config, params, rows.ids),
    positions=positions,
    mask=mask,
    stop=layer + 1,
    taps=(key_site,),
    interventions={output_site: lambda output, key: jnp.zeros_like(output)},
  )
  return Prepared(below.taps[key_site], below.x)


@functools.partial(
  jax.jit, static_argnames=('config', 'layer', 'search_config')
)
def search(
  config: ModelConfig,
  params: Params,
  rows: TextRows,
  prepared: Prepared,
  center: Float[Array, 'F D'] | Float[Array, ''],
  *,
  layer: int,
  search_config: SearchConfig,
) -> Found:
  """The change after Adam's steps down the mean loss of the rows.

  The loss of a row is the mean negative log-likelihood of its targets. A loss
  below `early_stop_loss` ends the search before its step, and so does one that
  is not a number.

  Args:
    config: The model's shape.
    params: The model's weights.
    rows: The facts.
    prepared: Of the same rows.
    center: Change that `norm_constraint` bounds the change around, entry by
      entry.
    layer: Layer whose `down_proj` is searched.
    search_config: Hyper-parameters.
  """
  c = search_config
  kernel = params['layers'][str(layer)]['mlp']['down_proj']['kernel']
  optimizer = optax.adam(c.lr)
  losses_of = functools.partial(
    _losses, config, params, rows, prepared, layer, kernel
  )

  def loss(delta):
    losses = losses_of(delta)
    return losses.mean(), losses

  def step(now):
    (mean, losses), grad = jax.value_and_grad(loss, has_aux=True)(now.delta)
    stop = ~(mean >= c.early_stop_loss)
    update, moments = optimizer.update(grad, now.moments)
    delta = now.delta + update
    if c.norm_constraint:
      bound = jnp.float32(c.norm_constraint)
      delta = jnp.clip(delta, center - bound, center + bound)
    return _Searching(
      jnp.where(stop, now.delta, delta),
      moments,
      stop,
      now.num_evaluations + 1,
      now.losses.at[now.num_evaluations].set(losses),
    )

  zero = jnp.zeros_like(kernel)
  start = _Searching(
    zero,
    optimizer.init(zero),
    jnp.zeros((), bool),
    jnp.zeros((), jnp.int32),
    jnp.zeros((c.num_steps, rows.ids.shape[0]), jnp.float32),
  )
  with jax.default_matmul_precision('highest'):
    end = jax.lax.while_loop(
      lambda now: ~now.stop & (now.num_evaluations < c.num_steps), step, start
    )
    return Found(
      end.delta, end.num_evaluations, end.losses, losses_of(end.delta)
    )


def _losses(config, params, rows, prepared, layer, kernel, delta):
  """The loss of each row, [N]."""
  x = prepared.x + prepared.keys @ (kernel + delta)
  final, _ = mend_factors.tail(
    config,
    params,
    x.astype(prepared.x.dtype),
    rows.lengths,
    start=layer + 1,
  )
  logits = mend_factors.read_logits(config, params, final, rows.reads)
  per_token = mend_factors.nll(logits, rows.reads.targets)
  return target_texts.by_row(rows.reads, per_token, rows.ids.shape[0])
