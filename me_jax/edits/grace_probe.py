"""Where prompts fall in a codebook: what is hit, and how far the rest is."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from me_jax import generation
from me_jax.config import GraceConfig
from me_jax.edits import codebook, grace_lookup
from me_jax.edits.codebook import Codebook, nearest
from me_jax.edits.editor import Info
from me_jax.engines import scoring
from me_jax.models import attention, llama, sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Fed, ModelState, Params, ScoreRequest

_BATCH = 16  # texts whose keys are computed at once
_KEYS = 64  # keys that are looked up at once
_ROUNDING = 1e-4  # of a key's length; batches of other shapes move it by 1e-5


def lookups(
  config: GraceConfig,
  model: ModelConfig,
  state: ModelState,
  requests: Sequence[ScoreRequest],
) -> list[Info]:
  """Where the query of each scored text falls in the codebook.

  Each has one continuation.

  Returns:
    Per text `triggered`: the query is within a radius; `distance` to the
    nearest entry and which, `entry`; None where there is no entry.
  """
  book = state.editor.codebook._replace(log=None)
  last_query = np.asarray(state.editor.last_query)
  texts = [_until_query(config.query, r, last_query) for r in requests]
  found: list[Info] = [{} for _ in texts]
  order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
  for first in range(0, len(order), _BATCH):
    batch = order[first : first + _BATCH]
    longest = generation.bucket(len(texts[batch[-1]]))
    ids = np.zeros((_BATCH, longest), np.int32)
    lengths = np.ones(_BATCH, np.int32)
    for place, i in enumerate(batch):
      ids[place, : len(texts[i])] = texts[i]
      lengths[place] = len(texts[i])
    keys = keys_of(model, state.params, ids, lengths, layer=config.layer)
    entries, distances = map(np.asarray, nearest(book, keys))
    hits = distances <= np.asarray(book.radii)[entries]
    for place, i in enumerate(batch):
      is_any = bool(np.isfinite(distances[place]))
      found[i] = {
        'triggered': bool(hits[place]),
        'distance': float(distances[place]) if is_any else None,
        'entry': int(entries[place]) if is_any else None,
      }
  return found


def _until_query(
  policy: str, request: ScoreRequest, last_query: np.ndarray
) -> list[int]:
  """The text up to the token with which it asks."""
  row = scoring.pack(dataclasses.replace(request, shared=0))
  fed = Fed(np.array([row.kinds]), np.array([row.positions]))
  (asks,) = grace_lookup.queries(policy, fed, last_query)
  return row.ids[: int(np.argmax(asks)) + 1]


def finds(
  book: Codebook, keys: Float[np.ndarray, 'N F']
) -> tuple[Bool[np.ndarray, ' N'], Bool[np.ndarray, ' N']]:
  """Of each key whether the nearest entry answers for it, and whether any
  entry would with `_ROUNDING` of the key's length more."""
  hits, may_hit = np.zeros((2, len(keys)), bool)
  book = book._replace(log=None)
  for first in range(0, len(keys), _KEYS):
    piece = keys[first : first + _KEYS]
    padded = np.zeros((_KEYS, keys.shape[1]), np.float32)
    padded[: len(piece)] = piece
    found = jax.device_get(_finds(book, padded))
    at = slice(first, first + len(piece))
    hits[at], may_hit[at] = (x[: len(piece)] for x in found)
  return hits, may_hit


@jax.jit
def _finds(book: Codebook, keys: Float[Array, 'N F']):
  _, hits = codebook.look_up(book, keys)
  reach = book.radii + _ROUNDING * jnp.linalg.norm(keys, axis=1, keepdims=True)
  return hits, (codebook.distances(book, keys) <= reach).any(axis=1)


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def keys_of(
  config: ModelConfig,
  params: Params,
  ids: Int[Array, 'B T'],
  lengths: Int[Array, ' B'],
  *,
  layer: int,
) -> Float[Array, 'B F']:
  """The keys of the last token of each text, padded on the right."""
  name = sites.site(layer, 'mlp/key')
  slots = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  taps = llama.run_layers(
    config,
    params,
    llama.embed(config, params, ids),
    stop=layer + 1,
    taps=(name,),
    positions=slots,
    mask=attention.causal_mask(slots, slots, slots < lengths[:, None]),
  ).taps
  at = (lengths - 1)[:, None, None]
  keys = jnp.take_along_axis(taps[name], at, axis=1)[:, 0]
  return keys.astype(jnp.float32)
