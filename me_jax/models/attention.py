"""Attention, its positions and its masks."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from me_jax.models import cache as cache_lib
from me_jax.models.config import ModelConfig


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
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    if cache is not None:
      k, v = cache_lib.write(cache, (k, v), cache_index)

    b, t = x.shape[:2]
    # In this order both products put their results where they are wanted:
    # scores are never moved.
    q = q.reshape(b, t, c.num_kv_heads, -1, c.head_dim) / c.head_dim**0.5
    q = q.transpose(0, 2, 3, 1, 4)
    scores = _masked('BKGTH,BKHS->BKGTS', q, k, mask[:, None, None])
    if prefix is None:
      weights, total = _softmax(scores)
    else:
      # One product for all rows; the prefix is never copied into each.
      is_there = jnp.arange(prefix[0].shape[-1]) < prefix_length
      shared = _masked(
        'KBGTH,KHP->KBGTP', q.swapaxes(0, 1), prefix[0], is_there
      )
      weights, total, shared_weights = _softmax_with_shared(scores, shared)
    if is_seen:
      weights, total = self._seen(intervene, weights, total, scores, prefix)
    out = jnp.einsum('BKGTS,BKSH->BKGTH', weights.astype(v.dtype), v)
    if prefix is not None:
      out += jnp.einsum(
        'KBGTP,KPH->KBGTH', shared_weights.astype(v.dtype), prefix[1]
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


def causal_mask(
  query_positions: Int[Array, 'B T'],
  key_positions: Int[Array, 'B S'],
  key_valid: Bool[Array, 'B S'],
) -> Bool[Array, 'B T S']:
  """Each token sees the real tokens at or before its own position."""
  seen = key_positions[:, None, :] <= query_positions[:, :, None]
  return seen & key_valid[:, None, :]


def _masked(
  names: str, q: jax.Array, k: jax.Array, mask: jax.Array
) -> jax.Array:
  """Attention scores in float32, where the mask lets."""
  # The lowest finite number, not -inf: a row of padding, which attends to
  # nothing, must not become NaN and leak through 0 * NaN.
  scores = jnp.einsum(names, q, k, preferred_element_type=jnp.float32)
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


_LOWEST = float(jnp.finfo(jnp.float32).min)
