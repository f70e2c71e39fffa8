"""The gradient of an edit as factors, and edits as terms of the forward pass.

For a projection y = x W of a token row, the gradient of a loss is the sum of
outer products xᵀ g over rows, g = ∂loss/∂y. MEND works on the factors (Mitchell
et al., *Fast Model Editing at Scale*, 2022, section 3.1). One backward pass
gives all g as the gradient with respect to zeros added to the outputs; the x
are read off the same pass. The sum is never formed, nor is an edited kernel
where the edit is only tried out: x (W + left right) = x W + (x left) right.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from me_jax.edits import target_texts
from me_jax.edits.target_texts import Reads, TextRows
from me_jax.models import llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Interventions, ParamPath, Params, Site

_SITES = {  # projection: where its output is, and its input
  'gate_proj': ('mlp/gate', 'mlp/in'),
  'up_proj': ('mlp/up', 'mlp/in'),
  'down_proj': ('mlp/out', 'mlp/key'),
}


class Factors(NamedTuple):
  """Of one matrix; R token rows for each of E examples.

  The gradient of the kernel [in, out] is the sum over R of x ⊗ g. Rows of
  padding, and others that the loss does not depend on, have g = 0.
  """

  x: Float[Array, 'E R in']
  g: Float[Array, 'E R out']


RawFactors = dict[ParamPath, Factors]


def edited_paths(layers: Sequence[int]) -> tuple[ParamPath, ...]:
  """The kernels that MEND edits: layer by layer gate, up and down."""
  return tuple(
    f'layers/{layer}/mlp/{projection}/kernel'
    for layer in layers
    for projection in _SITES
  )


def ordered(paths: Iterable[ParamPath]) -> tuple[ParamPath, ...]:
  """The same kernels in the order of `edited_paths`.

  A dict that went through jit comes back in the order of its texts, in which
  layer 10 comes before layer 9.
  """
  paths = set(paths)
  layers = sorted({int(path.split('/')[1]) for path in paths})
  return tuple(path for path in edited_paths(layers) if path in paths)


def kernel_shape(config: ModelConfig, path: ParamPath) -> tuple[int, int]:
  """(in, out) of an edited kernel."""
  shape = (config.embed_dim, config.mlp_dim)
  return shape[::-1] if 'down_proj' in path else shape


def entering(
  config: ModelConfig, params: Params, rows: TextRows, layer: int
) -> Float[Array, 'N S D']:
  """The residual stream that enters `layer`."""
  positions, mask = target_texts.layout(rows.lengths, rows.ids.shape[1])
  return llama.run_layers(
    config,
    params,
    llama.embed(config, params, rows.ids),
    positions=positions,
    mask=mask,
    stop=layer,
  ).x


def raw_factors(
  config: ModelConfig,
  params: Params,
  x: Float[Array, 'N S D'],
  rows: TextRows,
  *,
  layers: tuple[int, ...],
  batch: int,
) -> tuple[RawFactors, Float[Array, ' N']]:
  """Factors of the gradients of each example's loss, and the rows' losses.

  The loss of an example is the mean negative log-likelihood of the target
  tokens of its `batch` texts, N = E * batch of which are given.

  Args:
    config: The model's shape.
    params: Its weights.
    x: What enters the first of `layers`.
    rows: The texts.
    layers: The edited layers.
    batch: Texts of an example; their token rows are joined.
  """
  paths = edited_paths(layers)
  outputs = {path: _site(path, 0) for path in paths}
  inputs = {path: _site(path, 1) for path in paths}

  def loss(added):
    functions = {
      outputs[path]: functools.partial(_add, added[path]) for path in paths
    }
    final, taps = tail(
      config,
      params,
      x,
      rows.lengths,
      start=layers[0],
      interventions=functions,
      taps=tuple(dict.fromkeys(inputs.values())),
    )
    reads = rows.reads
    per_token = nll(read_logits(config, params, final, reads), reads.targets)
    total = (per_token * _example_weights(rows, batch)).sum()
    losses = target_texts.by_row(reads, per_token, x.shape[0])
    return total, (taps, losses)

  zeros = {
    path: jnp.zeros((*x.shape[:2], kernel_shape(config, path)[1]), jnp.float32)
    for path in paths
  }
  grads, (taps, losses) = jax.grad(loss, has_aux=True)(zeros)
  joined = lambda a: a.astype(jnp.float32).reshape(
    -1, batch * a.shape[1], a.shape[2]
  )
  factors = {
    path: Factors(joined(taps[inputs[path]]), joined(grads[path]))
    for path in paths
  }
  return factors, losses


def tail(
  config: ModelConfig,
  params: Params,
  x: Float[Array, 'N S D'],
  lengths: Int[Array, ' N'],
  *,
  start: int,
  interventions: Interventions | None = None,
  taps: tuple[Site, ...] = (),
) -> tuple[Float[Array, 'N S D'], dict[Site, jax.Array]]:
  """The residual stream after all layers from `start` on, and the taps."""
  positions, mask = target_texts.layout(lengths, x.shape[1])
  output = llama.run_layers(
    config,
    params,
    x,
    positions=positions,
    mask=mask,
    start=start,
    interventions=interventions,
    taps=taps,
  )
  return output.x, output.taps


def low_rank_terms(
  changes: Mapping[ParamPath, tuple[jax.Array, jax.Array]], texts: int
) -> Interventions:
  """Interventions that make the pass that of edited weights.

  Args:
    changes: For each kernel `left` [E, R, in] and `right` [E, R, out]; the
      change for example e is the sum over R of left ⊗ right.
    texts: Each example's change is for so many consecutive rows of the pass.
  """

  def term(change, output, site_input):
    left, right = change
    n, t, width = output.shape
    x = site_input.reshape(-1, texts * t, site_input.shape[-1])
    with jax.default_matmul_precision('highest'):
      inner = jnp.einsum('Eti,ERi->EtR', x.astype(left.dtype), left)
      extra = jnp.einsum('EtR,ERo->Eto', inner, right)
    return output + extra.reshape(n, t, width).astype(output.dtype)

  return {
    _site(path, 0): functools.partial(term, change)
    for path, change in changes.items()
  }


def read_logits(
  config: ModelConfig, params: Params, final: jax.Array, reads: Reads
) -> Float[Array, 'P V']:
  """Logits where each target token is predicted."""
  return llama.logits(config, params, final[reads.rows, reads.slots])


def nll(logits: jax.Array, targets: jax.Array) -> Float[Array, ' P']:
  """Negative log-likelihood of each target token."""
  chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def _example_weights(rows: TextRows, batch: int) -> Float[Array, ' P']:
  """1 / target tokens of the example that a token belongs to."""
  real = (rows.reads.weights > 0).astype(jnp.float32)
  examples = rows.reads.rows // batch
  count = rows.lengths.shape[0] // batch
  totals = jax.ops.segment_sum(real, examples, num_segments=count)
  return real / jnp.maximum(totals, 1)[examples]


def _add(added: jax.Array, output: jax.Array, site_input: jax.Array):
  del site_input
  return output + added.astype(output.dtype)


def _site(path: ParamPath, which: int) -> Site:
  _, layer, _, projection, _ = path.split('/')
  return sites.site(int(layer), _SITES[projection][which])
