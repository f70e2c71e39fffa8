import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.edits import codebook as codebook_lib
from me_jax.edits import codebook_log
from me_jax.edits.codebook import KINDS, Rules

F, D = 6, 3
RULES = Rules(1.0)
LEGACY = Rules(1.0, reedit='legacy_split')
MOVING = Rules(1.0, 'moving_average')


def _key(distance, axis=0):
  """A key so far from the origin."""
  return jnp.zeros(F, jnp.float32).at[axis].set(distance)


def _label(number):
  return jnp.array([number, -number], jnp.int32)


def _write(book, key, label, edit_id, rules=RULES):
  value = jnp.full(D, edit_id, jnp.float32)
  return codebook_lib.write(
    codebook_lib.with_room(book),
    key,
    value,
    _label(label),
    jnp.int32(edit_id),
    rules=rules,
  )


def _two(distance, is_same, rules=RULES):
  """A key at the origin and one at a distance."""
  book, _ = _write(codebook_lib.empty(F, D, 4), _key(0.0), 1, 1, rules)
  book, written = _write(book, _key(distance), 1 if is_same else 2, 2, rules)
  return book, KINDS[int(written.kind)], written


def _radii(book):
  return np.asarray(book.radii)[: int(book.count)]


def _assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


# One key at the origin, eps 1: what a second key does.


@pytest.mark.parametrize(
  'distance, is_same, kind, radii',
  [
    (2.5, False, 'inserted', [1, 1]),
    (2.5, True, 'inserted', [1, 1]),
    (2.0, False, 'split', [1 - 1e-5, 1]),
    (1.6, False, 'split', [0.8 - 1e-5, 0.8]),
    (1.6, True, 'expanded', [1.6 + 1.6e-5]),
    (0.4, True, 'trained', [1]),
    (1.0, True, 'expanded', [1 + 1e-5]),
    (0.4, False, 'split', [0.2 - 1e-5, 0.2]),
    (0.0, False, 'overwritten', [1]),
    (0.0, True, 'trained', [1]),
  ],
)
def test_decision_table(distance, is_same, kind, radii):
  book, found, written = _two(distance, is_same)
  assert found == kind
  np.testing.assert_allclose(_radii(book), radii, rtol=0, atol=1e-7)
  is_new = kind in ('inserted', 'split')
  assert int(written.entry) == is_new and int(written.nearest) == 0
  assert float(written.distance) == np.float32(distance)
  assert bool(written.same_key) == (distance == 0)
  takes = is_new or kind == 'overwritten'
  ids = ([1, 2] if is_new else [2]) if takes else [1]
  assert np.asarray(book.edit_ids)[: len(ids)].tolist() == ids
  values = np.asarray(book.values)[: len(ids), 0]
  np.testing.assert_array_equal(values, ids)
  # What answers for the new key is what was to be written, or used.
  entry, hit = codebook_lib.look_up(book, _key(distance))
  assert bool(hit) and int(entry) == int(written.entry)
  assert book.labels[entry].tolist() == _label(1 if is_same else 2).tolist()


def test_the_legacy_split_of_one_key_hides_the_new_value():
  book, kind, _ = _two(0.0, False, LEGACY)
  assert kind == 'split'
  np.testing.assert_allclose(_radii(book), [-1e-5, 0], rtol=0, atol=1e-9)
  entry, hit = codebook_lib.look_up(book, _key(0.0))
  assert int(entry) == 0 and not bool(hit)


def test_a_key_of_another_batch_is_the_same_key():
  """Other shapes round otherwise: a few parts in a million of its length."""
  far = 15 * jnp.ones(F) / np.sqrt(F)
  book, _ = _write(codebook_lib.empty(F, D, 4), far, 1, 1)
  book, written = _write(book, far * (1 + 3e-6), 2, 2)
  assert KINDS[int(written.kind)] == 'overwritten'
  assert float(written.distance) > codebook_lib.SAME_KEY


