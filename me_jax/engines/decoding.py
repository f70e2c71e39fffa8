"""Greedy decoding with a cache: prefill, then one jitted loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax.engines.forward import Forward
from me_jax.models import llama
from me_jax.typing import ModelState


class Loop(NamedTuple):
  """State of greedy decoding; B rows, S slots of which the prompt fills some.

  `next_token` was chosen but not yet fed; it counts only if its row goes on.
  """

  step: jax.Array  # [] tokens chosen so far
  tokens: jax.Array  # [B, new]
  count: jax.Array  # [B] tokens that belong to the answer
  stop: jax.Array  # [B] index into STOP_REASONS, 0 while running
  limits: jax.Array  # [B]
  positions: jax.Array  # [B] of the next token
  valid: jax.Array  # [B, S]
  key_positions: jax.Array  # [B, S]
  prompt_slots: jax.Array  # []
  eos: jax.Array  # []
  cache: llama.Cache


STOP_REASONS = ('', 'eos', 'length', 'nonfinite', 'decided')
_RUNNING, _EOS, _LENGTH, _NONFINITE, DECIDED = range(5)


def prefill(
  forward: Forward,
  state: ModelState,
  prompt: tuple[jax.Array, jax.Array],
  limits: jax.Array,
  new: int,
  eos: int,
) -> Loop:
  """The loop after the prompt, with the first token chosen.

  Args:
    forward: The model.
    state: Its weights.
    prompt: Token ids [B, T], padded on the left, and which are real.
    limits: int32 [B], tokens wanted in each row; 0 for a row of padding.
    new: Slots for new tokens, at least the largest limit.
    eos: The end token.
  """
  ids, valid = prompt
  config = forward.config
  batch, length = ids.shape
  positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
  pad = ((0, 0), (0, new))
  valid, key_positions = jnp.pad(valid, pad), jnp.pad(positions, pad)
  output = forward(
    state,
    ids,
    positions=positions,
    mask=llama.causal_mask(positions, key_positions, valid),
    cache=llama.empty_cache(config, batch, length + new),
    cache_index=0,
  )
  loop = Loop(
    step=jnp.zeros((), jnp.int32),
    tokens=jnp.zeros((batch, new), jnp.int32),
    count=jnp.zeros(batch, jnp.int32),
    stop=jnp.where(limits > 0, _RUNNING, _LENGTH).astype(jnp.int32),
    limits=limits,
    positions=positions[:, -1] + 1,
    valid=valid,
    key_positions=key_positions,
    prompt_slots=jnp.asarray(length, jnp.int32),
    eos=jnp.asarray(eos, jnp.int32),
    cache=output.cache,
  )
  return _choose(loop, llama.logits(config, state.params, output.x[:, -1]))


def _choose(loop: Loop, logits: jax.Array) -> Loop:
  """Appends the arg-max token of each running row, or stops the row."""
  token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  running = loop.stop == _RUNNING
  finite = jnp.isfinite(logits).all(axis=-1)
  ended = jnp.where(~finite, _NONFINITE, jnp.where(token == loop.eos, _EOS, 0))
  takes = running & (ended == _RUNNING)
  count = loop.count + takes
  stop = jnp.where(
    running,
    jnp.where(
      ended != _RUNNING, ended, jnp.where(count >= loop.limits, _LENGTH, 0)
    ),
    loop.stop,
  ).astype(jnp.int32)
  return loop._replace(
    step=loop.step + 1,
    tokens=loop.tokens.at[:, loop.step].set(jnp.where(takes, token, 0)),
    count=count,
    stop=stop,
  )


def decode(
  forward: Forward, state: ModelState, loop: Loop, until: jax.Array
) -> Loop:
  """Chooses tokens until each row has `until` of them or stopped."""
  config = forward.config

  def step(loop: Loop) -> Loop:
    slot = loop.prompt_slots + loop.step - 1
    positions = loop.positions[:, None]
    fed = loop.tokens[:, loop.step - 1, None]
    valid = loop.valid.at[:, slot].set(True)
    key_positions = loop.key_positions.at[:, slot].set(loop.positions)
    output = forward(
      state,
      fed,
      positions=positions,
      mask=llama.causal_mask(positions, key_positions, valid),
      cache=loop.cache,
      cache_index=slot,
    )
    loop = loop._replace(
      valid=valid,
      key_positions=key_positions,
      positions=loop.positions + 1,
      cache=output.cache,
    )
    return _choose(loop, llama.logits(config, state.params, output.x[:, -1]))

  goes_on = lambda loop: (loop.step < until) & (loop.stop == _RUNNING).any()
  return jax.lax.while_loop(goes_on, step, loop)
