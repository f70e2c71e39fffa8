import random

import pytest

from me_jax import prefixes
from me_jax.prefixes import _STEP, shared_lengths

A, B, C, D = ([10 * (i + 1)] * _STEP for i in range(4))  # one step each


def _own(i):
  return [1000 + i]


def test_groups_share_whole_steps():
  prompts = [[*A, *B, 7, *_own(i)] for i in range(5)]
  prompts += [[*C, *_own(i)] for i in range(4)]
  assert shared_lengths(prompts) == [2 * _STEP] * 5 + [_STEP] * 4


@pytest.mark.parametrize(('size', 'length'), [(3, 0), (4, _STEP)])
def test_a_small_group_is_not_shared(size, length):
  prompts = [[*A, *_own(i)] for i in range(size)]
  assert shared_lengths(prompts) == [length] * size
  # What has nothing in common with it makes no group larger.
  prompts += [_own(i) for i in range(3)]
  assert shared_lengths(prompts) == [length] * size + [0] * 3


@pytest.mark.parametrize(
  ('size', 'length'),
  [
    (_STEP, 0),
    (_STEP + 1, _STEP),
    (2 * _STEP, _STEP),
    (2 * _STEP + 1, 2 * _STEP),
  ],
)
def test_one_token_stays_with_each_prompt(size, length):
  """Also where the prompts are equal, or one begins the others."""
  assert shared_lengths([[5] * size] * 6) == [length] * 6
  prompts = [[5] * size, *([*[5] * size, *A, *A, i] for i in range(3))]
  assert shared_lengths(prompts) == [length] * 4


def test_a_long_prefix_of_few_or_a_short_one_of_many():
  few = [[*A, *B, *C, *D, *_own(i)] for i in range(4)]  # 3 * 64 of their own
  many = lambda n: [[*A, *_own(50 + i)] for i in range(n)]
  # All by one step save 16 (4 + n - 1).
  assert shared_lengths([*few, *many(8)]) == [4 * _STEP] * 4 + [0] * 8
  assert shared_lengths([*few, *many(10)]) == [_STEP] * 14


@pytest.mark.parametrize(('rest', 'length'), [(3, _STEP), (4, 0)])
def test_a_small_part_of_long_prompts_is_not_shared(rest, length):
  """A quarter is, less is not; of all that begin alike, together."""
  own = lambda i: [[1000 + i] * _STEP] * rest
  prompts = [
    [*A, *(token for step in own(i) for token in step)] for i in range(6)
  ]
  assert shared_lengths(prompts) == [length] * 6


def test_no_prompts_and_short_ones():
  assert shared_lengths([]) == []
  assert shared_lengths([[1]]) == [0]
  assert shared_lengths([[1]] * 9) == [0] * 9


def _random_prompts(rng):
  """Paths of a random tree, each with an end of its own or without."""
  prompts = []
  for i in range(rng.randrange(1, 17)):
    steps = [rng.choice('xxxxxy') for _ in range(rng.randrange(2, 7))]
    body = [ord(s) + place for place, s in enumerate(steps) for _ in range(16)]
    prompts.append(body[: rng.choice([None, -3])] + [[], _own(i)][i % 3 > 0])
  return [p or [1] for p in prompts]


@pytest.mark.parametrize('seed', range(20))
def test_the_order_of_the_prompts_does_not_matter(seed):
  rng = random.Random(seed)
  prompts = _random_prompts(rng)
  by_prompt = dict(
    zip(map(tuple, prompts), shared_lengths(prompts), strict=True)
  )
  for _ in range(5):
    rng.shuffle(prompts)
    lengths = shared_lengths(prompts)
    assert lengths == [by_prompt[tuple(p)] for p in prompts]


def _saved(prompts, lengths):
  """Tokens that are not computed again, after a check of what is shared."""
  groups = {}
  for prompt, length in zip(prompts, lengths, strict=True):
    assert length % _STEP == 0 and length < len(prompt)
    if length:
      groups.setdefault(tuple(prompt[:length]), []).append(prompt)
  assert all(len(members) >= 4 for members in groups.values())
  return sum((len(m) - 1) * len(prefix) for prefix, m in groups.items())


def _best(prompts):
  """Most tokens that disjoint groups save, each of all the prompts that begin
  with the same ones and go on; by trying every choice."""
  families = {}
  for i, prompt in enumerate(prompts):
    for length in range(_STEP, len(prompt), _STEP):
      families.setdefault(tuple(prompt[:length]), set()).add(i)
  kept = [(p, m) for p, m in families.items() if len(m) >= 4]

  def best(first, taken):
    if first == len(kept):
      return 0
    prefix, members = kept[first]
    without = best(first + 1, taken)
    if members & taken:
      return without
    saved = (len(members) - 1) * len(prefix)
    return max(without, saved + best(first + 1, taken | members))

  return best(0, frozenset())


def test_no_choice_of_groups_saves_more(monkeypatch):
  monkeypatch.setattr(prefixes, '_MIN_SHARE', 0)
  rng = random.Random(0)
  savings, kinds = set(), set()
  for _ in range(400):
    prompts = _random_prompts(rng)
    lengths = shared_lengths(prompts)
    found = _saved(prompts, lengths)
    assert found == _best(prompts), prompts
    savings.add(found)
    kinds.add(frozenset(lengths))
  assert len(savings) > 15 and any(len(k - {0}) > 1 for k in kinds)