def test_an_expanded_entry_answers_in_other_batches():
  """Also where the key was within reach, but on the edge."""
  for distance in (1.6, 1.0):
    book, kind, _ = _two(distance, True)
    assert kind == 'expanded'
    moved = _key(distance * (1 + 5e-6))
    assert codebook_lib.look_up(book, moved)[1]
    assert not codebook_lib.look_up(book, _key(distance * (1 + 2e-5)))[1]


def test_moving_average_moves_the_key():
  book, kind, _ = _two(1.6, True, MOVING)
  assert kind == 'expanded'
  np.testing.assert_allclose(book.keys[0], _key(0.8))
  np.testing.assert_allclose(_radii(book), [1.6 + 1.6e-5])
  book, kind, _ = _two(0.4, True, MOVING)
  assert kind == 'trained'
  np.testing.assert_array_equal(book.keys[0], _key(0.0))


def test_the_radius_of_the_nearest_entry_decides():
  book, _ = _write(codebook_lib.empty(F, D, 4), _key(0.0), 1, 1)
  book, _ = _write(book, _key(1.6), 1, 2)  # one entry, radius 1.6
  book, _ = _write(book, _key(3.0), 3, 3)  # too far to split
  book = book._replace(radii=jnp.array([1.6, 0.5, 0, 0], jnp.float32))
  queries = jnp.stack([_key(1.5), _key(1.6), _key(2.5), _key(2.4999)])
  entry, hit = codebook_lib.look_up(book, queries)
  # 1.6 lies within the radius of the first, but the second is nearer.
  assert entry.tolist() == [0, 1, 1, 1]
  assert hit.tolist() == [True, False, True, False]


def test_an_empty_codebook_has_no_nearest_entry():
  book = codebook_lib.empty(F, D, 4)
  entry, distance = codebook_lib.nearest(book, jnp.zeros((2, 5, F)))
  assert entry.shape == distance.shape == (2, 5)
  assert np.isinf(distance).all()
  assert not codebook_lib.look_up(book, jnp.zeros((5, F)))[1].any()


def test_small_distances_of_long_keys_survive():
  offset = jnp.full(F, 1e3, jnp.float32)
  book, _ = _write(codebook_lib.empty(F, D, 4), offset, 1, 1)
  _, distance = codebook_lib.nearest(book, offset + _key(2.0**-7))
  assert float(distance) == 2.0**-7
  # The expanded square would lose it.
  square = jnp.square(offset).sum()
  assert float(square + 2.0**-14) == float(square)


def test_half_precision_keys_are_compared_in_float32():
  book, _ = _write(codebook_lib.empty(F, D, 4), _key(1.0), 1, 1)
  query = _key(1.0078125).astype(jnp.bfloat16)
  _, distance = codebook_lib.nearest(book, query)
  assert distance.dtype == jnp.float32 and float(distance) == 0.0078125


# Growth


def _random(count, seed=0, labels=3, rules=RULES, without=(), capacity=4):
  """A codebook after edits close to each other, ids 1, 2, ...; labels=0 for
  labels that are all different."""
  rng = np.random.default_rng(seed)
  book = codebook_lib.empty(F, D, capacity)
  kinds = []
  for i in range(1, count + 1):
    key = jnp.asarray(rng.normal(size=F) * 0.55, jnp.float32)
    label = int(rng.integers(1, labels + 1)) if labels else i
    if i not in without:
      book, written = _write(book, key, label, i, rules)
      kinds.append(KINDS[int(written.kind)])
  return book, kinds


def test_capacity_doubles_and_nothing_is_lost():
  small, kinds = _random(21)
  large, _ = _random(21, capacity=64)
  assert {'inserted', 'split', 'expanded', 'trained'} <= set(kinds)
  count = int(small.count)
  assert 4 < count < 21 and int(small.log.count) == 21
  assert len(small.radii) == 8 * (count > 4) * (1 + (count > 8))
  assert len(small.log.kinds) == 32
  for field in ('keys', 'values', 'radii', 'labels', 'edit_ids'):
    np.testing.assert_array_equal(
      getattr(small, field)[:count], getattr(large, field)[:count]
    )
  assert not np.asarray(small.keys)[count:].any()


