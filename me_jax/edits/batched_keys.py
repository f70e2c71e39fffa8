"""Keys and block outputs of many requests on a model that is being edited.

An edit of several layers looks at the model again after each of them. Nothing
below the first edited layer changes meanwhile, and nothing after a lookup
position matters: so the rows end there, and the residual stream that enters
the first edited layer is computed once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

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


def template_weights(count: int) -> Float[np.ndarray, ' P']:
  """How MEMIT averages keys: half for the bare template, which is the first,
  half shared by the others."""
  if count == 1:
    return np.ones(1, np.float32)
  weights = np.full(count, 0.5 / (count - 1), np.float32)
  weights[0] = 0.5
  return weights


def looker(
  config: ModelConfig,
  params: Params,
  requests: Sequence[Rows],
  *,
  layers: tuple[int, ...],
  batch_size: int,
) -> Callable[[Params, int], Seen]:
  """`look(params, layer)`: keys at one of `layers`, and outputs of the last.

  The weights it is given may differ from `params` at `layers` only.

  Args:
    config: The model's shape.
    params: Weights before the edit.
    requests: Token rows of each request.
    layers: From the lowest up.
    batch_size: Requests in one pass. What enters layer `layers[0]` waits on
      the host in between.
  """
  groups = []
  for start in range(0, len(requests), batch_size):
    group = requests[start : start + batch_size]
    packed = packing.pack([_until_lookup(rows) for rows in group])
    x = _enter(config, params, packed, stop=layers[0])
    groups.append((len(group), packed, jax.device_get(x)))

  def look(params: Params, layer: int) -> Seen:
    seen = [
      jax.device_get(
        _look(config, params, packed, x, layers.index(layer), layers=layers)
      )
      for _, packed, x in groups
    ]
    sizes = [size for size, _, _ in groups]
    keys, outputs = (
      np.concatenate(
        [found[k][:n] for found, n in zip(seen, sizes, strict=True)]
      ).astype(np.float64)
      for k in (0, 1)
    )
    return Seen(keys.T, outputs)

  return look


def _until_lookup(rows: Rows) -> Rows:
  """The template rows without what comes after their lookup positions."""
  lookups = rows.lookups[:-1]
  return rows._replace(ids=rows.ids[:-1], lengths=lookups + 1, lookups=lookups)


@functools.partial(jax.jit, static_argnames=('config', 'stop'))
def _enter(
  config: ModelConfig, params: Params, packed: Packed, *, stop: int
) -> jax.Array:
  """The residual stream [B, slots, D] that enters layer `stop`."""
  return llama.run_layers(
    config,
    params,
    llama.embed(config, params, packed.ids),
    positions=packed.positions,
    mask=packing.mask(packed),
    stop=stop,
  ).x


@functools.partial(jax.jit, static_argnames=('config', 'layers'))
def _look(
  config: ModelConfig,
  params: Params,
  packed: Packed,
  x: jax.Array,
  index: int | jax.Array,
  *,
  layers: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
  """Mean keys [N, F] at `layers[index]`, and the last output [N, D].

  `index` is not static: all layers share the compiled function.
  """
  key_sites = [sites.site(i, 'mlp/key') for i in layers]
  output = llama.run_layers(
    config,
    params,
    x,
    positions=packed.positions,
    mask=packing.mask(packed),
    start=layers[0],
    stop=layers[-1] + 1,
    taps=tuple(key_sites),
  )
  at = lambda x, lookups: packing.at_lookups(
    packing.in_tails(packed, x), lookups
  ).astype(jnp.float32)
  weights = template_weights(packed.lookups.shape[1])
  keys = jnp.stack([at(output.taps[s], packed.lookups) for s in key_sites])
  with jax.default_matmul_precision('highest'):
    mean = jnp.einsum('P,NPF->NF', weights, keys[index])
  return mean, at(output.x, packed.lookups[:, 0])
