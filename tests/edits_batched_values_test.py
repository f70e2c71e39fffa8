"""Many searches at once against each alone, by `values.search`."""

import dataclasses

import jax
import numpy as np
import pytest

from me_jax.data.request import EditRequest
from me_jax.edits import batched_values, packing, values
from me_jax.edits.rows import build_rows

LAYER = 1
TEMPLATES = ('{}', 'So it goes. {}', 'I. {}')
SEARCH = values.SearchConfig(
  v_num_grad_steps=12,
  v_lr=0.5,
  v_weight_decay=1e-3,
  clamp_norm_factor=2.75,
  kl_factor=0.0625,
  early_stop_loss=0.05,
)
TEXTS = [
  ('Ada', 'Where is {} now?', 'Ulm'),
  ('Bob', 'Where is {}', 'x'),
  ('Eve', 'What does {} say?', 'a long answer'),
  ('A longer name', 'Who was {}, then?', 'Nobody'),
  ('Cy', '{}: is', 'y'),
]


# Adam's first step is the sign of the gradient: where that is itself rounding,
# two searches part.
PARTED = 1e-3


@pytest.fixture(scope='module')
def model(tiny):
  """One layer above the searched one: half the compilation."""
  config = dataclasses.replace(tiny.config, num_layers=LAYER + 2)
  return dataclasses.replace(tiny, config=config)


@pytest.fixture(scope='module')
def requests(model):
  return [
    build_rows(
      model.tokenizer,
      EditRequest(case_id=s, subject=s, prompt=p, target_new=t),
      TEMPLATES,
    )[0]
    for s, p, t in TEXTS
  ]


def _alone(model, rows, config=SEARCH):
  prepared = values.prepare(
    model.config, model.params, rows, layer=LAYER, site='resid'
  )
  found = values.search(
    model.config,
    model.params,
    rows,
    prepared,
    layer=LAYER,
    search_config=config,
  )
  return np.asarray(prepared.outputs[0]), jax.device_get(found)


@pytest.fixture(scope='module')
def alone(model, requests):
  return [_alone(model, rows) for rows in requests]


def _together(model, requests, config=SEARCH, batch_size=16):
  return batched_values.find_targets(
    model.config,
    model.params,
    requests,
    layer=LAYER,
    search_config=config,
    batch_size=batch_size,
  )


def _assert_same_history(found, expected, n):
  assert found.num_evaluations == n
  np.testing.assert_array_equal(found.projected[:n], expected.projected[:n])
  for name in ('nll', 'target_probability', 'delta_norm', 'weight_decay'):
    np.testing.assert_allclose(
      getattr(found, name)[:n],
      getattr(expected, name)[:n],
      rtol=PARTED,
      atol=1e-8,
      err_msg=name,
    )
  # Differences of log-probabilities: rounding relative to those.
  np.testing.assert_allclose(
    found.kl[:n], expected.kl[:n], rtol=PARTED, atol=2e-6
  )


def _assert_same(together, alone):
  assert len(together) == len(alone)
  for found, (start, expected) in zip(together, alone, strict=True):
    _assert_same_history(found.search, expected, expected.num_evaluations)
    np.testing.assert_allclose(found.start, start, rtol=0, atol=1e-5)
    norm = np.linalg.norm(expected.delta)
    np.testing.assert_allclose(
      found.search.delta, expected.delta, rtol=0, atol=PARTED * norm
    )
    np.testing.assert_array_equal(found.z, found.start + found.search.delta)


def test_together_as_alone(model, requests, alone):
  projected = [found.projected.any() for _, found in alone]
  assert any(projected) and not all(projected)
  _assert_same(_together(model, requests), alone)


def test_an_ended_search_stays_as_it_is(model, requests, alone):
  """Some fall below the loss while others go on."""
  losses = np.array([f.nll + f.kl + f.weight_decay for _, f in alone])
  # Half-way between losses of different requests, so that rounding cannot
  # move an end.
  lowest = np.sort(losses.min(axis=1))
  threshold = float((lowest[1] + lowest[2]) / 2)
  config = dataclasses.replace(SEARCH, early_stop_loss=threshold)
  found = [t.search for t in _together(model, requests, config)]
  counts = [int(f.num_evaluations) for f in found]
  assert min(counts) < max(counts) == SEARCH.v_num_grad_steps
  for search, loss, (_, expected) in zip(found, losses, alone, strict=True):
    below = np.flatnonzero(loss < threshold)
    n = below[0] + 1 if len(below) else len(loss)
    _assert_same_history(search, expected, n)
    assert not search.nll[n:].any()
    np.testing.assert_allclose(
      np.linalg.norm(search.delta), search.delta_norm[n - 1], rtol=1e-6
    )


def test_order_and_neighbours_do_not_matter(model, requests, alone):
  order = [3, 0, 4, 2, 1]
  found = _together(model, [requests[i] for i in order])
  _assert_same(found, [alone[i] for i in order])


def test_padded_requests_change_nothing(model, requests, alone):
  """Nine requests are searched as ten."""
  nine = [*requests, *requests[:4]]
  _assert_same(_together(model, nine), [*alone, *alone[:4]])


def test_what_pads_requests_pulls_at_nobody(model):
  """One fact as two. The second reads the last slot of all, where a target of
  the first ends. The divergence weighs much."""
  config = dataclasses.replace(SEARCH, kl_factor=5.0)
  request = EditRequest(
    case_id='Bob', subject='Bob', prompt='Where is {}', target_new='x' * 15
  )
  rows, _ = build_rows(model.tokenizer, request, TEMPLATES)
  packed = packing.pack([rows], multiple_of=2)
  # The wide row with the shortest tail is the last one: turned round.
  count, width = len(packed.ids), packed.tail_slots.size
  b, at = np.divmod(packed.lookups, width)
  packed = packed._replace(
    ids=packed.ids[::-1],
    positions=packed.positions[::-1],
    segments=packed.segments[::-1],
    lookups=np.where(b < count, (count - 1 - b) * width + at, packed.lookups),
  )
  assert len(packed.lookups) == 2 and packed.segments[-1, -1] >= 0
  _, found = jax.device_get(
    batched_values.search(
      model.config,
      model.params,
      packed,
      batched_values.wanted([rows], packed),
      layer=LAYER,
      search_config=config,
    )
  )
  _, expected = _alone(model, rows, config)
  search = jax.tree.map(lambda x: x[0], found)
  _assert_same_history(search, expected, expected.num_evaluations)


def test_other_weights_share_the_compiled_function(model, requests):
  _together(model, requests)
  count = batched_values.search._cache_size()
  params = jax.tree.map(lambda x: 1.01 * x, model.params)
  swapped = [requests[i] for i in (1, 0, 2, 3, 4)]
  _together(dataclasses.replace(model, params=params), swapped)
  assert batched_values.search._cache_size() == count
