"""Random continuations of short prompts, drawn by the model itself."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from me_jax.models import cache as cache_lib
from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


@functools.partial(
  jax.jit, static_argnames=('config', 'num_new_tokens', 'top_k')
)
def sample(
  config: ModelConfig,
  params: Params,
  prompts: Int[Array, 'B T'],
  key: Key[Array, ''],
  *,
  num_new_tokens: int,
  top_k: int,
) -> Int[Array, 'B new']:
  """New tokens at temperature 1 from the `top_k` most probable, renormalised.

  An end token is a token like any other: the caller cuts there if it wants to.

  Args:
    config: The model's shape.
    params: The model's weights.
    prompts: Token ids of equal length, no padding.
    key: Source of randomness.
    num_new_tokens: How many to draw.
    top_k: How many candidates at each draw.
  """
  batch, length = prompts.shape
  slots = length + num_new_tokens
  slot = jnp.broadcast_to(jnp.arange(slots), (batch, slots))

  def draw(x, key):
    logits = llama.logits(config, params, x[:, -1])
    top, candidates = jax.lax.top_k(logits, top_k)
    chosen = jax.random.categorical(key, top)[:, None]
    return jnp.take_along_axis(candidates, chosen, axis=1)[:, 0]

  def forward(ids, cache, index):
    positions = index + slot[:, : ids.shape[1]]
    return llama.run_layers(
      config,
      params,
      llama.embed(config, params, ids),
      positions=positions,
      mask=slot[:, None, :] <= positions[:, :, None],
      cache=cache,
      cache_index=index,
    )

  def step(carry, inputs):
    token, cache = carry
    index, key = inputs
    output = forward(token[:, None], cache, index)
    token = draw(output.x, key)
    return (token, output.cache), token

  keys = jax.random.split(key, num_new_tokens)
  output = forward(prompts, cache_lib.empty_cache(config, batch, slots), 0)
  first = draw(output.x, keys[0])
  indices = jnp.arange(length, slots - 1)
  _, rest = jax.lax.scan(step, (first, output.cache), (indices, keys[1:]))
  return jnp.concatenate([first[:, None], rest.T], axis=1)
