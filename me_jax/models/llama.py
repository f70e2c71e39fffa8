"""A LLaMA as plain functions over a parameter tree.

`embed`, `run_layers`, `logits`: a forward pass may start and stop at any layer,
so whoever changes layer 5 runs the layers below it once. Layers are separate
sub-trees (`layers/5/...`), so an edit replaces one leaf and shares the others.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from me_jax.models import sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Interventions, Params, Site, Taps

# Keys [B, K, S, H] and values [B, K, H, S] of earlier tokens, by layer name;
# without B where all rows have them in common. In this order both products of
# attention read them as they lie.
KeysValues = tuple[jax.Array, jax.Array]
Cache = dict[str, KeysValues]


class LayersOutput(NamedTuple):
  """What `run_layers` returns."""

  x: Float[Array, 'B T D']
  taps: Taps
  cache: Cache  # of the layers run; the current tokens' keys and values in it


class Attention(nn.Module):
  """Grouped-query attention with rotary positions."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x,
    positions,
    mask,
    cache,
    cache_index,
    prefix,
    prefix_length,
    intervene,
    is_seen,
  ):
    c = self.config
    dense = functools.partial(
      nn.Dense, use_bias=False, dtype=jnp.dtype(c.dtype)
    )
    split = lambda y: y.reshape(*y.shape[:-1], -1, c.head_dim)
    q = split(dense(c.num_heads * c.head_dim, name='q_proj')(x))
    k = split(dense(c.num_kv_heads * c.head_dim, name='k_proj')(x))
    v = split(dense(c.num_kv_heads * c.head_dim, name='v_proj')(x))
    q = rope(q, positions, c.rope_theta)
    k = rope(k, positions, c.rope_theta)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 3, 1)
    if cache is not None:
      k, v = _write(cache, (k, v), cache_index)

    b, t = x.shape[:2]
    # In this order both products put their results where they are wanted:
    # scores are never moved.
    q = q.reshape(b, t, c.num_kv_heads, -1, c.head_dim) / c.head_dim**0.5
    q = q.transpose(0, 2, 3, 1, 4)
    scores = _masked('BKGTH,BKSH->BKGTS', q, k, mask[:, None, None])
    if prefix is None:
      weights, total = _softmax(scores)
    else:
      # One product for all rows; the prefix is never copied into each.
      is_there = jnp.arange(prefix[0].shape[1]) < prefix_length
      shared = _masked(
        'KBGTH,KPH->KBGTP', q.swapaxes(0, 1), prefix[0], is_there
      )
      weights, total, shared_weights = _softmax_with_shared(scores, shared)
    if is_seen:
      weights, total = self._seen(intervene, weights, total, scores, prefix)
    out = jnp.einsum('BKGTS,BKHS->BKGTH', weights.astype(v.dtype), v)
    if prefix is not None:
      out += jnp.einsum(
        'KBGTP,KHP->KBGTH', shared_weights.astype(v.dtype), prefix[1]
      ).swapaxes(0, 1)
    # Divided here, where there are H numbers a token instead of S.
    out = (out / total[..., None]).astype(x.dtype)
    out = out.transpose(0, 3, 1, 2, 4).reshape(b, t, -1)
    return dense(c.embed_dim, name='o_proj')(out), (k, v)

  def _seen(self, intervene, weights, total, scores, prefix):
    """The weights as the site `attn/probs` shows and replaces them."""
    if prefix is not None:
      raise ValueError(
        'attn/probs is not available behind a shared prefix. Compute the '
        'whole text in each row.'
      )
    b, k, g, t, s = weights.shape
    by_head = lambda x: x.reshape(b, k * g, t, s)
    probs = weights / total[..., None]
    probs = intervene('attn/probs', by_head(probs), by_head(scores))
    return probs.reshape(weights.shape), jnp.ones_like(total)


