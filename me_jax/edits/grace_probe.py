"""Where texts fall in a codebook: what is hit, and how far the rest is."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from me_jax.config import GraceConfig
from me_jax.edits import codebook as codebook_lib
from me_jax.edits import grace_lookup
from me_jax.edits.codebook import Codebook
from me_jax.edits.editor import Info
from me_jax.engines import scoring
from me_jax.models import sites
from me_jax.typing import Fed, ModelState, ScoreRequest, SitePredictor

_KEYS = 64  # keys that are looked up at once
_ROUNDING = 1e-4  # of a key's length; batches of other shapes move it by 1e-5


class Found(NamedTuple):
  """Where keys fall, [N] each.

  Attributes:
    entries: The nearest entry of each key.
    distances: To that; infinite if there is none.
    hits: It answers for the key.
    may_hit: Some entry would with `_ROUNDING` of the key's length more.
  """

  entries: Int[np.ndarray | Array, ' N']
  distances: Float[np.ndarray | Array, ' N']
  hits: Bool[np.ndarray | Array, ' N']
  may_hit: Bool[np.ndarray | Array, ' N']


def lookups(
  config: GraceConfig,
  predictor: SitePredictor,
  state: ModelState,
  requests: Sequence[ScoreRequest],
) -> list[Info]:
  """Where the query of each scored text falls in the codebook.

  Each has one continuation.

  Returns:
    Per text `triggered`: the query is within a radius; `distance` to the
    nearest entry and which, `entry`; None where there is no entry.
  """
  last_query = np.asarray(state.editor.last_query)
  content = predictor.tap(
    ModelState(state.params),
    sites.site(config.layer, 'mlp/key'),
    requests,
    [[_query(config.query, r, last_query)] for r in requests],
  )
  keys = [key for _, (key,) in sorted(content, key=lambda found: found[0])]
  if not keys:
    return []
  found = find(state.editor.codebook, np.stack(keys))
  return [
    {
      'triggered': bool(hit),
      'distance': float(distance) if np.isfinite(distance) else None,
      'entry': int(entry) if np.isfinite(distance) else None,
    }
    for entry, distance, hit, _ in zip(*found, strict=True)
  ]


def find(book: Codebook, keys: Float[np.ndarray, 'N F']) -> Found:
  """Where keys fall in the codebook; compiled once, for any number of them."""
  book = book._replace(log=None)
  pieces = []
  for first in range(0, len(keys), _KEYS):
    piece = keys[first : first + _KEYS]
    padded = np.zeros((_KEYS, keys.shape[1]), np.float32)
    padded[: len(piece)] = piece
    found = jax.device_get(_find(book, padded))
    pieces.append([x[: len(piece)] for x in found])
  return Found(*map(np.concatenate, zip(*pieces, strict=True)))


@jax.jit
def _find(book: Codebook, keys: Float[Array, 'N F']) -> Found:
  entries, distances = codebook_lib.nearest(book, keys)
  reach = book.radii + _ROUNDING * jnp.linalg.norm(keys, axis=1, keepdims=True)
  return Found(
    entries,
    distances,
    distances <= book.radii[entries],
    (codebook_lib.distances(book, keys) <= reach).any(axis=1),
  )


def _query(policy: str, request: ScoreRequest, last_query: np.ndarray) -> int:
  """The place in its row of the token with which a text asks."""
  row = scoring.pack(dataclasses.replace(request, shared=0))
  fed = Fed(np.array([row.kinds]), np.array([row.positions]))
  (asks,) = grace_lookup.queries(policy, fed, last_query)
  return int(np.argmax(asks))
