"""A part of a task that stands for the whole."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from me_jax.evals.task import Item


def subset(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
  """At most `limit` of the items, in their order; None takes all.

  Groups take turns, so they are equally represented as far as they last. The
  choice depends on the seed and the items' ids and groups alone, and is
  nested: a larger limit only adds items.

  Raises:
    ValueError: `limit` is not positive, or two items share an id.
  """
  if len({item.id for item in items}) < len(items):
    raise ValueError('Two items share an id; ids must be unique in a task.')
  if limit is None:
    return list(items)
  if limit < 1:
    raise ValueError(
      f'limit must be at least 1, or None for all items; got {limit}.'
    )
  draw = lambda text: hashlib.sha256(f'{seed}:{text}'.encode()).digest()
  groups = defaultdict(list)
  for index, item in enumerate(items):
    groups[item.group].append((draw(item.id), index))
  turns = [
    (turn, draw(group), index)
    for group, members in groups.items()
    for turn, (_, index) in enumerate(sorted(members))
  ]
  chosen = sorted(index for _, _, index in sorted(turns)[:limit])
  return [items[index] for index in chosen]
