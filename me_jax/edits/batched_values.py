"""The latent search of `values.py` for many requests at once.

All rows of all requests go through each product together, packed so that
little is padding. Each request has its own vector, moments and end: a search
that has ended stays as it is while others go on.

A group of requests is one compiled program. Its token rows and what it carries
from step to step have a batch axis in front, of wide rows [B, ...] and requests
[N, ...], which are dealt over the devices of a mesh. Groups follow one another:
that bounds the memory.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from me_jax import sharding, trees
from me_jax.edits import packing, values
from me_jax.edits.packing import Packed
from me_jax.edits.rows import Rows
from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


class Wanted(NamedTuple):
  """The target tokens of all template rows, one after another, padded.

  Attributes:
    targets: int32 [R].
    slots: int32 [R], where among the tails' [B * M] slots each is predicted.
    rows: int32 [R], template row r of request n as n * P + r; past the last
      for padding.
    weights: float32 [R], 1 / targets of the row, 0 for padding.
  """

  targets: np.ndarray
  slots: np.ndarray
  rows: np.ndarray
  weights: np.ndarray


class FoundTarget(NamedTuple):
  """The search of one request.

  Attributes:
    start: float32 [D], the block's output for the bare prompt.
    search: Its vector and history, on the host; z is the vector plus `start`.
  """

  start: np.ndarray
  search: values.Found

  @property
  def z(self) -> np.ndarray:
    """float32 [D], what the block's output should become."""
    return self.start + self.search.delta


def find_targets(
  config: ModelConfig,
  params: Params,
  requests: Sequence[Rows],
  *,
  layer: int,
  search_config: values.SearchConfig,
  batch_size: int,
) -> list[FoundTarget]:
  """What the output of block `layer` should become at each lookup position.

  Args:
    config: The model's shape.
    params: Weights before the edit.
    requests: Token rows of each request.
    layer: The searched block.
    search_config: Hyper-parameters of the search.
    batch_size: Requests searched at once on each copy of the weights. Memory
      grows with it: the layers above `layer` keep, for each of their tokens
      from the lookup positions on, what the backward pass needs.
  """
  mesh = sharding.mesh_of(params)
  size = batch_size * sharding.data_size(mesh)
  found = []
  for start in range(0, len(requests), size):
    group = requests[start : start + size]
    packed = packing.pack(group, sharding.data_size(mesh))
    starts, searches = trees.to_host(
      search(
        config,
        params,
        packing.shard(packed, mesh),
        # Whose row has which target does not matter: only their number counts,
        # for the product with the vocabulary.
        sharding.shard_rows(wanted(group, packed), mesh),
        layer=layer,
        search_config=search_config,
      )
    )
    found.extend(
      FoundTarget(starts[n], jax.tree.map(lambda x, n=n: x[n], searches))
      for n in range(len(group))
    )
  return found


