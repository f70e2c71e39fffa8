"""Greedy decoding with a cache, in rows that can be used again.

Each row has T slots for its prompt, filled from the right, and N for what it
writes, filled from the left, at its own pace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax.engines.forward import Forward
from me_jax.engines.padding import pad_mask
from me_jax.engines.prefix import Prefix, arguments
from me_jax.models import cache as cache_lib
from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import NEW, OTHER, PROMPT_END, ModelState

STOP_REASONS = ('', 'eos', 'length', 'nonfinite', 'decided')
_RUNNING, EOS, LENGTH, NONFINITE, DECIDED = range(5)


class Prompts(NamedTuple):
  """Prompts after one pass over them; G rows, T slots.

  Attributes:
    cache: Of T slots.
    lengths: int32 [G], how many of the T are real; prompts end at the right.
    token: int32 [G], the first new token.
    stop: int32 [G], index into STOP_REASONS: whether it ends the answer.
  """

  cache: cache_lib.Cache
  lengths: jax.Array
  token: jax.Array
  stop: jax.Array


class Rows(NamedTuple):
  """State of greedy decoding; B rows of T + N slots.

  Attributes:
    lengths: int32 [B], tokens of each prompt.
    tokens: int32 [B, N], the answers; the last of each was not yet fed.
    count: int32 [B], tokens of each answer.
    limits: int32 [B], tokens wanted.
    stop: int32 [B], index into STOP_REASONS, 0 while running.
    cache: Of T + N slots.
  """

  lengths: jax.Array
  tokens: jax.Array
  count: jax.Array
  limits: jax.Array
  stop: jax.Array
  cache: cache_lib.Cache


def empty_rows(config: ModelConfig, batch: int, slots: int, new: int) -> Rows:
  """Rows of which none runs."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  return Rows(
    lengths=zeros(batch),
    tokens=zeros(batch, new),
    count=zeros(batch) + 1,
    limits=zeros(batch),
    stop=jnp.full(batch, LENGTH, jnp.int32),
    cache=cache_lib.empty_cache(config, batch, slots + new),
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
    ids: The rest of each prompt, [G, T], padded on the left with its first
      token; see `padding`.
    lengths: int32 [G], how many of the T are real.
    eos: The end token.
  """
  batch, slots = ids.shape
  before = slots - lengths[:, None]
  order = jnp.arange(slots)[None]
  valid = order >= before
  positions = jnp.maximum(order - before, 0)
  mask = pad_mask(order[:, None, :] <= order[:, :, None], valid)
  if prefix is not None:
    positions = positions + prefix.length
  output = forward(
    state,
    forward.embed(state, ids),
    kinds=jnp.where(order == slots - 1, PROMPT_END, OTHER),
    positions=positions,
    mask=mask,
    **arguments(prefix),
  )
  logits = llama.logits(forward.config, state.params, output.x[:, -1])
  token, stop = _choose(logits, eos)
  return Prompts(output.cache, lengths, token, stop)


def insert(
  rows: Rows, prompts: Prompts, places: jax.Array, limits: jax.Array
) -> Rows:
  """Rows with prompts in some of them, running.

  Of what a row held before nothing is left: it may not have been finite.

  Args:
    rows: Those of `places` are done with.
    prompts: With at most as many slots as the rows have for a prompt.
    places: int32 [G], the row of each prompt; B for one not to be used.
    limits: int32 [G], tokens wanted, more than one.
  """
  slots = cache_lib.num_slots(rows.cache) - rows.tokens.shape[1]
  # Empty slots on both sides, so that whole rows are replaced.
  before = slots - cache_lib.num_slots(prompts.cache)
  cache = cache_lib.add_slots(prompts.cache, rows.tokens.shape[1], before)
  # A place of B is outside, and such writes are dropped.
  put = lambda old, value: old.at[places].set(value, mode='drop')
  return Rows(
    lengths=put(rows.lengths, prompts.lengths),
    tokens=rows.tokens.at[places, 0].set(prompts.token, mode='drop'),
    count=put(rows.count, 1),
    limits=put(rows.limits, limits),
    stop=put(rows.stop, _RUNNING),
    cache=jax.tree.map(put, rows.cache, cache),
  )


def grow(rows: Rows, new: int) -> Rows:
  """The rows with room for so many tokens each."""
  more = new - rows.tokens.shape[1]
  return rows._replace(
    tokens=jnp.pad(rows.tokens, ((0, 0), (0, more))),
    cache=cache_lib.add_slots(rows.cache, more),
  )


def keep(rows: Rows, places: jax.Array) -> Rows:
  """The rows at `places`, int32 [b]."""
  return jax.tree.map(lambda x: x[places], rows)


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
  slots = cache_lib.num_slots(rows.cache) - new
  every_row = jnp.arange(batch)
  order = jnp.arange(slots + new)[None]
  offset = prefix.length if prefix else 0

  def step(carry: tuple[jax.Array, Rows]) -> tuple[jax.Array, Rows]:
    done, rows = carry
    last = rows.count - 1
    fed = jnp.take_along_axis(rows.tokens, last[:, None], axis=1)
    first, end = slots - rows.lengths, slots + rows.count
    mask = ((order >= first[:, None]) & (order < end[:, None]))[:, None]
    output = forward(
      state,
      forward.embed(state, fed),
      kinds=NEW,
      positions=(offset + rows.lengths + last)[:, None],
      mask=mask,
      cache=rows.cache,
      cache_index=slots + last,
      **arguments(prefix),
    )
    logits = llama.logits(forward.config, state.params, output.x[:, -1])
    token, ended = _choose(logits, eos)
    running = rows.stop == _RUNNING
    takes = running & (ended == _RUNNING)
    count = rows.count + takes
    stop = jnp.where(count >= rows.limits, LENGTH, ended)
    # A row that does not take the token writes it nowhere.
    place = jnp.where(takes, rows.count, new)
    return done + 1, rows._replace(
      tokens=rows.tokens.at[every_row, place].set(token, mode='drop'),
      count=count,
      stop=jnp.where(running, stop, rows.stop),
      cache=output.cache,
    )

  goes_on = lambda carry: (carry[0] < steps) & (carry[1].stop == _RUNNING).any()
  return jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), rows))[1]


def _choose(logits: jax.Array, eos: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The arg-max tokens and whether they end their rows, int32 [B] each."""
  token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  finite = jnp.isfinite(logits).all(axis=-1)
  ended = jnp.where(token == eos, EOS, _RUNNING)
  return token, jnp.where(finite, ended, NONFINITE).astype(jnp.int32)
