"""Learning what to put out in the place of a layer, for one fact.

Nothing below the layer depends on the value, nor does attention in it:
`prepare` computes that once, a step of `learn` runs the layers above.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from me_jax import generation
from me_jax.data.token_ids import JointIds
from me_jax.edits.grace_lookup import replaced
from me_jax.models import attention, llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Params

_TARGETS = (4, 8, 16, 32, *generation.BUCKETS[2:])


class Row(NamedTuple):
  """Prompt and target of one fact, padded on the right to buckets.

  Attributes:
    ids: int32 [1, S], what the model is fed: all but the last target.
    length: int32 [], real tokens.
    query: int32 [], with which token the codebook is asked.
    targets: int32 [T].
    slots: int32 [T], where each target is predicted.
    weights: float32 [T]: 1 / targets, 0 for padding.
  """

  ids: np.ndarray
  length: np.ndarray
  query: np.ndarray
  targets: np.ndarray
  slots: np.ndarray
  weights: np.ndarray


class Prepared(NamedTuple):
  """All that learning needs and no step changes.

  Attributes:
    key: Of the query.
    output: Of the layer there, as the weights have it.
    outputs: The same at each token.
    x: Residual stream after the layer.
  """

  key: Float[Array, ' F']
  output: Float[Array, ' D']
  outputs: Float[Array, '1 S D']
  x: Float[Array, '1 S D']


class Said(NamedTuple):
  """How the model takes the target.

  Attributes:
    loss: Mean negative log-likelihood of its tokens.
    is_right: Every token of it is the most likely one.
  """

  loss: Float[Array, '']
  is_right: Bool[Array, '']


class Learned(NamedTuple):
  """The result of `learn`.

  Attributes:
    value: After the last update.
    losses: Before each update.
    said: With `value`.
  """

  value: Float[Array, ' D']
  losses: Float[Array, ' steps']
  said: Said


def build_row(joint: JointIds, policy: str) -> Row:
  """The row of a prompt and its target; `policy` says which token asks."""
  ids, targets = joint.full[:-1], joint.target
  first = joint.num_prompt - 1
  query = len(ids) - 1 if policy == 'last_input' else first
  length = generation.bucket(len(ids))
  width = generation.bucket(len(targets), _TARGETS)
  padded = lambda values, size, dtype: np.array(
    [*values, *[0] * (size - len(values))], dtype
  )
  slots = range(first, first + len(targets))
  return Row(
    ids=padded(ids, length, np.int32)[None],
    length=np.int32(len(ids)),
    query=np.int32(query),
    targets=padded(targets, width, np.int32),
    slots=padded(slots, width, np.int32),
    weights=padded([1 / len(targets)] * len(targets), width, np.float32),
  )


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def prepare(
  config: ModelConfig, params: Params, row: Row, *, layer: int
) -> Prepared:
  """One pass up to the layer."""
  key_site = sites.site(layer, 'mlp/key')
  value_site = sites.site(layer, 'mlp/out')
  below = llama.run_layers(
    config,
    params,
    llama.embed(config, params, row.ids),
    stop=layer + 1,
    taps=(key_site, value_site),
    **_attention(row.ids, row.length),
  )
  outputs = below.taps[value_site]
  return Prepared(
    key=below.taps[key_site][0, row.query].astype(jnp.float32),
    output=outputs[0, row.query].astype(jnp.float32),
    outputs=outputs,
    x=below.x,
  )


@functools.partial(jax.jit, static_argnames=('config', 'layer', 'rule'))
def say(
  config: ModelConfig,
  params: Params,
  row: Row,
  prepared: Prepared,
  value: Float[Array, ' D'],
  hit: Bool[Array, ''],
  *,
  layer: int,
  rule: str,
) -> Said:
  """How the model takes the target with `value` in place, if it was hit."""
  return _say(config, params, row, prepared, layer, rule, hit, value)[1]


@functools.partial(
  jax.jit, static_argnames=('config', 'layer', 'rule', 'n_iter', 'edit_lr')
)
def learn(
  config: ModelConfig,
  params: Params,
  row: Row,
  prepared: Prepared,
  value: Float[Array, ' D'],
  *,
  layer: int,
  rule: str,
  n_iter: int,
  edit_lr: float,
) -> Learned:
  """The value after `n_iter` steps of a new Adam from `value`.

  Minimises the mean negative log-likelihood of the target's tokens. There is
  no early stop.
  """
  look = functools.partial(
    _say, config, params, row, prepared, layer, rule, True
  )
  optimizer = optax.adam(edit_lr)

  def step(carry, _):
    value, moments = carry
    (loss, _), grad = jax.value_and_grad(look, has_aux=True)(value)
    update, moments = optimizer.update(grad, moments)
    return (value + update, moments), loss

  (value, _), losses = jax.lax.scan(
    step, (value, optimizer.init(value)), length=n_iter
  )
  return Learned(value, losses, look(value)[1])


def _attention(ids: jax.Array, length: jax.Array) -> dict[str, jax.Array]:
  slots = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  mask = attention.causal_mask(slots, slots, slots < length)
  return {'positions': slots, 'mask': mask}


def _say(config, params, row, prepared, layer, rule, hit, value):
  """The loss, for its gradient, and `Said`."""
  slots = jnp.arange(row.ids.shape[1])[None]
  where = replaced(rule, slots, row.query) & hit
  x = prepared.x.astype(jnp.float32)
  instead = x - prepared.outputs.astype(jnp.float32) + value
  x = jnp.where(where[..., None], instead, x).astype(prepared.x.dtype)
  x = llama.run_layers(
    config,
    params,
    x,
    start=layer + 1,
    **_attention(row.ids, row.length),
  ).x
  logits = llama.logits(config, params, x[0, row.slots])
  chosen = jnp.take_along_axis(logits, row.targets[:, None], axis=-1)[:, 0]
  logprobs = chosen - jax.nn.logsumexp(logits, axis=-1)
  loss = -(logprobs * row.weights).sum()
  is_right = (logits.argmax(axis=-1) == row.targets) | (row.weights == 0)
  return loss, Said(loss, is_right.all())
