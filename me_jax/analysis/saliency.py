"""Information flow in context, read off the attention (Fig. 8 of the paper).

Wang et al., *Label Words are Anchors* (2023). With A_hl the attention
probabilities of head h in layer l, after the softmax, and L the loss of a
classification by demonstrations,

    I_l(i, j) = | sum_h A_hl(i, j) dL/dA_hl(i, j) |

says how much flows from token j to token i, the one that attends. (Lin et al.
2024 name the direction the other way round; the index sets are these.) With
label words at p_1 ... p_C and the target at q, the last token, the means of I
over three sets of pairs j < i are

    S_wp  (p_k, j):  text to label word        sum_k p_k  pairs
    S_pq  (q, p_k):  label word to target      C          pairs
    S_ww  all others up to q                   the rest

so a label word may also be the text that another one reads, and what the target
reads beside label words is in S_ww. In the last layer S_wp is 0: nothing is
above it that reads the label words.

The probabilities of every layer are multiplied by ones M_l [T, T], the same for
all heads: dL/dM_l is the sum over heads of A dL/dA, so one reverse pass gives
all layers, and no array has heads and layers at once. What is downstream of the
probabilities is differentiated, the softmax itself is not.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from me_jax import sharding, trees
from me_jax.config.saliency import LOSSES
from me_jax.engines.padding import pad_mask
from me_jax.generation import bucket
from me_jax.models import llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


class Prompt(NamedTuple):
  """Demonstrations and a query, whose label comes next.

  Attributes:
    ids: All tokens; the last is the target position.
    label_positions: p_1 ... p_C, ascending, each below the target's.
    gold: Index of the right label.
  """

  ids: tuple[int, ...]
  label_positions: tuple[int, ...]
  gold: int


class Saliency(NamedTuple):
  """One row per prompt, in their order.

  Of a model that has collapsed they may be NaN or infinite.

  Attributes:
    scores: float64 [S, 3, layers], S_wp, S_pq and S_ww.
    label_logits: float32 [S, labels], at the target.
    losses: float32 [S].
  """

  scores: np.ndarray
  label_logits: np.ndarray
  losses: np.ndarray


class _Batch(NamedTuple):
  """Prompts of one bucket, padded at the end. See `engines.padding`."""

  ids: Int[Array, 'B T']
  lengths: Int[Array, ' B']
  is_label: Bool[Array, 'B T']
  gold: Int[Array, ' B']


def saliency(
  config: ModelConfig,
  *,
  label_ids: Sequence[int],
  loss: str = 'label_words',
  exclude_bos: bool = False,
  batch_size: int = 8,
  on_trace: Callable[[], None] = lambda: None,
) -> Callable[[Params, Sequence[Prompt]], Saliency]:
  """A function from weights and prompts to their `Saliency`.

  It compiles once per bucket of lengths, and not for other weights. Weights are
  all that is asked: methods that act beside them are not seen.

  Args:
    config: The model's shape.
    label_ids: The token of each label.
    loss: 'label_words': cross-entropy over the labels' logits; or
      'full_vocabulary': over all.
    exclude_bos: The first token is none of the pairs.
    batch_size: Prompts at once, of each group of devices along 'data'. Each
      holds attention probabilities of all layers, some N T² floats a layer with
      N heads.
    on_trace: Called at each compile.

  Raises:
    ValueError: A setting is none of those above, or label ids are not at least
      two that differ.
  """
  if loss not in LOSSES:
    raise ValueError(f'loss must be one of {", ".join(LOSSES)}, got {loss!r}.')
  if len(label_ids) < 2 or len(set(label_ids)) < len(label_ids):
    raise ValueError(
      'Expected the ids of at least two labels, all different, got '
      f'{list(label_ids)}.'
    )
  labels = jnp.asarray(label_ids, jnp.int32)

  @jax.jit
  def run(params, batch):
    on_trace()
    matrices, logits, losses = saliency_matrices(
      config, params, batch.ids, batch.lengths, labels, batch.gold, loss=loss
    )
    score = functools.partial(
      scores,
      is_label=batch.is_label,
      target=batch.lengths - 1,
      exclude_bos=exclude_bos,
    )
    # The layers' matrices are not needed together.
    return jnp.stack([score(m) for m in matrices], axis=-1), logits, losses

  def measure(params: Params, prompts: Sequence[Prompt]) -> Saliency:
    """See `Saliency`."""
    for prompt in prompts:
      _check(prompt, len(labels), exclude_bos)
    rows = [None] * len(prompts)
    mesh = sharding.mesh_of(params)
    size = batch_size * sharding.data_size(mesh)
    for indices, batch in _batches(prompts, size):
      found = trees.to_host(run(params, sharding.shard_rows(batch, mesh)))
      for row, i in enumerate(indices):
        rows[i] = [part[row] for part in found]
    if not rows:
      raise ValueError('Expected at least one prompt.')
    found, logits, losses = map(np.stack, zip(*rows, strict=True))
    return Saliency(found.astype(np.float64), logits, losses)

  return measure


def saliency_matrices(
  config: ModelConfig,
  params: Params,
  ids: Int[Array, 'B T'],
  lengths: Int[Array, ' B'],
  label_ids: Int[Array, ' C'],
  gold: Int[Array, ' B'],
  *,
  loss: str = 'label_words',
) -> tuple[list[Array], Array, Array]:
  """I_l [B, T, T] of each layer, label logits [B, C] and losses [B], float32.

  Args:
    config: The model's shape.
    params: The model's weights.
    ids: Tokens, padded at the end with the first of the row.
    lengths: Tokens of each row without padding; the last is the target.
    label_ids: The token of each label.
    gold: Index of the right label.
    loss: See `saliency`.
  """
  order = jnp.arange(ids.shape[1])
  real = order < lengths[:, None]
  positions = jnp.where(real, order, 0)
  mask = pad_mask((order[None, :] <= order[:, None])[None], real)

  def total_loss(ones):
    x = llama.embed(config, params, ids)
    for i, of_layer in enumerate(ones):
      x = _layer(config, params['layers'][str(i)], x, positions, mask, of_layer)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = llama.logits(config, params, last)
    of_labels = logits[:, label_ids]
    right = jnp.take_along_axis(of_labels, gold[:, None], axis=1)[:, 0]
    rivals = of_labels if loss == 'label_words' else logits
    losses = jax.nn.logsumexp(rivals, axis=-1) - right
    return losses.sum(), (of_labels, losses)

  shape = (ids.shape[0], 1, ids.shape[1], ids.shape[1])
  ones = [jnp.ones(shape, jnp.float32)] * config.num_layers
  flows, (logits, losses) = jax.grad(total_loss, has_aux=True)(ones)
  return [jnp.abs(flow[:, 0]) for flow in flows], logits, losses


def scores(
  matrix: Float[Array, 'B T T'],
  *,
  is_label: Bool[Array, 'B T'],
  target: Int[Array, ' B'],
  exclude_bos: bool = False,
) -> Float[Array, 'B 3']:
  """S_wp, S_pq and S_ww of one layer.

  Args:
    matrix: I(i, j), row i the token that attends.
    is_label: Which tokens are the label words.
    target: q.
    exclude_bos: Token 0 is none of the pairs.
  """
  order = jnp.arange(matrix.shape[-1])
  below = (order[None, :] < order[:, None]) & (order[None, :] >= exclude_bos)
  pairs = below & (order <= target[:, None])[:, :, None]
  to_label = pairs & is_label[:, :, None]
  to_target = pairs & (order == target[:, None])[:, :, None]
  to_target &= is_label[:, None, :]
  others = pairs & ~to_label & ~to_target
  mean = lambda among: (
    jnp.where(among, matrix, 0).sum(axis=(1, 2)) / among.sum(axis=(1, 2))
  )
  return jnp.stack([mean(to_label), mean(to_target), mean(others)], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _layer(config, params, x, positions, mask, ones):
  """One layer with its probabilities multiplied by `ones`; traced once for all
  layers, which each run as the first and only one of a model."""
  return llama.run_layers(
    config,
    {'layers': {'0': params}},
    x,
    positions=positions,
    mask=mask,
    stop=1,
    interventions={sites.site(0, 'attn/probs'): lambda probs, _: probs * ones},
  ).x


def _batches(
  prompts: Sequence[Prompt], size: int
) -> Iterator[tuple[list[int], _Batch]]:
  """Indices of prompts with their arrays, of constant size, longest first."""
  groups: dict[int, list[int]] = {}
  for i, prompt in enumerate(prompts):
    groups.setdefault(bucket(len(prompt.ids)), []).append(i)
  for length, members in sorted(groups.items(), reverse=True):
    for start in range(0, len(members), size):
      chosen = members[start : start + size]
      # The last one stands in for those that are missing.
      rows = [prompts[i] for i in chosen]
      rows += rows[-1:] * (size - len(rows))
      batch = _Batch(
        ids=np.array(
          [[*p.ids, *p.ids[:1] * (length - len(p.ids))] for p in rows], np.int32
        ),
        lengths=np.array([len(p.ids) for p in rows], np.int32),
        is_label=np.zeros((size, length), bool),
        gold=np.array([p.gold for p in rows], np.int32),
      )
      for row, prompt in enumerate(rows):
        batch.is_label[row, list(prompt.label_positions)] = True
      yield chosen, batch


def _check(prompt: Prompt, num_labels: int, exclude_bos: bool) -> None:
  positions = list(prompt.label_positions)
  # Something must stand before a label word, or there is nothing to read.
  allowed = range(1 + exclude_bos, len(prompt.ids) - 1)
  if (
    not positions
    or positions != sorted(set(positions))
    or not set(positions) <= set(allowed)
  ):
    raise ValueError(
      f'Expected label positions in {allowed.start} ... {allowed.stop - 1}, '
      f'ascending, got {positions}.'
    )
  if not 0 <= prompt.gold < num_labels:
    raise ValueError(
      f'The gold label is {prompt.gold}, but there are {num_labels} labels.'
    )
