"""Greedy decoding with a cache, in rows that can be used again.

Each row has T slots for its prompt, filled from the right, and N for what it
writes. All rows write to the same slot of these at a step, which goes round:
no row writes more than N tokens, so a row that begins later never meets its
own tail, and what a former user of the row left is not valid for the next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax.engines.forward import Forward
from me_jax.engines.prefix import Prefix
from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import ModelState

STOP_REASONS = ('', 'eos', 'length', 'nonfinite', 'decided')
_RUNNING, EOS, LENGTH, NONFINITE, DECIDED = range(5)


class Prompts(NamedTuple):
  """Prompts after one pass over them; G rows, T slots.

  Attributes:
    cache: Keys and values, [G, T, K, H].
    valid: bool [G, T], which slots are real; prompts end at the right.
    positions: int32 [G, T].
    token: int32 [G], the first new token.
    stop: int32 [G], index into STOP_REASONS: whether it ends the answer.
  """

  cache: llama.Cache
  valid: jax.Array
  positions: jax.Array
  token: jax.Array
  stop: jax.Array


class Rows(NamedTuple):
  """State of greedy decoding; B rows of T + N slots.

  Attributes:
    step: int32 [], decode steps so far.
    tokens: int32 [B, N], the answers.
    count: int32 [B], tokens of each answer.
    limits: int32 [B], tokens wanted.
    stop: int32 [B], index into STOP_REASONS, 0 while running.
    positions: int32 [B], of the last token, which was not yet fed.
    valid: bool [B, T + N].
    key_positions: int32 [B, T + N].
    cache: Per layer two [B, T + N, K, H].
  """

  step: jax.Array
  tokens: jax.Array
  count: jax.Array
  limits: jax.Array
  stop: jax.Array
  positions: jax.Array
  valid: jax.Array
  key_positions: jax.Array
  cache: llama.Cache


def empty_rows(config: ModelConfig, batch: int, slots: int, new: int) -> Rows:
  """Rows of which none runs."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  return Rows(
    step=zeros(),
    tokens=zeros(batch, new),
    count=zeros(batch),
    limits=zeros(batch),
    stop=jnp.full(batch, LENGTH, jnp.int32),
    positions=zeros(batch),
    valid=jnp.zeros((batch, slots + new), bool),
    key_positions=zeros(batch, slots + new),
    cache=llama.empty_cache(config, batch, slots + new),
  )


def prefill(
  forward: Forward,
  state: ModelState,
  prefix: Prefix | None,
  ids: jax.Array,
  lengths: jax.Array,
  eos: jax.Array,
) -> Prompts:
  """One pass over prompts, with the first new token of each chosen.

  Args:
    forward: The model.
    state: Its weights.
    prefix: What all prompts begin with; None for nothing.
    ids: The rest of each prompt, [G, T], padded on the left.
    lengths: int32 [G], how many of the T are real.
    eos: The end token.
  """
  batch, slots = ids.shape
  before = slots - lengths[:, None]
  order = jnp.arange(slots)[None]
  valid = order >= before
  positions = jnp.maximum(order - before, 0)
  mask = llama.causal_mask(positions, positions, valid)
  if prefix is not None:
    positions = positions + prefix.length
    mask = jnp.concatenate([prefix.mask(batch, slots), mask], axis=-1)
  output = forward(
    state,
    forward.embed(state, ids),
    positions=positions,
    mask=mask,
    prefix=prefix.cache if prefix else None,
  )
  logits = llama.logits(forward.config, state.params, output.x[:, -1])
  token, stop = _choose(logits, eos)
  return Prompts(output.cache, valid, positions, token, stop)


def insert(
  rows: Rows, prompts: Prompts, places: jax.Array, limits: jax.Array
) -> Rows:
  """Rows with prompts in some of them, running.

  Args:
    rows: Those of `places` are done with.
    prompts: With at most as many slots as the rows have for a prompt.
    places: int32 [G], the row of each prompt; B for one not to be used.
    limits: int32 [G], tokens wanted, more than one.
  """
  batch, new = rows.tokens.shape
  slots = rows.valid.shape[1] - new
  first = slots - prompts.valid.shape[1]
  # A place of B is outside, and such writes are dropped.
  put = lambda old, value: old.at[places].set(value, mode='drop')
  at_prompt = lambda old, value: old.at[places, first:slots].set(
    value, mode='drop'
  )
  cache = {
    name: tuple(at_prompt(old, x) for old, x in zip(pair, found, strict=True))
    for (name, pair), found in zip(
      rows.cache.items(), prompts.cache.values(), strict=True
    )
  }
  return rows._replace(
    tokens=put(rows.tokens, 0).at[places, 0].set(prompts.token, mode='drop'),
    count=put(rows.count, 1),
    limits=put(rows.limits, limits),
    stop=put(rows.stop, _RUNNING),
    positions=put(rows.positions, prompts.positions[:, -1] + 1),
    valid=at_prompt(put(rows.valid, False), prompts.valid),
    key_positions=at_prompt(rows.key_positions, prompts.positions),
    cache=cache,
  )


def decode(
  forward: Forward,
  state: ModelState,
  prefix: Prefix | None,
  rows: Rows,
  steps: jax.Array,
  eos: jax.Array,
) -> Rows:
  """So many more tokens in each running row, or until none runs."""
  batch, new = rows.tokens.shape
  slots = rows.valid.shape[1] - new
  every_row = jnp.arange(batch)
  last_step = rows.step + steps

  def step(rows: Rows) -> Rows:
    slot = slots + rows.step % new
    fed = rows.tokens[every_row, rows.count - 1][:, None]
    positions = rows.positions[:, None]
    valid = rows.valid.at[:, slot].set(True)
    key_positions = rows.key_positions.at[:, slot].set(rows.positions)
    mask = llama.causal_mask(positions, key_positions, valid)
    if prefix is not None:
      mask = jnp.concatenate([prefix.mask(batch, 1), mask], axis=-1)
    output = forward(
      state,
      forward.embed(state, fed),
      positions=positions,
      mask=mask,
      cache=rows.cache,
      cache_index=slot,
      prefix=prefix.cache if prefix else None,
    )
    logits = llama.logits(forward.config, state.params, output.x[:, -1])
    token, ended = _choose(logits, eos)
    running = rows.stop == _RUNNING
    takes = running & (ended == _RUNNING)
    count = rows.count + takes
    stop = jnp.where(count >= rows.limits, LENGTH, ended)
    # A row that does not take the token writes it nowhere.
    place = jnp.where(takes, rows.count, new)
    return rows._replace(
      step=rows.step + 1,
      tokens=rows.tokens.at[every_row, place].set(token, mode='drop'),
      count=count,
      stop=jnp.where(running, stop, rows.stop),
      positions=rows.positions + 1,
      valid=valid,
      key_positions=key_positions,
      cache=output.cache,
    )

  goes_on = lambda rows: (rows.step < last_step) & (rows.stop == _RUNNING).any()
  return jax.lax.while_loop(goes_on, step, rows)


def _choose(logits: jax.Array, eos: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The arg-max tokens and whether they end their rows, int32 [B] each."""
  token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  finite = jnp.isfinite(logits).all(axis=-1)
  ended = jnp.where(token == eos, EOS, _RUNNING)
  return token, jnp.where(finite, ended, NONFINITE).astype(jnp.int32)
