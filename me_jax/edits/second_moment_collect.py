"""The pass over text that collects C, for any set of layers at once.

The forward pass dominates, so all wanted layers share one. It stops at the
deepest of them. On a mesh the texts of a batch are dealt along 'data', and each
device adds up its rows of C.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from me_jax import files, preemption, processes, sharding, trees
from me_jax.edits import second_moment, tensor_file, text_batches
from me_jax.models import attention, llama, sites
from me_jax.models.config import ModelConfig
from me_jax.models.language_model import LanguageModel
from me_jax.typing import Params


def collect(
  model: LanguageModel,
  token_rows: Sequence[Sequence[int]],
  layers: Sequence[int],
  directory: files.PathLike,
  spec: Mapping[str, Any],
  progress: Callable[[int], None] = lambda tokens: None,
  *,
  batch_tokens: int = 3 * 4096,
  snapshot_seconds: float = 600.0,
) -> dict[int, second_moment.SecondMoment]:
  """C of each of `layers`, also saved in `directory`.

  Layers that are there already are read, not collected. Sums are saved now and
  then; the same call after a kill goes on from there and gives the same bits.

  Args:
    model: The unedited model.
    token_rows: Token ids of each text, special tokens included.
    layers: From 0, in any order.
    directory: Where the results go.
    spec: What `token_rows` are: `CorpusSample.spec`.
    progress: Called with the number of tokens done, first with what an earlier
      call left.
    batch_tokens: Padded tokens in one batch, at most, unless one row is longer;
      of each group of devices along 'data'.
    snapshot_seconds: Time between two savings of the sums.

  Raises:
    ValueError: No layers or no tokens; a token or layer that the model does
      not have; `directory` holds something else, finished or not.
    OSError: The disk is full or not writable.
  """
  layers = sorted(set(layers))
  _check(model.config, token_rows, layers)
  directory = pathlib.Path(directory)
  expected = {l: second_moment.fingerprint(model, l, spec) for l in layers}
  moments = {
    l: second_moment.load(directory, l, expected[l])
    for l in second_moment.stored(directory, layers)
  }
  missing = tuple(l for l in layers if l not in moments)
  if not missing:
    return moments

  mesh = sharding.mesh_of(model.params)
  groups = sharding.data_size(mesh)
  plan = text_batches.plan(
    [len(row) for row in token_rows], batch_tokens, groups
  )
  snapshot = _Snapshot(
    snapshot_path(directory, layers),
    {
      **{k: v for k, v in expected[missing[0]].items() if k != 'layer'},
      'batch_tokens': batch_tokens,
      'groups': groups,
    },
  )
  done, sums = 0, {l: np.zeros((model.config.mlp_dim,) * 2) for l in missing}
  if processes.all_see(snapshot.path):
    done, sums = snapshot.load(missing)
  tokens = sum(len(token_rows[i]) for b in plan[:done] for i in b.rows)
  progress(tokens)
  saved_at = time.monotonic()
  results = _one_ahead(
    grams(
      model.config,
      missing,
      model.params,
      *sharding.shard_rows(b.arrays(token_rows), mesh),
    )
    for b in plan[done:]
  )
  for batch, found in zip(plan[done:], results, strict=True):
    for layer in missing:
      sums[layer] += trees.to_host(found[layer])
    done += 1
    tokens += sum(len(token_rows[i]) for i in batch.rows)
    is_told = preemption.is_told()
    if is_told or time.monotonic() - saved_at >= snapshot_seconds:
      snapshot.save(done, sums)
      saved_at = time.monotonic()
    progress(tokens)
    if is_told:
      preemption.stop()

  for layer in missing:
    # A matrix product need not be symmetric to the last bit.
    mean = (sums[layer] + sums[layer].T) / (2 * tokens)
    if not np.isfinite(mean).all():
      raise ValueError(
        f'Keys of layer {layer} are NaN or infinite: are the weights damaged?'
      )
    moments[layer] = second_moment.SecondMoment(
      layer=layer, mean=mean, count=tokens, fingerprint=expected[layer]
    )
    second_moment.save(directory, moments[layer])
  if processes.is_first():
    snapshot.path.unlink(missing_ok=True)
  return {l: moments[l] for l in layers}


@functools.partial(jax.jit, static_argnums=(0, 1))
def grams(
  config: ModelConfig,
  layers: tuple[int, ...],
  params: Params,
  ids: Int[Array, 'B T'],
  lengths: Int[Array, ' B'],
) -> dict[int, Float32[Array, 'F F']]:
  """Sum of k kᵀ over the tokens of a batch, by layer."""
  order = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  real = order < lengths[:, None]
  taps = {layer: sites.site(layer, 'mlp/key') for layer in layers}
  output = llama.run_layers(
    config,
    params,
    llama.embed(config, params, ids),
    positions=order,
    mask=attention.causal_mask(order, order, real),
    stop=max(layers) + 1,
    taps=tuple(taps.values()),
  )

  def gram(keys):
    keys = jnp.where(real[..., None], keys, 0).astype(jnp.float32)
    return jnp.einsum(
      'BTF,BTG->FG', keys, keys, precision=jax.lax.Precision.HIGHEST
    )

  return {layer: gram(output.taps[tap]) for layer, tap in taps.items()}


def _one_ahead(results: Iterator) -> Iterator:
  """The same results, each after the next was asked for: the device works
  while the host adds."""
  waiting = []
  for result in results:
    waiting.append(result)
    if len(waiting) == 2:
      yield waiting.pop(0)
  yield from waiting


def snapshot_path(
  directory: files.PathLike, layers: Sequence[int]
) -> pathlib.Path:
  """Where the sums of these layers are while they are collected: runs that
  want others may be at work in the same directory."""
  name = '-'.join(map(str, layers))
  return pathlib.Path(directory) / f'unfinished_{name}.safetensors'


@dataclasses.dataclass(frozen=True)
class _Snapshot:
  """The sums so far, so that a kill costs minutes.

  Attributes:
    path: The file.
    collection: Fingerprint of the collection, all its layers alike.
  """

  path: pathlib.Path
  collection: Mapping[str, Any]

  def save(self, done: int, sums: Mapping[int, np.ndarray]) -> None:
    tensor_file.write(
      self.path,
      {str(layer): array for layer, array in sums.items()},
      {
        'done': str(done),
        'collection': files.canonical_json(self.collection),
      },
    )

  def load(self, layers: Sequence[int]) -> tuple[int, dict[int, np.ndarray]]:
    """Batches done and float64 sums."""
    tensors, metadata = tensor_file.read(self.path)
    lines = second_moment.differences(
      json.loads(metadata['collection']), self.collection
    )
    lines += [
      f'layer {layer}: not being collected'
      for layer in layers
      if str(layer) not in tensors
    ]
    if lines:
      raise ValueError(
        f'{self.path} is what another, unfinished collection left: '
        + '; '.join(lines)
        + '. Finish that one, or delete the file to start afresh.'
      )
    return int(metadata['done']), {l: tensors[str(l)] for l in layers}


def _check(
  config: ModelConfig,
  token_rows: Sequence[Sequence[int]],
  layers: Sequence[int],
) -> None:
  outside = [l for l in layers if not 0 <= l < config.num_layers]
  if not layers or outside:
    raise ValueError(
      f'Expected layers from 0 to {config.num_layers - 1}, got '
      f'{outside or "none"}.'
    )
  longest = max(map(len, token_rows), default=0)
  if not 0 < longest <= config.max_positions:
    raise ValueError(
      f'Expected texts of 1 to {config.max_positions} tokens, the longest has '
      f'{longest}. Lower max_length, or choose another corpus.'
    )
  # An id beyond the table would be read as its last row.
  ids = np.concatenate([np.asarray(row, np.int64) for row in token_rows])
  if ids.min() < 0 or ids.max() >= config.vocab_size:
    raise ValueError(
      f'Token ids {ids.min()} to {ids.max()}, but the vocabulary has '
      f'{config.vocab_size}: is this the tokenizer of another model?'
    )
