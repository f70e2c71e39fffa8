import jax
import jax.numpy as jnp
import numpy as np
import pytest

from me_jax import trees

PARAMS = {
  'norm': {'scale': np.ones(2, np.float32)},
  'layers': {
    '10': {'mlp': {'kernel': np.full((2, 2), 10.0, np.float32)}},
    '2': {'mlp': {'kernel': np.full((2, 2), 2.0, np.float32)}},
  },
}


def test_flatten_names_and_sorts():
  assert list(trees.flatten(PARAMS)) == [
    'layers/10/mlp/kernel',
    'layers/2/mlp/kernel',
    'norm/scale',
  ]


def test_flatten_keeps_the_leaves():
  found = trees.flatten(PARAMS)['layers/10/mlp/kernel']
  assert found is PARAMS['layers']['10']['mlp']['kernel']


def test_unflatten_is_the_inverse(tiny):
  back = trees.unflatten(trees.flatten(tiny.params))
  leaves, expected = trees.flatten(back), trees.flatten(tiny.params)
  assert list(leaves) == list(expected)
  assert all(leaves[path] is expected[path] for path in expected)


def test_get():
  leaf = trees.get(PARAMS, 'norm/scale')
  assert leaf is PARAMS['norm']['scale']


@pytest.mark.parametrize(
  'path, nearest',
  [
    ('layers/3/mlp/kernel', 'layers/2/mlp/kernel'),
    ('norm/scales', 'norm/scale'),
    ('norm/scale/more', 'norm/scale'),
    ('layers/2/mlp', 'layers/2/mlp/kernel'),
    ('', 'none'),
  ],
)
@pytest.mark.parametrize('look_up', ['get', 'set_leaf'])
def test_unknown_path_names_the_nearest(path, nearest, look_up):
  arguments = (PARAMS, path) if look_up == 'get' else (PARAMS, path, 0)
  with pytest.raises(KeyError, match=f'No parameter .*Nearest: .*{nearest}'):
    getattr(trees, look_up)(*arguments)


def test_set_leaf_shares_all_other_leaves():
  before = trees.flatten(PARAMS)
  leaf = np.zeros((2, 2), np.float32)
  changed = trees.set_leaf(PARAMS, 'layers/2/mlp/kernel', leaf)

  after = trees.flatten(changed)
  assert after.pop('layers/2/mlp/kernel') is leaf
  assert all(after[path] is before[path] for path in after)
  assert changed['norm'] is PARAMS['norm']
  assert changed['layers']['10'] is PARAMS['layers']['10']


def test_set_leaf_leaves_its_input():
  trees.set_leaf(PARAMS, 'norm/scale', np.zeros(2, np.float32))
  np.testing.assert_array_equal(PARAMS['norm']['scale'], 1)


def test_checksum_sees_every_bit_and_place():
  tree = {
    'a': jnp.arange(6.0).reshape(2, 3),
    'b': (
      jnp.ones(4, jnp.bfloat16),
      np.arange(3, dtype=np.int32),
      jnp.array([True, False]),
    ),
  }
  again = jax.tree.map(jnp.asarray, tree)
  others = [
    {**tree, 'a': tree['a'].at[1, 2].set(np.nextafter(np.float32(5), 6))},
    {**tree, 'a': tree['a'][:, jnp.array([1, 0, 2])]},
    {**tree, 'a': tree['a'].reshape(3, 2)},
    {**tree, 'b': (-tree['b'][0], *tree['b'][1:])},
    {**tree, 'b': (*tree['b'][:2], jnp.array([False, True]))},
  ]
  prints = [trees.checksum(t) for t in (tree, *others)]
  assert len(set(prints)) == len(prints)
  assert trees.checksum(again) == prints[0] and len(prints[0]) == 16
  assert trees.checksum({}) != prints[0]


def test_fingerprint_is_of_the_weights_not_of_their_container():
  on_device = trees.unflatten(
    {path: jnp.asarray(leaf) for path, leaf in trees.flatten(PARAMS).items()}
  )
  reordered = dict(reversed(PARAMS.items()))
  strided = trees.set_leaf(
    PARAMS, 'norm/scale', np.ones((2, 2), np.float32)[:, 0]
  )
  prints = {
    trees.fingerprint(p) for p in (PARAMS, on_device, reordered, strided)
  }
  assert len(prints) == 1


_ONE = np.float32(1)


@pytest.mark.parametrize(
  'name, leaf, changed_name, changed',
  [
    ('a', [_ONE], 'a', [np.nextafter(_ONE, np.float32(2))]),
    ('a', [np.float32(0)], 'a', [np.float32(-0.0)]),
    ('a', [_ONE], 'a', [[_ONE]]),
    ('a', [_ONE], 'b', [_ONE]),
    ('a', [np.float32(0)], 'a', [np.int32(0)]),
  ],
  ids=['last bit', 'sign of zero', 'shape', 'path', 'dtype'],
)
def test_fingerprint_sees(name, leaf, changed_name, changed):
  before, after = {name: np.array(leaf)}, {changed_name: np.array(changed)}
  assert trees.fingerprint(before) != trees.fingerprint(after)


def test_a_fingerprint_stays_what_is_stored():
  """A number, an array and half precision, of NumPy and of JAX."""
  tree = {
    'count': np.asarray(3, np.int32),
    'kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
    'scale': np.asarray([0.5, -0.0], jnp.bfloat16),
  }
  stored = '7b7336d1f2778ceae3f4fe38ae3fb78997a118d3c6dbb430ba4871f294c9ebea'
  assert trees.fingerprint(tree) == stored
  assert trees.fingerprint(jax.tree.map(jnp.asarray, tree)) == stored