class MLP(nn.Module):
  """`down_proj(silu(gate_proj x) * up_proj x)`."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x, intervene):
    c = self.config
    dense = functools.partial(
      nn.Dense, use_bias=False, dtype=jnp.dtype(c.dtype)
    )
    gate = dense(c.mlp_dim, name='gate_proj')(x)
    up = dense(c.mlp_dim, name='up_proj')(x)
    key = intervene('mlp/key', jax.nn.silu(gate) * up, x)
    return intervene('mlp/out', dense(c.embed_dim, name='down_proj')(key), key)


class Block(nn.Module):
  """One layer: attention and MLP, each on a normed residual."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x,
    positions,
    mask,
    cache,
    cache_index,
    prefix,
    prefix_length,
    taps=(),
    interventions=None,
  ):
    c = self.config
    norm = functools.partial(
      nn.RMSNorm, epsilon=c.norm_eps, dtype=jnp.dtype(c.dtype)
    )
    tapped = {}

    def intervene(name, output, site_input):
      if interventions and name in interventions:
        output = interventions[name](output, site_input)
      if name in taps:
        tapped[name] = output
      return output

    attn, cache = Attention(c, name='self_attn')(
      norm(name='input_layernorm')(x),
      positions,
      mask,
      cache,
      cache_index,
      prefix,
      prefix_length,
      intervene,
      is_seen='attn/probs' in taps or 'attn/probs' in (interventions or {}),
    )
    h = x + attn
    mlp = MLP(c, name='mlp')(
      norm(name='post_attention_layernorm')(h), intervene
    )
    return intervene('resid', h + mlp, x), tapped, cache


def _masked(
  names: str, q: jax.Array, k: jax.Array, mask: jax.Array
) -> jax.Array:
  """Attention scores in float32, where the mask lets."""
  # The lowest finite number, not -inf: a row of padding, which attends to
  # nothing, must not become NaN and leak through 0 * NaN.
  scores = jnp.einsum(names, q, k).astype(jnp.float32)
  return jnp.where(mask, scores, _LOWEST)


def _softmax(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The softmax before it is divided by its total [B, K, G, T]."""
  highest = jax.lax.stop_gradient(scores.max(axis=-1))
  weights = jnp.exp(scores - highest[..., None])
  return weights, weights.sum(axis=-1)


def _softmax_with_shared(
  scores: jax.Array, shared: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The same over `scores` and `shared` [K, B, G, T, P] together: weights,
  total, weights of `shared`."""
  turned = lambda x: x.swapaxes(0, 1)
  highest = jnp.maximum(scores.max(axis=-1), turned(shared.max(axis=-1)))
  highest = jax.lax.stop_gradient(highest)
  weights = jnp.exp(scores - highest[..., None])
  others = jnp.exp(shared - turned(highest)[..., None])
  total = weights.sum(axis=-1) + turned(others.sum(axis=-1))
  return weights, total, others


def _write(
  cache: KeysValues, new: KeysValues, index: jax.Array | int
) -> KeysValues:
  """The cache of S slots with T new tokens in it: from slot `index` on, or,
  if that is [B], one token in a slot of its own in each row."""
  if jnp.ndim(index) == 0:
    put = functools.partial(
      jax.lax.dynamic_update_slice_in_dim, start_index=index
    )
    return put(cache[0], new[0], axis=2), put(cache[1], new[1], axis=3)
  rows = jnp.arange(len(index))
  return (
    cache[0].at[rows, :, index].set(new[0][:, :, 0]),
    cache[1].at[rows, :, :, index].set(new[1][..., 0]),
  )


def rope(
  x: Float[Array, 'B T N H'], positions: Int[Array, 'B T'], theta: float
) -> Float[Array, 'B T N H']:
  """`x` turned by its position; halves paired as (i, i + H/2)."""
  half = x.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)


def embed(
  config: ModelConfig, params: Params, ids: Int[Array, 'B T']
) -> Float[Array, 'B T D']:
  """The residual stream that enters layer 0."""
  return params['embed_tokens']['embedding'][ids].astype(config.dtype)