def wanted(requests: Sequence[Rows], packed: Packed) -> Wanted:
  """The targets of `requests` where `packed` has put them."""
  targets, slots, numbers, weights = [], [], [], []
  count = len(requests[0].targets)
  for n, rows in enumerate(requests):
    row, j = np.nonzero(rows.target_weights)
    targets.append(rows.targets[row, j])
    slots.append(packed.lookups[n, row] + rows.target_slots[row, j])
    numbers.append(n * count + row)
    weights.append(rows.target_weights[row, j])
  # No two are predicted in one slot: rooms that go with the shape of the tails.
  total, places = sum(map(len, targets)), packed.ids[:, packed.tail_slots].size
  rooms = (places // 2, places * 3 // 4, places)
  padding = next(room for room in rooms if room >= total) - total
  joined = lambda parts, fill, dtype: np.pad(
    np.concatenate(parts), (0, padding), constant_values=fill
  ).astype(dtype)
  return Wanted(
    joined(targets, 0, np.int32),
    joined(slots, 0, np.int32),
    joined(numbers, len(packed.lookups) * count, np.int32),
    joined(weights, 0, np.float32),
  )


@functools.partial(
  jax.jit, static_argnames=('config', 'layer', 'search_config')
)
def search(
  config: ModelConfig,
  params: Params,
  packed: Packed,
  wanted: Wanted,
  *,
  layer: int,
  search_config: values.SearchConfig,
) -> tuple[Float[jax.Array, 'N D'], values.Found]:
  """The start values, and `values.search` with an axis of requests in front.

  What no step changes is computed once in here: the layers up to the searched
  one, and keys and values of what comes before each lookup position.
  """
  c = search_config
  with jax.default_matmul_precision('highest'):
    mask = packing.mask(packed)
    run = functools.partial(llama.run_layers, config, params)
    below = run(
      llama.embed(config, params, packed.ids),
      positions=packed.positions,
      mask=mask,
      stop=layer + 1,
    ).x
    above = run(below, positions=packed.positions, mask=mask, start=layer + 1)
    in_tails = functools.partial(packing.in_tails, packed)
    tails = in_tails(below)
    starts = packing.at_lookups(tails, packed.lookups[:, 0])
    starts = starts.astype(jnp.float32)
    essence = llama.logits(
      config,
      params,
      packing.at_lookups(in_tails(above.x), packed.lookups[:, -1]),
    )

    def x_with(delta):
      return run(
        packing.add_at_lookups(tails, packed.lookups, delta),
        positions=in_tails(packed.positions),
        mask=in_tails(mask),
        start=layer + 1,
        cache=above.cache,
        cache_index=packed.ids.shape[1] - packed.tail_slots.size,
      ).x

    losses = functools.partial(
      _losses,
      config,
      params,
      packed,
      wanted,
      c,
      starts,
      jax.nn.log_softmax(essence),
    )

    # What is padding has no rows and never begins. What it reads is some other
    # request's, whose gradient it must not touch.
    is_padding = packed.lookups[:, 0] >= tails.shape[0] * tails.shape[1]

    @functools.partial(jax.grad, has_aux=True)
    def grad_and_losses(delta):
      # Each loss depends on its own request's vector alone.
      found = losses(x_with(delta), delta)
      return jnp.where(is_padding, 0, found[0]).sum(), found

    largest = c.clamp_norm_factor * jax.vmap(values.norm)(starts)
    zeros = jnp.zeros(starts.shape, jnp.float32)
    begun = jax.vmap(functools.partial(values.begin, c))(zeros)

    def step(now):
      grads, (loss, parts) = grad_and_losses(now.delta)
      after = jax.vmap(functools.partial(values.advance, c))(
        now, largest, loss, parts, grads
      )
      return jax.tree.map(
        lambda new, old: jnp.where(
          now.stop.reshape(-1, *(1,) * (new.ndim - 1)), old, new
        ),
        after,
        now,
      )

    ended = jax.lax.while_loop(
      lambda now: ~now.stop.all(), step, begun._replace(stop=is_padding)
    )
    return starts, ended.found


def _losses(config, params, packed, wanted, c, starts, essence, x, delta):
  """Losses [N] of `values.search`, and their parts."""
  rows = packed.lookups.shape[1] - 1
  flat = x.reshape(-1, x.shape[-1])
  read = jnp.concatenate(
    [flat[wanted.slots], packing.at_lookups(x, packed.lookups[:, -1])]
  )
  # One product for all: the table of V is read once a step.
  logits = llama.logits(config, params, read)
  count = len(wanted.targets)
  chosen = jnp.take_along_axis(
    logits[:count], wanted.targets[:, None], axis=-1
  )[:, 0]
  logprobs = chosen - jax.nn.logsumexp(logits[:count], axis=-1)
  row_nll = -jax.ops.segment_sum(
    logprobs * wanted.weights,
    wanted.rows,
    num_segments=len(starts) * rows,
  ).reshape(-1, rows)
  nll = row_nll.mean(axis=1)
  now = jax.nn.log_softmax(logits[count:])
  kl = c.kl_factor * (jnp.exp(now) * (now - essence)).sum(axis=-1)
  norm = jax.vmap(values.norm)
  weight_decay = c.v_weight_decay * norm(delta) / norm(starts) ** 2
  parts = {
    'nll': nll,
    'kl': kl,
    'weight_decay': weight_decay,
    'target_probability': jnp.exp(-row_nll).mean(axis=1),
  }
  return nll + kl + weight_decay, parts
