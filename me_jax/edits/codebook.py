"""GRACE's codebook: what to say instead, around which keys, and how far.

A pytree of fixed capacity, so that functions of it are traced once; it grows by
doubling. An entry answers for the keys within its deferral radius. Where a new
key comes close to an entry of another label, the space between them is split;
where the label is the same, the entry is used, and its radius grows to reach
the key (Hartvigsen et al., *Aging with GRACE*, 2023, algorithm 1).

| distance d to the nearest entry i   | label     | what happens            |
|-------------------------------------|-----------|-------------------------|
| d > eps + radius of i, or no entry  | any       | `inserted`, radius eps  |
| d <= that                           | different | `split`: both about d/2 |
| radius of i < d <= that             | same      | `expanded`: reaches it  |
| d <= radius of i                    | same      | `trained` further       |
| the same key again                  | different | `overwritten`           |

A radius that is to reach a key reaches a hundred-thousandth of the key's length
beyond it, and counts as reaching it only then: batches of another shape compute
the key anew, and would miss it on the very edge.

Published implementations split in the last case, too, which leaves the old key
in front of the new one: the new value is never found (`legacy_split`).

Radii are found again without one of the edits by `codebook_log.delete`.

Keys are compared by float32 differences: the expanded square loses the small
distances that decide.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

KINDS = ('inserted', 'split', 'expanded', 'trained', 'overwritten')
INSERTED, SPLIT, EXPANDED, TRAINED, OVERWRITTEN = range(5)

SAME_KEY = 1e-6  # as far apart, or a hundred-thousandth of their length
_SAME_KEY_RELATIVE = 1e-5  # what other batch shapes change, in float32
GAP = 1e-5  # keeps the older of two split entries from reaching the middle


class Rules(NamedTuple):
  """How the codebook takes a key; a jit constant.

  Attributes:
    eps: Radius of a new entry.
    eps_expand: 'coverage', or 'moving_average', which moves the entry's key
      half-way, too.
    reedit: 'overwrite' or 'legacy_split'.
  """

  eps: float
  eps_expand: str = 'coverage'
  reedit: str = 'overwrite'


class Log(NamedTuple):
  """What each edit did, in order; E slots.

  Attributes:
    edit_ids: Which edit.
    kinds: Index into KINDS.
    entries: Which entry it made or used.
    distances: From its key to the nearest entry; infinite if there was none.
      Of `expanded` and `trained` the radius that reaches the key.
    labels: Its label.
    count: Events so far.
  """

  edit_ids: Int[Array, ' E']
  kinds: Int[Array, ' E']
  entries: Int[Array, ' E']
  distances: Float[Array, ' E']
  labels: Int[Array, 'E 2']
  count: Int[Array, '']


class Codebook(NamedTuple):
  """Entries in the order in which they were made; M slots.

  Attributes:
    keys: Where.
    values: What the layer puts out there.
    radii: Deferral radii.
    labels: 64 bits that stand for the target.
    edit_ids: The edit that made or last overwrote it.
    count: Entries so far.
    log: How they came about; None where only look-ups are made.
  """

  keys: Float[Array, 'M F']
  values: Float[Array, 'M D']
  radii: Float[Array, ' M']
  labels: Int[Array, 'M 2']
  edit_ids: Int[Array, ' M']
  count: Int[Array, '']
  log: Log | None


class Written(NamedTuple):
  """How a key was taken.

  Attributes:
    kind: Index into KINDS.
    entry: The entry that now answers for it.
    nearest: The nearest entry before.
    distance: To that; infinite if there was none.
    same_key: That is the same key.
  """

  kind: Int[Array, '']
  entry: Int[Array, '']
  nearest: Int[Array, '']
  distance: Float[Array, '']
  same_key: Array


def empty(key_dim: int, value_dim: int, capacity: int) -> Codebook:
  """A codebook without entries, with room for so many."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
  ints = lambda *shape: jnp.zeros(shape, jnp.int32)
  log = Log(
    *(ints(capacity) for _ in range(3)), zeros(capacity), ints(capacity, 2),
    ints(),
  )  # fmt: skip
  return Codebook(
    keys=zeros(capacity, key_dim),
    values=zeros(capacity, value_dim),
    radii=zeros(capacity),
    labels=ints(capacity, 2),
    edit_ids=ints(capacity),
    count=ints(),
    log=log,
  )


