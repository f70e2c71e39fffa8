"""The latent search: a vector that makes the model say the target.

Added to the residual stream after the edited layer, at the subject's last
token. ROME searches the output of the MLP (v*), MEMIT that of the block (z*);
the sum is the same, only the vector that is started from differs.

Nothing below the edited layer and nothing before the subject's last token
depends on the vector. `prepare` computes that once; a step of `search` runs the
layers above on the few tokens that are left.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from me_jax.edits.rows import Rows
from me_jax.models import attention, llama, sites
from me_jax.models import cache as cache_lib
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
  """Hyper-parameters of the search; see `config.RomeConfig`."""

  v_num_grad_steps: int
  v_lr: float
  v_weight_decay: float
  clamp_norm_factor: float
  kl_factor: float
  early_stop_loss: float


class Prepared(NamedTuple):
  """All that the search needs and no step changes. P template rows, then one.

  Attributes:
    keys: `mlp/key` of the edited layer at each lookup position.
    outputs: The searched site at each lookup position; row 0 is
      `target_init`.
    tail: Residual stream after the edited layer, from the lookup position on.
    cache: Keys and values of the layers above, room for the tail included.
    essence: Log-probabilities after the subject in the last row.
  """

  keys: Float[Array, 'rows F']
  outputs: Float[Array, 'rows D']
  tail: Float[Array, 'rows W D']
  cache: cache_lib.Cache
  essence: Float[Array, ' V']


class Found(NamedTuple):
  """The result of a search; entry i of the histories was evaluated before
  update i.

  Attributes:
    delta: The vector found.
    num_evaluations: Valid entries of the histories.
    nll: Mean over rows of the mean negative log-likelihood of the targets.
    kl: Weighted divergence from the unedited essence.
    weight_decay: Weighted norm of the vector.
    target_probability: Mean over rows of exp(-nll of the row).
    delta_norm: ‖delta‖ where the loss was evaluated.
    projected: The vector had just been pulled back to the clamp.
  """

  delta: Float[Array, ' D']
  num_evaluations: Int[Array, '']
  nll: Float[Array, ' steps']
  kl: Float[Array, ' steps']
  weight_decay: Float[Array, ' steps']
  target_probability: Float[Array, ' steps']
  delta_norm: Float[Array, ' steps']
  projected: Bool[Array, ' steps']


class Searching(NamedTuple):
  """A search between two steps.

  Attributes:
    i: Evaluations so far.
    stop: It has ended.
    delta: Where the loss is evaluated next.
    moments: Adam's.
    projected: `delta` has just been pulled back to the clamp.
    found: The result so far.
  """

  i: Int[Array, '']
  stop: Bool[Array, '']
  delta: Float[Array, ' D']
  moments: optax.OptState
  projected: Bool[Array, '']
  found: Found


@functools.partial(jax.jit, static_argnames=('config', 'layer', 'site'))
def prepare(
  config: ModelConfig, params: Params, rows: Rows, *, layer: int, site: str
) -> Prepared:
  """One pass over whole rows: keys, start values, and all that stays fixed.

  Args:
    config: The model's shape.
    params: Weights before the edit.
    rows: Token rows of one request.
    layer: The edited layer.
    site: What is searched: 'mlp/out' (ROME) or 'resid' (MEMIT).
  """
  with jax.default_matmul_precision('highest'):
    count, length = rows.ids.shape
    slots = jnp.broadcast_to(jnp.arange(length), (count, length))
    real = slots < rows.lengths[:, None]
    run = functools.partial(
      llama.run_layers,
      config,
      params,
      positions=slots,
      mask=attention.causal_mask(slots, slots, real),
    )
    key_site, value_site = sites.site(layer, 'mlp/key'), sites.site(layer, site)
    below = run(
      llama.embed(config, params, rows.ids),
      stop=layer + 1,
      taps=(key_site, value_site),
    )
    above = run(below.x, start=layer + 1)
    at_lookup = lambda x: jnp.take_along_axis(
      x, rows.lookups[:, None, None], axis=1
    )[:, 0]
    # Right padding may end before the window does: the last slot stands in for
    # what is beyond, which nothing reads.
    window = rows.lookups[:, None] + rows.tail_slots
    window = jnp.minimum(window, length - 1)
    subject_logits = llama.logits(config, params, at_lookup(above.x)[-1])
    return Prepared(
      keys=at_lookup(below.taps[key_site]).astype(jnp.float32),
      outputs=at_lookup(below.taps[value_site]).astype(jnp.float32),
      tail=jnp.take_along_axis(below.x, window[..., None], axis=1),
      cache=cache_lib.add_slots(above.cache, rows.tail_slots.size),
      essence=jax.nn.log_softmax(subject_logits),
    )


@functools.partial(
  jax.jit, static_argnames=('config', 'layer', 'search_config')
)
def search(
  config: ModelConfig,
  params: Params,
  rows: Rows,
  prepared: Prepared,
  *,
  layer: int,
  search_config: SearchConfig,
) -> Found:
  """The vector that minimises the loss, by projected Adam from zero.

  `loss = NLL + kl_factor * KL(now ‖ before) + v_weight_decay * ‖delta‖ /
  ‖target_init‖^2` (Meng et al. 2022, equation 4, with the published weight
  decay). Ends when the loss falls below `early_stop_loss` or after
  `v_num_grad_steps` evaluations; the last evaluation makes no update.
  """
  c = search_config
  loss_and_grad = jax.value_and_grad(
    functools.partial(_loss, config, params, rows, prepared, layer, c),
    has_aux=True,
  )
  largest = c.clamp_norm_factor * jnp.linalg.norm(prepared.outputs[0])

  def step(now):
    (loss, parts), grad = loss_and_grad(now.delta)
    return advance(c, now, largest, loss, parts, grad)

  with jax.default_matmul_precision('highest'):
    return jax.lax.while_loop(
      lambda now: ~now.stop, step, begin(c, jnp.zeros_like(prepared.outputs[0]))
    ).found


def begin(c: SearchConfig, zero: Float[Array, ' D']) -> Searching:
  """A search at `zero` that has evaluated nothing yet."""
  history = jnp.zeros(c.v_num_grad_steps, jnp.float32)
  nothing_found = Found(
    zero,
    jnp.zeros((), jnp.int32),
    *(history,) * 5,
    projected=jnp.zeros(c.v_num_grad_steps, bool),
  )
  return Searching(
    jnp.zeros((), jnp.int32),
    jnp.zeros((), bool),
    zero,
    optax.adam(c.v_lr).init(zero),
    jnp.zeros((), bool),
    nothing_found,
  )


def advance(
  c: SearchConfig,
  now: Searching,
  largest: Float[Array, ''],
  loss: Float[Array, ''],
  parts: dict[str, Float[Array, '']],
  grad: Float[Array, ' D'],
) -> Searching:
  """One evaluation noted, and one update, pulled back where above `largest`.

  Args:
    c: Hyper-parameters.
    now: Before.
    largest: Longest vector allowed.
    loss: At `now.delta`.
    parts: What of it goes into the histories of `Found`.
    grad: Of the loss.
  """
  parts = {**parts, 'delta_norm': norm(now.delta), 'projected': now.projected}
  found = now.found._replace(
    delta=now.delta,
    num_evaluations=now.i + 1,
    **{
      name: getattr(now.found, name).at[now.i].set(value)
      for name, value in parts.items()
    },
  )
  stop = (loss < c.early_stop_loss) | (now.i == c.v_num_grad_steps - 1)
  update, moments = optax.adam(c.v_lr).update(grad, now.moments)
  delta = now.delta + update
  length = norm(delta)
  projected = length > largest
  delta = jnp.where(projected, delta * (largest / length), delta)
  return Searching(now.i + 1, stop, delta, moments, projected, found)


def history(found: Found) -> list[dict[str, float | bool]]:
  """One record of JSON values per evaluation; `found` is on the host."""
  names = [n for n in found._fields if n not in ('delta', 'num_evaluations')]
  return [
    {
      'loss': float(found.nll[i] + found.kl[i] + found.weight_decay[i]),
      **{name: getattr(found, name)[i].item() for name in names},
    }
    for i in range(int(found.num_evaluations))
  ]


def _loss(config, params, rows, prepared, layer, c, delta):
  slots = rows.ids.shape[1]
  width = rows.tail_slots.size
  x = prepared.tail.at[:, 0].add(delta.astype(prepared.tail.dtype))
  positions = rows.lookups[:, None] + rows.tail_slots
  before = jnp.arange(slots) < rows.lookups[:, None]
  mask = jnp.concatenate(
    [
      jnp.broadcast_to(before[:, None], (x.shape[0], width, slots)),
      jnp.broadcast_to(
        jnp.tril(jnp.ones((width, width), bool)), (x.shape[0], width, width)
      ),
    ],
    axis=-1,
  )
  x = llama.run_layers(
    config,
    params,
    x,
    positions=positions,
    mask=mask,
    start=layer + 1,
    cache=prepared.cache,
    cache_index=slots,
  ).x
  at_targets = jnp.take_along_axis(x[:-1], rows.target_slots[..., None], axis=1)
  # One product for all rows: the table of V is read once a step, not twice.
  read = jnp.concatenate([at_targets.reshape(-1, x.shape[-1]), x[-1, :1]])
  logits = llama.logits(config, params, read)
  chosen = jnp.take_along_axis(
    logits[:-1], rows.targets.reshape(-1, 1), axis=-1
  )[:, 0]
  logprobs = chosen - jax.nn.logsumexp(logits[:-1], axis=-1)
  weighted = logprobs.reshape(rows.targets.shape) * rows.target_weights
  row_nll = -weighted.sum(axis=1)
  nll = row_nll.mean()
  now = jax.nn.log_softmax(logits[-1])
  kl = c.kl_factor * (jnp.exp(now) * (now - prepared.essence)).sum()
  start_norm = jnp.linalg.norm(prepared.outputs[0])
  weight_decay = c.v_weight_decay * norm(delta) / start_norm**2
  parts = {
    'nll': nll,
    'kl': kl,
    'weight_decay': weight_decay,
    'target_probability': jnp.exp(-row_nll).mean(),
  }
  return nll + kl + weight_decay, parts


def norm(x: jax.Array) -> jax.Array:
  """‖x‖ with gradient 0, not NaN, at x = 0, where the search starts."""
  square = (x * x).sum()
  safe = jnp.where(square > 0, square, 1.0)
  return jnp.where(square > 0, jnp.sqrt(safe), 0.0)
