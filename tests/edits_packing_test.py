import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax.data.request import EditRequest
from me_jax.edits import packing
from me_jax.edits.rows import build_rows

TEMPLATES = ('{}', 'So it goes. {}', 'I. {}')


def _rows(tokenizer, subject, prompt, target):
  request = EditRequest(
    case_id=subject, subject=subject, prompt=prompt, target_new=target
  )
  return build_rows(tokenizer, request, TEMPLATES)[0]


@pytest.fixture(scope='module')
def requests(tiny):
  texts = [
    ('Ada', 'Where is {} now?', 'Ulm'),
    ('Bob', 'Where is {}', 'x'),
    ('A very long name of a subject', 'Who was {}, in the end?', 'Nobody'),
    ('Eve', 'What does {} say?', 'a long answer of many tokens'),
    ('Cy', '{}: is', 'y'),
  ]
  return [_rows(tiny.tokenizer, *text) for text in texts]


def _slot(packed, n, r):
  """Wide row and slot of a row's lookup position."""
  width = packed.tail_slots.size
  b, tail = divmod(int(packed.lookups[n, r]), width)
  return b, packed.ids.shape[1] - width + tail


@pytest.mark.parametrize('count', [1, 2, 5])
def test_every_row_is_there_once(requests, count):
  packed = packing.pack(requests[:count])
  seen = np.zeros(packed.ids.shape, bool)
  for n, rows in enumerate(requests[:count]):
    for r, (length, lookup) in enumerate(
      zip(rows.lengths, rows.lookups, strict=True)
    ):
      b, slot = _slot(packed, n, r)
      mine = packed.segments[b] == packed.segments[b, slot]
      assert not seen[b, mine].any()
      seen[b, mine] = True
      np.testing.assert_array_equal(
        packed.positions[b, mine], np.arange(length)
      )
      np.testing.assert_array_equal(packed.ids[b, mine], rows.ids[r, :length])
      assert packed.positions[b, slot] == lookup
      tail = length - lookup
      assert mine[slot : slot + tail].all() and slot >= packed.tail_slots[0]
  np.testing.assert_array_equal(seen, packed.segments >= 0)


def test_a_token_sees_what_is_before_it_in_its_row(requests):
  packed = packing.pack(requests)
  mask = np.asarray(packing.mask(jax.tree.map(jnp.asarray, packed)))
  for b, (segments, positions) in enumerate(
    zip(packed.segments, packed.positions, strict=True)
  ):
    for i, j in np.ndindex(mask.shape[1:]):
      expected = (
        segments[i] == segments[j] >= 0 and positions[j] <= positions[i]
      )
      assert mask[b, i, j] == expected


def test_padding_requests_have_no_lookup(requests):
  packed = packing.pack([*requests, *requests])  # ten, and eleven are twelve
  assert len(packed.lookups) == 10
  packed = packing.pack([*requests, *requests, requests[0]])
  assert len(packed.lookups) == 12
  none = packed.ids.shape[0] * packed.tail_slots.size
  assert (packed.lookups[:11] < none).all()
  assert (packed.lookups[11] == none).all()


def test_little_is_padding(requests):
  packed = packing.pack(requests * 3)
  tails = packed.segments[:, packed.tail_slots[0] :]
  assert (tails >= 0).mean() > 0.75


def test_few_sizes():
  sizes = {packing.few(n) for n in range(1, 1025)}
  assert len(sizes) < 40
  for n in range(1, 1025):
    assert n <= packing.few(n) < 1.25 * n
    assert packing.few(packing.few(n)) == packing.few(n)


def test_reads_and_adds_at_lookups(requests):
  packed = packing.pack([*requests, *requests, requests[0]])
  shape = (*packed.ids.shape[:1], packed.tail_slots.size, 3)
  tails = jax.random.normal(jax.random.key(0), shape)
  delta = jnp.arange(36, dtype=jnp.float32).reshape(12, 3)
  added = np.asarray(packing.add_at_lookups(tails, packed.lookups, delta))
  expected = np.array(tails).reshape(-1, 3)
  for n in range(11):
    for lookup in packed.lookups[n]:
      expected[lookup] += delta[n]
  np.testing.assert_array_equal(added.reshape(-1, 3), expected)
  read = np.asarray(packing.at_lookups(tails, packed.lookups[:, 0]))
  np.testing.assert_array_equal(
    read[:11], tails.reshape(-1, 3)[packed.lookups[:11, 0]]
  )
  assert np.isfinite(read).all()


@eight_devices.needs_eight
@pytest.mark.parametrize('count', [1, 5])
def test_rows_and_requests_are_dealt_in_equal_parts(requests, count):
  mesh = eight_devices.mesh('4x2')
  packed = packing.shard(packing.pack(requests[:count], multiple_of=4), mesh)
  for name in ('ids', 'positions', 'segments', 'lookups'):
    array = getattr(packed, name)
    parts = {str(shard.index[0]) for shard in array.addressable_shards}
    assert len(array) % 4 == 0 and len(parts) == 4
  assert packed.tail_slots.is_fully_replicated
  with pytest.raises(ValueError, match='partitioned 4 times'):
    packing.shard(packing.pack(requests[:1]), mesh)
