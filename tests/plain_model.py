"""The plainest forward pass: one text, no padding, no cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.models import llama


def forward(config, params, ids, **kwargs):
  """`run_layers` over the tokens of one text; further arguments are its."""
  order = jnp.arange(len(ids))[None]
  return llama.run_layers(
    config,
    params,
    llama.embed(config, params, jnp.asarray(ids)[None]),
    positions=order,
    mask=order[:, None, :] <= order[:, :, None],
    **kwargs,
  )


@functools.partial(jax.jit, static_argnums=0, static_argnames=('taps', 'stop'))
def tapped(config, params, ids, *, taps, stop=None):
  """What is at these sites, by site [1, T, ...]; compiles once per length."""
  return forward(config, params, ids, taps=taps, stop=stop).taps


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, ids):
  """Next-token logits [T, V] of one text; compiles once per length."""
  return llama.logits(config, params, forward(config, params, ids).x[0])


def greedy(config, params, prompt, num_tokens):
  """Arg-max tokens, each by a whole pass over all that came before.

  All passes have the same length: what comes after a token cannot reach it.
  """
  ids = np.array([*prompt] + [0] * num_tokens)
  for i in range(len(prompt), len(ids)):
    ids[i] = np.asarray(logits(config, params, ids))[i - 1].argmax()
  return ids[len(prompt) :].tolist()
