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

from me_jax.models import cache as cache_lib
from me_jax.models import sites
from me_jax.models.attention import Attention
from me_jax.models.config import ModelConfig
from me_jax.typing import Interventions, Params, Site, Taps


class LayersOutput(NamedTuple):
  """What `run_layers` returns."""

  x: Float[Array, 'B T D']
  taps: Taps
  # Of the layers run; the current tokens' keys and values in it.
  cache: cache_lib.Cache


class MLP(nn.Module):
  """`down_proj(silu(gate_proj x) * up_proj x)`.

  A product with a float32 kernel is float32 in a bfloat16 model, too: kernels
  that are edited would lose their edits otherwise.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x, intervene):
    c = self.config
    dense = functools.partial(nn.Dense, use_bias=False)
    gate = intervene('mlp/gate', dense(c.mlp_dim, name='gate_proj')(x), x)
    up = intervene('mlp/up', dense(c.mlp_dim, name='up_proj')(x), x)
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
    mlp_in = norm(name='post_attention_layernorm')(h)
    mlp = MLP(c, name='mlp')(intervene('mlp/in', mlp_in, h), intervene)
    return intervene('resid', (h + mlp).astype(x.dtype), x), tapped, cache


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
  cache: cache_lib.Cache | None = None,
  cache_index: Int[Array, ''] | Int[Array, ' B'] | int = 0,
  prefix: cache_lib.Cache | None = None,
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
    prefix: Keys and values of tokens that all rows begin with, [K, H, P] and
      [K, P, H] per layer.
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
  new_cache: cache_lib.Cache = {}
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
  # Sums of products of bfloat16, too, are kept in float32: rounded, likely
  # tokens would tie.
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  with _FULL_PRECISION():
    if config.tie_embeddings:
      table = params['embed_tokens']['embedding'].astype(dtype)
      return dot('...D,VD->...V', x, table)
    return dot('...D,DV->...V', x, params['lm_head']['kernel'].astype(dtype))


def _run_block(
  config: ModelConfig,
  params: Params,
  x: jax.Array,
  positions: jax.Array,
  mask: jax.Array,
  cache: cache_lib.KeysValues | None,
  cache_index: Any,
  prefix: cache_lib.KeysValues | None,
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