def with_room(codebook: Codebook) -> Codebook:
  """The codebook with a free slot for one more edit: doubled where full.

  For the host: shapes change, and with them what is compiled.
  """
  grown = lambda x: jnp.pad(x, ((0, len(x)), *((0, 0),) * (x.ndim - 1)))
  double = lambda rows: jax.tree.map(lambda x: grown(x) if x.ndim else x, rows)
  log = codebook.log
  if int(log.count) >= len(log.edit_ids):
    log = double(log)
  if int(codebook.count) >= len(codebook.radii):
    codebook = double(codebook._replace(log=None))
  return codebook._replace(log=log)


@jax.jit
def nearest(
  codebook: Codebook, keys: Float[Array, '*N F']
) -> tuple[Int[Array, '*N'], Float[Array, '*N']]:
  """The nearest entry of each key, and how far it is: infinitely, if there is
  none. The first one wins a tie."""
  from_all = distances(codebook, keys)
  index = jnp.argmin(from_all, axis=-1).astype(jnp.int32)
  return index, jnp.take_along_axis(from_all, index[..., None], axis=-1)[..., 0]


def distances(
  codebook: Codebook, keys: Float[Array, '*N F']
) -> Float[Array, '*N M']:
  """From each key to each entry; infinite in empty slots."""
  gaps = keys[..., None, :].astype(jnp.float32) - codebook.keys
  is_entry = jnp.arange(len(codebook.radii)) < codebook.count
  return jnp.where(is_entry, jnp.sqrt(jnp.square(gaps).sum(axis=-1)), jnp.inf)


def look_up(
  codebook: Codebook, keys: Float[Array, '*N F']
) -> tuple[Int[Array, '*N'], Array]:
  """The nearest entry of each key, and whether the key is within its radius.
  Entries farther away are not asked, however large their radii."""
  index, distance = nearest(codebook, keys)
  return index, distance <= codebook.radii[index]


@functools.partial(jax.jit, static_argnames=('rules',))
def write(
  codebook: Codebook,
  key: Float[Array, ' F'],
  value: Float[Array, ' D'],
  label: Int[Array, ' 2'],
  edit_id: Int[Array, ''],
  *,
  rules: Rules,
) -> tuple[Codebook, Written]:
  """The codebook with a key taken in, as the module's table says.

  `value` becomes that of the entry, unless an entry is used as it is. There
  must be room, see `with_room`: without, a new entry is lost.
  """
  book, key = codebook, key.astype(jnp.float32)
  i, d = nearest(book, key)
  same_label = (book.labels[i] == label).all()
  slack = _SAME_KEY_RELATIVE * _norm(key)
  reach = d + slack
  same_key = d <= jnp.maximum(SAME_KEY, slack)
  overwrites = same_key & (rules.reedit == 'overwrite')
  kind = jnp.select(
    [
      d > rules.eps + book.radii[i],
      ~same_label & overwrites,
      ~same_label,
      reach > book.radii[i],
    ],
    [INSERTED, OVERWRITTEN, SPLIT, EXPANDED],
    TRAINED,
  ).astype(jnp.int32)
  is_new = kind <= SPLIT
  is_used = (kind == EXPANDED) | (kind == TRAINED)
  entry = jnp.where(is_new, book.count, i)
  put = lambda rows, row: rows.at[entry].set(row, mode='drop')
  # What `entry` has where it is not new.
  old_key, old_value, old_radius = book.keys[i], book.values[i], book.radii[i]
  moved = old_key
  if rules.eps_expand == 'moving_average':
    moved = jnp.where(kind == EXPANDED, (old_key + key) / 2, old_key)
  takes_value = is_new | (kind == OVERWRITTEN)
  neighbour = jnp.where(kind == SPLIT, d / 2 - GAP, old_radius)
  radius = jnp.select(
    [kind == INSERTED, kind == SPLIT, kind == EXPANDED],
    [rules.eps, d / 2, reach],
    old_radius,
  )
  log, at = book.log, book.log.count
  append = lambda rows, row: rows.at[at].set(row, mode='drop')
  book = Codebook(
    keys=put(book.keys, jnp.where(is_new, key, moved)),
    values=put(book.values, jnp.where(takes_value, value, old_value)),
    radii=put(book.radii.at[i].set(neighbour), radius),
    labels=put(book.labels, jnp.where(takes_value, label, book.labels[i])),
    edit_ids=put(
      book.edit_ids, jnp.where(takes_value, edit_id, book.edit_ids[i])
    ),
    count=book.count + is_new,
    log=Log(
      edit_ids=append(log.edit_ids, edit_id),
      kinds=append(log.kinds, kind),
      entries=append(log.entries, entry),
      distances=append(log.distances, jnp.where(is_used, reach, d)),
      labels=append(log.labels, label),
      count=at + 1,
    ),
  )
  return book, Written(kind, entry, i, d, same_key)


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.square(x).sum())
