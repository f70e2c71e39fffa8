"""Token rows of many requests, side by side in a few wide rows.

Rows differ in length, and what pads them costs as much as tokens do. So short
rows share a wide one, kept apart by the attention mask, as texts do in
pre-training.

Shapes are rounded up to few, which share compiled functions, most coarsely
where it costs least: what comes before lookup positions goes through the layers
once, tails at each step of a search. The first 100 facts of ZsRE, in six
templates each, have 12 shapes of a search and 3 of keys one by one, and 5 and 3
by tens. With room in multiples of 16 and targets rounded by `few` these were 37
and 24, 9 and 8. Counted arithmetic is 6 % more one by one, 1 % less by tens,
2 % more by sixteens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from me_jax import sharding
from me_jax.edits.rows import Rows

_TAIL = 16  # slots for tails in a wide row, unless one tail is longer
_ROOM = 64  # slots for what comes before tails, or that times a power of two


class Packed(NamedTuple):
  """The rows of N requests in B wide rows of S + M slots.

  What comes before a row's lookup position is in the first S slots, its tail
  (the rest) in the last M, without a gap.

  Attributes:
    ids: int32 [B, S + M].
    positions: int32 [B, S + M], places in the row of its own.
    segments: int32 [B, S + M], which row a slot belongs to; -1 is padding.
    lookups: int32 [N, rows], where in the tails of all wide rows, [B * M],
      each tail begins; B * M for padding.
    tail_slots: int32 [M], S ... S + M - 1.
  """

  ids: np.ndarray
  positions: np.ndarray
  segments: np.ndarray
  lookups: np.ndarray
  tail_slots: np.ndarray


def pack(requests: Sequence[Rows], multiple_of: int = 1) -> Packed:
  """The rows of `requests`, which have the same number each, packed.

  Args:
    requests: At least one.
    multiple_of: To which wide rows and requests are padded.
  """
  spans = [
    (int(p), int(n - p), i, r)
    for i, rows in enumerate(requests)
    for r, (p, n) in enumerate(zip(rows.lookups, rows.lengths, strict=True))
  ]
  heads, tails = (np.array([s[k] for s in spans]) for k in (0, 1))
  width = max(_TAIL, _power_of_two(int(tails.max())))
  # As much room per tail token as the rows need on average; all in one at most.
  share = int(min(-(-width * heads.sum() // tails.sum()), heads.sum()))
  room = _power_of_two(max(_ROOM, share, int(heads.max())))
  bins = _first_fit(sorted(spans, key=lambda s: s[1::-1]), room, width)

  padded = lambda n: multiple_of * few(-(-n // multiple_of))
  count = padded(len(bins))
  ids, positions, segments = (
    np.full((count, room + width), fill, np.int32) for fill in (0, 0, -1)
  )
  shape = padded(len(requests)), len(requests[0].lookups)
  lookups = np.full(shape, count * width, np.int32)
  for b, members in enumerate(bins):
    head, tail = 0, room
    for segment, (before, after, i, r) in enumerate(members):
      lookups[i, r] = b * width + tail - room
      for slot, start, n in ((head, 0, before), (tail, before, after)):
        ids[b, slot : slot + n] = requests[i].ids[r, start : start + n]
        positions[b, slot : slot + n] = np.arange(start, start + n)
        segments[b, slot : slot + n] = segment
      head, tail = head + before, tail + after
  slots = np.arange(room, room + width, dtype=np.int32)
  return Packed(ids, positions, segments, lookups, slots)


def shard(packed: Packed, mesh: Mesh | None) -> Packed:
  """Wide rows and requests dealt over a mesh, of whose data axis they must be a
  multiple; as they are without one."""
  return packed._replace(
    **{
      name: sharding.shard_rows(getattr(packed, name), mesh)
      for name in ('ids', 'positions', 'segments', 'lookups')
    },
    tail_slots=sharding.replicate(packed.tail_slots, mesh),
  )


def mask(packed: Packed) -> Bool[Array, 'B slots slots']:
  """Each token sees those at or before its place in its own row."""
  same = packed.segments[:, :, None] == packed.segments[:, None]
  seen = packed.positions[:, :, None] >= packed.positions[:, None]
  return same & seen & (packed.segments >= 0)[:, None]


def in_tails(packed: Packed, x: Shaped[Array, 'B slots *X']) -> Array:
  """The part of `x` in the tails' slots, [B, M, ...]."""
  return x[:, -packed.tail_slots.size :]


def at_lookups(
  tails: Float[Array, 'B M X'], lookups: Int[np.ndarray | Array, '*N']
) -> Float[Array, '*N X']:
  """What stands at `lookups`; padding reads some other token's."""
  return tails.reshape(-1, tails.shape[-1]).at[lookups].get(mode='clip')


def add_at_lookups(
  tails: Float[Array, 'B M D'],
  lookups: Int[np.ndarray | Array, 'N rows'],
  delta: Float[Array, 'N D'],
) -> Float[Array, 'B M D']:
  """`tails` plus each request's vector at the lookups of its rows."""
  flat = tails.reshape(-1, tails.shape[-1])
  vectors = delta[:, None].astype(tails.dtype)
  return flat.at[lookups].add(vectors, mode='drop').reshape(tails.shape)


def few(n: int) -> int:
  """`n` rounded up: 1 ... 8 as they are, then four sizes for each doubling."""
  step = 1 << max(n.bit_length() - 3, 0)
  return -(-n // step) * step


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def _first_fit(spans, room: int, width: int) -> list[list]:
  """Longest tails first, each into the first wide row that has the room."""
  bins, left = [], []
  for span in reversed(spans):
    before, after = span[:2]
    fits = (i for i, (h, t) in enumerate(left) if before <= h and after <= t)
    b = next(fits, len(bins))
    if b == len(bins):
      bins.append([])
      left.append((room, width))
    bins[b].append(span)
    left[b] = left[b][0] - before, left[b][1] - after
  return bins
