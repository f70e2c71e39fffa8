"""Eight devices answer as one does."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from me_jax import generation, sharding, trees
from me_jax.engines import decoding
from me_jax.engines.lower_layers import Activations
from me_jax.models import convert, llama, load
from me_jax.typing import GenerateRequest, ModelState, ScoreRequest

MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))
_TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope='module')
def quick_compilation():
  """Little is run here and much compiled."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


@pytest.fixture(scope='module')
def model(tiny):
  """Heads enough that attention is cut, too."""
  config = dataclasses.replace(
    tiny.config,
    num_layers=2,
    embed_dim=64,
    num_heads=8,
    num_kv_heads=8,
    vocab_size=264,
  )
  return load.language_model(
    config, load.init_params(config), tiny.tokenizer, name='small'
  )


@pytest.fixture(scope='module', params=MESHES, ids=lambda m: f'{m[0]}x{m[1]}')
def mesh(request):
  """All eight devices, in each shape."""
  return sharding.make_mesh(*request.param)


@pytest.fixture(scope='module')
def sharded(model, mesh):
  """The model's parameters on the mesh."""
  return sharding.shard(model.config, model.params, mesh)


@pytest.fixture(scope='module')
def on_both_axes(model):
  """The parameters, cut in two and copied four times."""
  return sharding.shard(model.config, model.params, sharding.make_mesh(4, 2))


@functools.cache
def _predictor(model, **kwargs):
  return generation.LlamaPredictor(model.config, model.tokenizer, **kwargs)


def _ids(rng, count):
  return tuple(int(i) for i in rng.integers(1, 256, count))


def _texts(count=11):
  """Prompts of one bucket, every other one behind a common beginning."""
  rng = np.random.default_rng(0)
  common = _ids(rng, 32)
  for i in range(count):
    shared = 32 * (i % 2)
    yield common[:shared] + _ids(rng, int(rng.integers(18, 25))), shared


def _score_requests():
  rng = np.random.default_rng(1)
  return [
    ScoreRequest(
      context=ids,
      continuations=tuple(_ids(rng, n) for n in (1, 3, 2)),
      shared=shared,
    )
    for ids, shared in _texts()
  ]


def _generate_requests():
  return [
    GenerateRequest(prompt=ids, max_new_tokens=2 + 6 * (i % 3), shared=shared)
    for i, (ids, shared) in enumerate(_texts())
  ]


def _logits(config, params, ids):
  shape = ids.shape
  positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
  mask = jnp.tril(jnp.ones((shape[0], shape[1], shape[1]), bool))
  x = llama.run_layers(
    config,
    params,
    llama.embed(config, params, ids),
    positions=positions,
    mask=mask,
  ).x
  return llama.logits(config, params, x)


