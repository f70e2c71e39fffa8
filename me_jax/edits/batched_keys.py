"""Keys and block outputs of many requests on a model that is being edited.

An edit of several layers looks at the model before each of them. Nothing after
a lookup position matters, so the rows end there. The rows of the bare prompt go
through all edited layers each time, for the output of the last; of the other
templates only the key is wanted, so their residual stream climbs with the
edit: what enters the layer looked at last is kept, and goes on from there.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from me_jax import sharding, trees
from me_jax.edits import packing
from me_jax.edits.packing import Packed
from me_jax.edits.rows import Rows
from me_jax.models import llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


class Seen(NamedTuple):
  """What N requests look like to a model; float64, on the host.

  Attributes:
    keys: `mlp/key` of one layer, averaged over templates.
    outputs: What the last edited block puts out for the bare prompts.
  """

  keys: Float[np.ndarray, 'F N']
  outputs: Float[np.ndarray, 'N D']


class Stream(NamedTuple):
  """Packed rows, and what enters a layer: [B, slots, D], on the host. On a mesh
  the rows are dealt there."""

  packed: Packed
  x: np.ndarray
  layer: int


class Group(NamedTuple):
  """Requests that go through the model together.

  Attributes:
    size: How many.
    bare: Their bare prompts, entering the first edited layer.
    others: All other templates, entering the layer looked at last; None if
      there are none.
  """

  size: int
  bare: Stream
  others: Stream | None


def template_weights(count: int) -> Float[np.ndarray, ' P']:
  """How MEMIT averages keys: half for the bare template, which is the first,
  half shared by the others."""
  if count == 1:
    return np.ones(1)
  return np.array([0.5] + [0.5 / (count - 1)] * (count - 1))


def enter(
  config: ModelConfig,
  params: Params,
  requests: Sequence[Rows],
  *,
  layer: int,
  batch_size: int,
) -> list[Group]:
  """The requests before layer `layer`, below which nothing is edited.

  Args:
    config: The model's shape.
    params: Weights before the edit.
    requests: Token rows of each request.
    layer: The first edited one.
    batch_size: Requests in one pass on each copy of the weights. Between
      passes, streams wait on the host.
  """
  mesh = sharding.mesh_of(params)

  def stream(rows: list[Rows]) -> Stream:
    packed = packing.pack(rows, sharding.data_size(mesh))
    packed = packing.shard(packed, mesh)
    x = trees.to_host(_enter(config, params, packed, layer=layer))
    return Stream(packed, x, layer)

  groups = []
  size = batch_size * sharding.data_size(mesh)
  for start in range(0, len(requests), size):
    group = requests[start : start + size]
    templates = len(group[0].lookups) - 1
    bare = stream([_until_lookup(rows, slice(0, 1)) for rows in group])
    others = [_until_lookup(rows, slice(1, templates)) for rows in group]
    groups.append(
      Group(len(group), bare, stream(others) if templates > 1 else None)
    )
  return groups


def look(
  config: ModelConfig,
  params: Params,
  groups: Sequence[Group],
  layer: int,
  *,
  layers: tuple[int, ...],
) -> tuple[Seen, list[Group]]:
  """Keys at `layer` and outputs of `layers[-1]`; and the groups, climbed there.

  Args:
    config: The model's shape.
    params: Weights that differ from those at `enter` below `layer` at most, and
      there at `layers` only; the same below the layer looked at before.
    groups: Of `enter`, or of the call for the layer before.
    layer: One of `layers`.
    layers: All that are edited, from the lowest up.
  """
  mesh = sharding.mesh_of(params)
  keys, outputs, climbed = [], [], []
  for group in groups:
    at_bare, output = trees.to_host(
      _bare(
        config,
        params,
        group.bare.packed,
        sharding.shard_rows(group.bare.x, mesh),
        layers.index(layer),
        layers=layers,
      )
    )
    at_rows = [at_bare[:, None]]
    if group.others is not None:
      packed, x, start = group.others
      x = sharding.shard_rows(x, mesh)
      at_others, x = trees.to_host(
        _others(config, params, packed, x, start=start, layer=layer)
      )
      at_rows.append(at_others)
      group = group._replace(others=Stream(packed, x, layer))
    all_rows = np.concatenate(at_rows, axis=1)[: group.size]
    weights = template_weights(all_rows.shape[1])
    keys.append(np.einsum('P,NPF->FN', weights, all_rows.astype(np.float64)))
    outputs.append(output[: group.size].astype(np.float64))
    climbed.append(group)
  seen = Seen(np.concatenate(keys, axis=1), np.concatenate(outputs))
  return seen, climbed


def _until_lookup(rows: Rows, which: slice) -> Rows:
  """Some rows without what comes after their lookup positions."""
  lookups = rows.lookups[which]
  return rows._replace(
    ids=rows.ids[which], lengths=lookups + 1, lookups=lookups
  )


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def _enter(
  config: ModelConfig, params: Params, packed: Packed, *, layer: int
) -> jax.Array:
  """What enters layer `layer`."""
  x = llama.embed(config, params, packed.ids)
  return _run(config, params, packed, x, stop=layer).x


@functools.partial(jax.jit, static_argnames=('config', 'start', 'layer'))
def _others(
  config: ModelConfig,
  params: Params,
  packed: Packed,
  x: jax.Array,
  *,
  start: int,
  layer: int,
) -> tuple[jax.Array, jax.Array]:
  """Keys [N, rows, F] at `layer`, and what enters it."""
  x = _run(config, params, packed, x, start=start, stop=layer).x
  site = sites.site(layer, 'mlp/key')
  output = _run(
    config, params, packed, x, start=layer, stop=layer + 1, taps=(site,)
  )
  return _at_lookups(packed, output.taps[site]), x


@functools.partial(jax.jit, static_argnames=('config', 'layers'))
def _bare(
  config: ModelConfig,
  params: Params,
  packed: Packed,
  x: jax.Array,
  index: int | jax.Array,
  *,
  layers: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
  """Keys [N, F] at `layers[index]`, and outputs [N, D] of `layers[-1]`.

  `index` is not static: all layers share the compiled function.
  """
  taps = tuple(sites.site(i, 'mlp/key') for i in layers)
  output = _run(
    config, params, packed, x, start=layers[0], stop=layers[-1] + 1, taps=taps
  )
  keys = jnp.stack([_at_lookups(packed, output.taps[s])[:, 0] for s in taps])
  return keys[index], _at_lookups(packed, output.x)[:, 0]


def _run(config, params, packed, x, **kwargs) -> llama.LayersOutput:
  return llama.run_layers(
    config,
    params,
    x,
    positions=packed.positions,
    mask=packing.mask(packed),
    **kwargs,
  )


def _at_lookups(packed: Packed, x: jax.Array) -> jax.Array:
  """float32 [N, rows, ...]; NumPy has no bfloat16."""
  tails = packing.in_tails(packed, x)
  return packing.at_lookups(tails, packed.lookups).astype(jnp.float32)
