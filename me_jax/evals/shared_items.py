"""The items that two model states were both scored on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from me_jax.evals.task import Record

LOSSES = ('nll_per_token',)  # in nats, lower is better; all else is 0 to 1
_FIELDS = (
  'doc_id',
  'group',
  'prompt_hash',
  'state_fingerprint',
  'nonfinite',
  'metrics',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedItems:
  """Scores of the same items on two states.

  Attributes:
    pairs: The records of each item, of the first state and of the second, in
      the first one's order.
    metric: The headline.
    groups: Of all items that either state was scored on.
    before: Its values on the first state, float64 [n].
    after: And on the second.
  """

  pairs: list[tuple[Record, Record]]
  metric: str
  groups: frozenset[str]
  before: np.ndarray
  after: np.ndarray

  @property
  def is_right_or_wrong(self) -> bool:
    """Whether every value just says right, 1, or wrong, 0."""
    values = np.stack([self.before, self.after])
    return self.metric not in LOSSES and bool(np.isin(values, (0, 1)).all())

  @property
  def broken(self) -> np.ndarray:
    """Indices of the items whose value fell."""
    return np.flatnonzero(self.before > self.after)

  @property
  def repaired(self) -> np.ndarray:
    """Indices of the items whose value rose."""
    return np.flatnonzero(self.before < self.after)


def shared_items(
  before: Sequence[Record], after: Sequence[Record], task: str
) -> SharedItems:
  """The score records of both states, paired by doc_id.

  Raises:
    ValueError: No item is shared, an item was asked or is marked differently,
      or a record is malformed; names the task and, where it is one, the item.
  """
  first, second = _by_id(before, task), _by_id(after, task)
  pairs = [(a, second[i]) for i, a in first.items() if i in second]
  if not pairs:
    raise ValueError(
      f'{task}: the two states share no item ({len(first)} and {len(second)} '
      'were scored). Take the same limit and seed for both.'
    )
  for a, b in pairs:
    for name in ('version', 'profile', 'prompt_hash', 'target'):
      if a.get(name) != b.get(name):
        raise ValueError(
          f'{task}: item {a["doc_id"]!r} is not the same question: its '
          f'{name} is {a.get(name)!r} before and {b.get(name)!r} after. Take '
          'the same data, tokenizer and evaluation settings for both.'
        )
  metric = next(iter(pairs[0][0]['metrics']))
  return SharedItems(
    pairs=pairs,
    metric=metric,
    groups=frozenset(r['group'] for r in (*before, *after)),
    before=_values([a for a, _ in pairs], metric, task),
    after=_values([b for _, b in pairs], metric, task),
  )


def _by_id(records: Sequence[Record], task: str) -> dict[str, Record]:
  found: dict[str, Record] = {}
  for record in records:
    missing = [name for name in _FIELDS if record.get(name) in (None, {})]
    if missing:
      raise ValueError(
        f'{task}: the score of item {record.get("doc_id")!r} lacks '
        f'{", ".join(missing)}. Score the samples again.'
      )
    if record['doc_id'] in found:
      raise ValueError(
        f'{task}: item {record["doc_id"]!r} is scored twice. Score the samples '
        'again.'
      )
    found[record['doc_id']] = record
  states = sorted({record['state_fingerprint'] for record in records})
  if len(states) > 1:
    raise ValueError(
      f'{task}: expected the scores of one state, found those of '
      f'{len(states)}: {", ".join(state[:12] for state in states)}. Score the '
      'samples again.'
    )
  return found


def _values(records: Sequence[Record], metric: str, task: str) -> np.ndarray:
  """The metric of each record; finite unless it is a loss."""
  for record in records:
    headline = next(iter(record['metrics']))
    if headline != metric:
      raise ValueError(
        f'{task}: the headline of item {record["doc_id"]!r} is {headline!r}, '
        f'of others {metric!r}. Score the samples of both states again.'
      )
  # float also reads 'inf' and 'nan', for which JSON has no number.
  values = np.array([float(r['metrics'][metric]) for r in records])
  bad = ~np.isfinite(values)
  if bad.any() and metric not in LOSSES:
    raise ValueError(
      f'{task}: the {metric} of {bad.sum()} of {len(values)} items is '
      f'not finite, {records[bad.argmax()]["doc_id"]!r} for one. Score the '
      'samples again.'
    )
  return values