def test_each_part_of_a_kernel_is_on_its_device(model, sharded, mesh):
  parts = mesh.shape['model']
  for path, leaf in trees.flatten(sharded).items():
    whole = leaf.size * leaf.dtype.itemsize
    held = {s.data.nbytes for s in leaf.addressable_shards}
    is_cut = not path.endswith('/scale')
    assert held == {whole // parts if is_cut else whole}, path
    np.testing.assert_array_equal(leaf, trees.get(model.params, path))


def test_what_does_not_divide_stays_whole(tiny):
  """257 tokens, four heads, two of keys; 64 units."""
  mesh = sharding.make_mesh(1, 8)
  paths = tuple(trees.flatten(tiny.params))
  found = sharding.param_shardings(tiny.config, paths, mesh)
  cut = {path for path in paths if found[path].spec != P()}
  assert cut == {
    f'layers/{i}/mlp/{name}_proj/kernel'
    for i in range(4)
    for name in ('gate', 'up', 'down')
  }


@pytest.mark.parametrize('form', ['hf', 'orbax'])
def test_a_model_is_read_into_its_place(model, sharded, mesh, tmp_path, form):
  """Safetensors are stored the other way round."""
  if form == 'hf':
    convert.write_hf(tmp_path, model, max_shard_bytes=100_000)
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
  else:
    load.save_orbax(tmp_path, model)
  found = load.load_model(str(tmp_path), mesh=mesh)
  assert found.fingerprint == model.fingerprint
  for path, leaf in trees.flatten(found.params).items():
    assert leaf.sharding == trees.get(sharded, path).sharding, path


def test_each_part_is_read_once(model, tmp_path, monkeypatch):
  """Four copies of the weights, and no byte of the file twice."""
  convert.write_hf(tmp_path, model)
  read, seen = convert._Tensor.read, []

  def counting(self, *args):
    part = read(self, *args)
    seen.append(part.nbytes)
    return part

  monkeypatch.setattr(convert._Tensor, 'read', counting)
  load.load_model(str(tmp_path), mesh=sharding.make_mesh(4, 2))
  leaves = trees.flatten(model.params).values()
  assert sum(seen) == sum(leaf.nbytes for leaf in leaves)
  assert max(seen) <= max(leaf.nbytes for leaf in leaves) // 2


def test_logits(model, sharded):
  ids = np.random.default_rng(2).integers(0, 256, (8, 20))
  run = jax.jit(_logits, static_argnums=0)
  np.testing.assert_allclose(
    run(model.config, sharded, ids),
    run(model.config, model.params, ids),
    atol=_TOLERANCE,
  )


def test_likelihoods(model, sharded):
  _check_likelihoods(model, _predictor(model), sharded)


def test_likelihoods_from_kept_activations(model, on_both_axes):
  """Read from memory the second time."""
  predictor = generation.LlamaPredictor(
    model.config, model.tokenizer, activations=Activations(1, 10**9)
  )
  for _ in range(2):
    _check_likelihoods(model, predictor, on_both_axes)


def test_what_stands_inside(model, on_both_axes):
  requests = [
    ScoreRequest(context=ids, continuations=((1,),)) for ids, _ in _texts()
  ]
  slots = [range(len(r.context)) for r in requests]
  tap = lambda params: dict(
    _predictor(model).tap(
      ModelState(params), 'layers/1/mlp/key', requests, slots
    )
  )
  found, expected = tap(on_both_axes), tap(model.params)
  for i, content in expected.items():
    np.testing.assert_allclose(found[i], content, atol=_TOLERANCE)


def test_texts(model, sharded):
  """On one device more prompts than rows, so that rows are used again; another
  set of weights compiles nothing."""
  requests = _generate_requests()
  names = []
  asked = generation.LlamaPredictor(
    model.config, model.tokenizer, max_batch=3, on_trace=names.append
  )
  expected = dict(asked.generate(ModelState(model.params), requests))
  found = dict(asked.generate(ModelState(sharded), requests))
  assert found.keys() == expected.keys()
  for i, result in expected.items():
    np.testing.assert_array_equal(found[i].tokens, result.tokens)
    assert found[i].stop_reason == result.stop_reason
  before = len(names)
  kernel = 'layers/1/mlp/down_proj/kernel'
  edited = trees.set_leaf(sharded, kernel, trees.get(sharded, kernel) * 1.01)
  list(asked.generate(ModelState(edited), requests))
  assert len(names) == before


def test_no_row_waits_for_another_while_decoding(model):
  """On a mesh without cuts of the weights the loop has no collective at all."""
  mesh = sharding.make_mesh(8, 1)
  params = sharding.shard(model.config, model.params, mesh)
  functions = _predictor(model)._functions(mesh)
  rows = functions.empty_rows(8, 32, 16)
  lowered = functions.decode.lower(
    ModelState(params), None, rows, np.int32(4), np.int32(0)
  )
  assert _collectives(lowered.compile().as_text()) == set()


def test_cut_weights_add_up_within_a_group(model):
  """And there, of a group's own devices alone."""
  mesh = sharding.make_mesh(4, 2)
  params = sharding.shard(model.config, model.params, mesh)
  functions = _predictor(model)._functions(mesh)
  rows = functions.empty_rows(8, 32, 16)
  lowered = functions.decode.lower(
    ModelState(params), None, rows, np.int32(4), np.int32(0)
  )
  text = lowered.compile().as_text()
  assert 'all-reduce' in _collectives(text)
  groups = set(re.findall(r'replica_groups=(\S+), use_global', text))
  # Four groups of two neighbours.
  assert groups == {'[4,2]<=[8]'}


def test_rows_stay_where_they_are(model, mesh):
  """Each function of rows takes what another gave."""
  functions = _predictor(model)._functions(mesh)
  count = 8
  rows = functions.empty_rows(count, 16, 16)
  grown = functions.grow(rows, new=32)
  for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(grown), strict=True):
    assert a.sharding == b.sharding
  assert isinstance(grown, decoding.Rows)


@pytest.mark.parametrize(
  ('shape', 'words'),
  [((3, 2), 'needs 6 devices, there are 8'), ((0, 8), '1x8, ')],
)
def test_a_mesh_of_other_devices_is_refused(shape, words):
  with pytest.raises(ValueError, match='Take one of') as error:
    sharding.make_mesh(*shape)
  assert words.rstrip(', ') in str(error.value)


def test_mesh_from_text():
  assert sharding.parse_mesh('4x2') == (4, 2)
  for wrong in ('4', '4x', 'x2', '4,2', '4x2x1'):
    with pytest.raises(ValueError, match='DATAxMODEL'):
      sharding.parse_mesh(wrong)


def test_a_path_without_a_rule_is_refused(tiny):
  mesh = sharding.make_mesh(8, 1)
  with pytest.raises(KeyError, match='layers/0/other'):
    sharding.param_shardings(tiny.config, ('layers/0/other',), mesh)


def _check_likelihoods(model, predictor, params):
  requests = _score_requests()
  expected = dict(_predictor(model).score(ModelState(model.params), requests))
  found = dict(predictor.score(ModelState(params), requests))
  assert found.keys() == expected.keys()
  for i, result in found.items():
    for a, b in zip(result.logprobs, expected[i].logprobs, strict=True):
      np.testing.assert_allclose(a, b, atol=_TOLERANCE)
    for a, b in zip(result.greedy, expected[i].greedy, strict=True):
      np.testing.assert_array_equal(a, b)


def _collectives(text):
  names = (
    'all-reduce',
    'all-gather',
    'all-to-all',
    'reduce-scatter',
    'collective-permute',
  )
  return {name for name in names if f' {name}' in text}