def run_layers(
  config: ModelConfig,
  params: Params,
  x: Float[Array, 'B T D'],
  *,
  positions: Int[Array, 'B T'],
  mask: Bool[Array, 'B T S'],
  start: int = 0,
  stop: int | None = None,
  cache: Cache | None = None,
  cache_index: Int[Array, ''] | Int[Array, ' B'] | int = 0,
  prefix: Cache | None = None,
  prefix_length: Int[Array, ''] | int = 0,
  taps: tuple[Site, ...] = (),
  interventions: Interventions | None = None,
) -> LayersOutput:
  """The residual stream after layers [start, stop), and the tapped sites.

  Args:
    config: The model's shape.
    params: The model's weights; only those of the layers run are read.
    x: Residual stream entering layer `start`.
    positions: Place of each token in its text, for the rotary embedding.
    mask: Which slots each token sees, itself included. Without a cache the
      slots are the T tokens; with one, its S slots. All see the prefix.
    start: First layer to run.
    stop: Layer to stop before; None for all.
    cache: Keys and values per layer. Those of the current tokens are written
      to slots [cache_index, cache_index + T) before attention looks at it.
    cache_index: First slot to write, the same for all rows, or, for a single
      token, the slot of each.
    prefix: Keys and values of tokens that all rows begin with, [K, P, H] and
      [K, H, P] per layer.
    prefix_length: How many of the P are real.
    taps: Sites to return.
    interventions: Functions that replace a site's content.

  Raises:
    ValueError: A tap or intervention names no site in these layers.
  """
  stop = config.num_layers if stop is None else stop
  interventions = interventions or {}
  sites.check(taps, start, stop)
  sites.check(interventions, start, stop)
  tapped: Taps = {}
  new_cache: Cache = {}
  for i in range(start, stop):
    name = str(i)
    functions = sites.functions_at_layer(interventions, i)
    # Traced once for all layers, unless a layer has functions of its own.
    run = _run_block if functions else _run_block_jit
    with _FULL_PRECISION():
      x, at_layer, new_cache[name] = run(
        config,
        params['layers'][name],
        x,
        positions,
        mask,
        cache[name] if cache else None,
        cache_index,
        prefix[name] if prefix else None,
        prefix_length,
        sites.at_layer(taps, i),
        **({'interventions': functions} if functions else {}),
      )
    tapped |= {sites.site(i, s): value for s, value in at_layer.items()}
  return LayersOutput(x, tapped, new_cache)


def logits(
  config: ModelConfig, params: Params, x: Float[Array, '*B D']
) -> Float[Array, '*B V']:
  """Next-token logits, float32, from the residual stream after all layers."""
  dtype = jnp.dtype(config.dtype)
  norm = nn.RMSNorm(epsilon=config.norm_eps, dtype=dtype)
  x = norm.apply({'params': params['norm']}, x)
  with _FULL_PRECISION():
    if config.tie_embeddings:
      table = params['embed_tokens']['embedding'].astype(dtype)
      return jnp.einsum('...D,VD->...V', x, table).astype(jnp.float32)
    kernel = params['lm_head']['kernel'].astype(dtype)
    return (x @ kernel).astype(jnp.float32)


def causal_mask(
  query_positions: Int[Array, 'B T'],
  key_positions: Int[Array, 'B S'],
  key_valid: Bool[Array, 'B S'],
) -> Bool[Array, 'B T S']:
  """Each token sees the real tokens at or before its own position."""
  seen = key_positions[:, None, :] <= query_positions[:, :, None]
  return seen & key_valid[:, None, :]


def empty_cache(
  config: ModelConfig, batch: int, slots: int, *, start: int = 0
) -> Cache:
  """Zeroed keys and values for layers [start, num_layers)."""
  heads, size = config.num_kv_heads, config.head_dim
  # Arrays of their own, so that each can be donated.
  zeros = lambda *shape: jnp.zeros((batch, heads, *shape), config.dtype)
  return {
    str(i): (zeros(slots, size), zeros(size, slots))
    for i in range(start, config.num_layers)
  }


def add_slots(cache: Cache, count: int) -> Cache:
  """The cache with so many empty slots after the others"""
  keys = lambda k: _padded(k, count, k.ndim - 2)
  values = lambda v: _padded(v, count, v.ndim - 1)
  return {name: (keys(k), values(v)) for name, (k, v) in cache.items()}


def num_slots(cache: Cache) -> int:
  """S, or P."""
  return next(iter(cache.values()))[0].shape[-2]


def _padded(x: jax.Array, count: int, axis: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, count)
  return jnp.pad(x, widths)


def _run_block(
  config: ModelConfig,
  params: Params,
  x: jax.Array,
  positions: jax.Array,
  mask: jax.Array,
  cache: KeysValues | None,
  cache_index: Any,
  prefix: KeysValues | None,
  prefix_length: Any,
  taps: tuple[str, ...],
  interventions: Mapping[str, Any] | None = None,
):
  return Block(config).apply(
    {'params': params},
    x,
    positions,
    mask,
    cache,
    cache_index,
    prefix,
    prefix_length,
    taps,
    interventions,
  )


_run_block_jit = jax.jit(_run_block, static_argnums=(0, 9))
# A float32 model is float32 on accelerators, too, which round the factors of a
# product to less unless told otherwise. Products of bfloat16 stay as they are.
_FULL_PRECISION = functools.partial(jax.default_matmul_precision, 'highest')
_LOWEST = float(jnp.finfo(jnp.float32).min)