def test_one_trace_while_it_fits():
  _random(1, capacity=32, rules=Rules(1.25))
  traces = codebook_lib.write._cache_size()
  _random(32, capacity=32, rules=Rules(1.25))
  assert codebook_lib.write._cache_size() == traces


def test_inputs_are_left_as_they_are():
  book, _ = _random(5)
  before = jax.tree.map(np.array, book)
  _write(book, _key(9.0), 1, 6)
  codebook_log.delete(book, 3, rules=RULES)
  _assert_equal(book, before)


# Deletion


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('edit_id', [1, 2, 7, 12])
def test_deleting_equals_never_having_edited(seed, edit_id):
  book, kinds = _random(12, seed, labels=0)
  assert 'split' in kinds and int(book.count) == 12
  found = codebook_log.delete(book, edit_id, rules=RULES)
  expected, _ = _random(12, seed, labels=0, without=(edit_id,))
  expected = jax.tree.map(
    lambda x, like: jnp.zeros_like(like).at[: len(x)].set(x) if x.ndim else x,
    expected,
    found,
  )
  _assert_equal(found, expected)


def test_a_split_is_made_whole_again():
  book, _, _ = _two(0.4, False)
  found = codebook_log.delete(book, 2, rules=RULES)
  np.testing.assert_array_equal(_radii(found), [1])
  found = codebook_log.delete(book, 1, rules=RULES)
  np.testing.assert_array_equal(_radii(found), [1])
  assert found.edit_ids[0] == 2 and int(found.count) == 1
  assert not np.asarray(found.keys)[1:].any()
  entry, hit = codebook_lib.look_up(found, _key(0.4))
  assert int(entry) == 0 and bool(hit)
  # And it can go on from there.
  again, _ = _write(found, _key(5.0), 3, 3)
  assert _radii(again).tolist() == [1, 1]


@pytest.mark.parametrize('distance, radius', [(1.6, 1.6 + 1.6e-5), (0.4, 1.0)])
def test_an_entry_that_another_edit_uses_stays(distance, radius):
  book, _, _ = _two(distance, True)
  found = codebook_log.delete(book, 2, rules=RULES)
  assert _radii(found).tolist() == [1] and found.edit_ids[0] == 1
  found = codebook_log.delete(book, 1, rules=RULES)
  np.testing.assert_allclose(_radii(found), [radius])
  assert found.edit_ids[0] == 2
  found = codebook_log.delete(found, 2, rules=RULES)
  assert int(found.count) == int(found.log.count) == 0


def test_what_was_overwritten_is_gone():
  book, _, _ = _two(0.0, False)
  with pytest.raises(KeyError, match='Edit 1 was overwritten by edit 2'):
    codebook_log.delete(book, 1, rules=RULES)
  found = codebook_log.delete(book, 2, rules=RULES)
  assert int(found.count) == 0


def test_no_such_edit():
  book, _, _ = _two(2.5, False)
  with pytest.raises(KeyError, match=r'No edit 3 in the codebook.*\[1, 2\]'):
    codebook_log.delete(book, 3, rules=RULES)


@pytest.mark.parametrize('rules', [RULES, Rules(1.5), Rules(0.3)])
@pytest.mark.parametrize('seed', range(3))
def test_the_history_ends_at_the_radii(seed, rules):
  book, _ = _random(30, seed, rules=rules)
  history = codebook_log.radius_history(book, rules=rules)
  assert [entry[-1][1] for entry in history] == _radii(book).tolist()
  assert [entry[0][0] for entry in history] == [
    int(book.log.edit_ids[n])
    for n in range(30)
    if KINDS[int(book.log.kinds[n])] in ('inserted', 'split')
  ]


def test_history_of_a_split():
  book, _, _ = _two(1.6, False)
  first, second = codebook_log.radius_history(book, rules=RULES)
  assert first == [(1, 1.0), (2, pytest.approx(0.8 - 1e-5, abs=1e-7))]
  assert second == [(2, pytest.approx(0.8))]
