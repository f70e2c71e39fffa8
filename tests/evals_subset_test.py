import collections

import pytest

from me_jax.evals.subset import subset
from me_jax.evals.task import Item


def _items(**sizes):
  return [
    Item(id=f'{group}/{i}', group=group, fields={})
    for group, size in sizes.items()
    for i in range(size)
  ]


ITEMS = _items(a=5, b=60, c=40, d=1)


def test_larger_limits_only_add_items():
  previous = set()
  for limit in range(1, len(ITEMS) + 2):
    chosen = {item.id for item in subset(ITEMS, limit, seed=7)}
    assert len(chosen) == min(limit, len(ITEMS))
    assert previous <= chosen
    previous = chosen


def test_items_keep_their_order():
  chosen = subset(ITEMS, 30, seed=0)
  positions = [ITEMS.index(item) for item in chosen]
  assert positions == sorted(positions)
  assert subset(ITEMS, None, seed=0) == ITEMS


def test_groups_take_turns():
  counts = collections.Counter(i.group for i in subset(ITEMS, 46, seed=0))
  assert counts == {'a': 5, 'b': 20, 'c': 20, 'd': 1}


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
  chosen = lambda items, seed: {i.id for i in subset(items, 20, seed)}
  assert chosen(ITEMS, 0) == chosen(ITEMS[::-1], 0)
  assert chosen(ITEMS, 0) != chosen(ITEMS, 1)


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match='limit must be at least 1'):
    subset(ITEMS, 0, seed=0)
  with pytest.raises(ValueError, match='share an id'):
    subset([ITEMS[0], ITEMS[0]], 1, seed=0)
