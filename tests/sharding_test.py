"""Eight devices answer as one does."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import MESHES, needs_eight
from eight_devices import mesh as _mesh
from jax.sharding import PartitionSpec as P

from me_jax import generation, sharding, trees
from me_jax.capacity import costs, estimate
from me_jax.edits import edit as edit_lib
from me_jax.engines.forward import Forward
from me_jax.engines.functions import Functions
from me_jax.engines.lower_layers import Activations
from me_jax.models import convert, llama, load
from me_jax.typing import GenerateRequest, ModelState, ScoreRequest

_TOLERANCE = 1e-5

pytestmark = needs_eight


@pytest.fixture(scope='module')
def model(tiny):
  """Eight heads, of which two share their keys: in eight parts these are not
  cut."""
  config = dataclasses.replace(
    tiny.config,
    num_layers=2,
    embed_dim=64,
    num_heads=8,
    num_kv_heads=4,
    vocab_size=264,
  )
  return load.language_model(
    config, load.init_params(config), tiny.tokenizer, name='small'
  )


@pytest.fixture(scope='module')
def predictor(model):
  return generation.LlamaPredictor(model.config, model.tokenizer)


@pytest.fixture(scope='module', params=MESHES)
def mesh(request):
  """All eight devices, in each shape."""
  return _mesh(request.param)


@pytest.fixture(scope='module')
def sharded(model, mesh):
  """The model's parameters on the mesh."""
  return sharding.shard(model.config, model.params, mesh)


@pytest.fixture(scope='module')
def on_both_axes(model):
  """The parameters, cut in two and copied four times."""
  return sharding.shard(model.config, model.params, _mesh('4x2'))


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


# Where parameters lie


def test_each_part_of_a_kernel_is_on_its_device(model, sharded, mesh):
  parts = mesh.shape['model']
  for path, leaf in trees.flatten(sharded).items():
    held = {s.data.nbytes for s in leaf.addressable_shards}
    is_whole = path.endswith('/scale') or (
      parts == 8 and re.search('[kv]_proj', path)
    )
    assert held == {leaf.nbytes // (1 if is_whole else parts)}, path
    np.testing.assert_array_equal(leaf, trees.get(model.params, path))


def test_what_does_not_divide_stays_whole_and_is_named(tiny):
  """257 tokens, four heads, two of keys; 64 units."""
  paths = tuple(trees.flatten(tiny.params))
  found = sharding.param_shardings(tiny.config, paths, _mesh('1x8'))
  cut = {path for path in paths if found[path].spec != P()}
  assert cut == {
    f'layers/{i}/mlp/{name}_proj/kernel'
    for i in range(4)
    for name in ('gate', 'up', 'down')
  }
  whole = lambda mesh: sharding.uncut(tiny.config, paths, _mesh(mesh))
  heads = [f'self_attn/{name}_proj' for name in 'koqv']
  assert whole('1x8') == ['embed_tokens', 'lm_head', *heads]
  assert whole('4x2') == ['embed_tokens', 'lm_head']
  assert whole('8x1') == []


def test_no_part_has_heads_of_two_groups():
  """Six heads that share three keys: two parts would cut the second group."""
  config = dataclasses.replace(
    load.load_model('tiny').config, num_heads=6, num_kv_heads=3
  )
  q = 'layers/0/self_attn/q_proj/kernel'
  found = sharding.param_shardings(config, (q,), _mesh('4x2'))
  assert found[q].spec == P()


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
  load.load_model(str(tmp_path), mesh=_mesh('4x2'))
  leaves = trees.flatten(model.params).values()
  assert sum(seen) == sum(leaf.nbytes for leaf in leaves)
  assert max(seen) <= max(leaf.nbytes for leaf in leaves) // 2


def test_arrays_elsewhere_are_refused(model):
  other = jax.make_mesh((8,), ('fsdp',))
  spread = jax.device_put(
    np.zeros((8, 8)), jax.sharding.NamedSharding(other, P('fsdp'))
  )
  with pytest.raises(ValueError, match='sharding.shard'):
    sharding.mesh_of({'a': spread})
  assert sharding.mesh_of(model.params) is None


@pytest.mark.parametrize('shape', [(3, 2), (0, 8), (-2, -4)])
def test_a_mesh_of_other_devices_is_refused(shape):
  with pytest.raises(ValueError, match='8 devices. Take one of 8x1, 4x2, 2x4'):
    sharding.make_mesh(*shape)


def test_a_mesh_that_no_axes_of_a_torus_make_up(monkeypatch):
  def refuse(*args, **kwargs):
    raise NotImplementedError

  monkeypatch.setattr(jax, 'make_mesh', refuse)
  mesh = sharding.make_mesh(4, 2)
  assert dict(mesh.shape) == {'data': 4, 'model': 2}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert set(mesh.devices.flat) == set(jax.devices())


def test_mesh_from_text():
  assert sharding.parse_mesh('4x2') == (4, 2)
  for wrong in ('4', '4x', 'x2', '4,2', '4x2x1'):
    with pytest.raises(ValueError, match='DATAxMODEL'):
      sharding.parse_mesh(wrong)


def test_a_path_without_a_rule_is_refused(tiny):
  with pytest.raises(KeyError, match='layers/0/other'):
    sharding.param_shardings(tiny.config, ('layers/0/other',), _mesh('8x1'))


# What they answer


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


def test_logits(model, sharded, mesh):
  ids = np.random.default_rng(2).integers(0, 256, (8, 20))
  run = jax.jit(_logits, static_argnums=0)
  np.testing.assert_allclose(
    run(model.config, sharded, sharding.shard_rows(ids, mesh)),
    run(model.config, model.params, ids),
    atol=_TOLERANCE,
  )


def test_likelihoods(model, predictor, sharded):
  _check_likelihoods(model, predictor, predictor, sharded)


class _Noting(Activations):
  """Notes which texts were found."""

  found: list[bool] = []

  def get(self, key):
    kept = super().get(key)
    self.found.append(kept is not None)
    return kept


def test_likelihoods_from_kept_activations(model, predictor, on_both_axes):
  """Read from memory the second time."""
  activations = _Noting(1, 10**9)
  keeping = generation.LlamaPredictor(
    model.config, model.tokenizer, activations=activations
  )
  for is_again in (False, True):
    activations.found.clear()
    _check_likelihoods(model, predictor, keeping, on_both_axes)
    assert activations.found and all(activations.found) == is_again


def _check_likelihoods(model, predictor, asked, params):
  requests = _score_requests()
  expected = dict(predictor.score(ModelState(model.params), requests))
  found = dict(asked.score(ModelState(params), requests))
  assert found.keys() == expected.keys()
  for i, result in found.items():
    for a, b in zip(result.logprobs, expected[i].logprobs, strict=True):
      np.testing.assert_allclose(a, b, atol=_TOLERANCE)
    for a, b in zip(result.greedy, expected[i].greedy, strict=True):
      np.testing.assert_array_equal(a, b)


def test_what_stands_inside(model, predictor, on_both_axes):
  requests = [
    ScoreRequest(context=ids, continuations=((1,),)) for ids, _ in _texts()
  ]
  slots = [range(len(r.context)) for r in requests]
  tap = lambda params: dict(
    predictor.tap(ModelState(params), 'layers/1/mlp/key', requests, slots)
  )
  found, expected = tap(on_both_axes), tap(model.params)
  for i, content in expected.items():
    np.testing.assert_allclose(found[i], content, atol=_TOLERANCE)


def test_texts(model, predictor, sharded, mesh):
  """And an edited model's compile nothing."""
  requests = [
    GenerateRequest(prompt=ids, max_new_tokens=2 + 6 * (i % 3), shared=shared)
    for i, (ids, shared) in enumerate(_texts())
  ]
  _check_texts(model, predictor, predictor, sharded, requests)
  functions = predictor._functions(mesh)
  compiled = lambda: [
    getattr(functions, name)._cache_size()
    for name in ('prefix', 'prefill', 'insert', 'decode')
  ]
  before = compiled()
  change = edit_lib.LowRank(jnp.ones((64, 1)), jnp.ones((1, 64)))
  edited = edit_lib.apply_edit(
    sharded, {'layers/1/mlp/down_proj/kernel': change}
  )
  list(predictor.generate(ModelState(edited), requests))
  assert all(before) and compiled() == before


@pytest.mark.parametrize(
  'shape, max_batch, count', [('4x2', 1, 14), ('2x4', 12, 20)]
)
def test_rows_used_again_and_few_left(
  model, predictor, shape, max_batch, count
):
  """Four rows for fourteen prompts; or one long answer, for which there is no
  room at first, and which goes on in a smaller batch."""
  requests = [
    GenerateRequest(
      prompt=ids,
      max_new_tokens=70,
      decided=lambda text, i=i: i != 3 and len(text) > 2,
    )
    for i, (ids, _) in enumerate(_texts(count))
  ]
  names = []
  asked = generation.LlamaPredictor(
    model.config,
    model.tokenizer,
    max_batch=max_batch,
    on_trace=names.append,
  )
  params = sharding.shard(model.config, model.params, _mesh(shape))
  _check_texts(model, predictor, asked, params, requests)
  assert 'grow' in names and ('keep' in names) == (max_batch == 12)


def _check_texts(model, predictor, asked, params, requests):
  state = ModelState(model.params)
  expected = dict(predictor.generate(state, requests))
  found = dict(asked.generate(ModelState(params), requests))
  assert found.keys() == expected.keys()
  for i, result in expected.items():
    np.testing.assert_array_equal(found[i].tokens, result.tokens)
    assert found[i].stop_reason == result.stop_reason


# What passes between devices


def _functions(model, mesh):
  return Functions(
    Forward(model.config, None),
    mesh=mesh,
    activations=None,
    on_trace=lambda name: None,
  )


@pytest.mark.parametrize('shape', ['8x1', '4x2', '2x4'])
def test_no_row_waits_for_another_while_decoding(
  model, usual_compilation, shape
):
  """What passes between devices stays within the group that has a row."""
  mesh = _mesh(shape)
  functions = _functions(model, mesh)
  state = ModelState(sharding.shard(model.config, model.params, mesh))
  ids = np.ones((1, 32), np.int32)
  prefix = functions.prefix(state, ids, np.int32(30), slots=64)
  text = (
    functions.decode.lower(
      state,
      prefix,
      functions.empty_rows(8, 32, 16),
      np.int32(4),
      np.int32(0),
    )
    .compile()
    .as_text()
  )
  found = costs.costs(text, rounds=4).collectives
  kinds = {c.kind for c in found}
  if mesh.shape['model'] == 1:
    assert not kinds
  else:
    assert {'all-reduce'} <= kinds <= {'all-reduce', 'all-gather'}
  assert not any(estimate.crosses_data(mesh, c) for c in found)


def test_rows_stay_where_they_are(model, on_both_axes):
  """Each function of rows takes what another gave."""
  functions = _functions(model, _mesh('4x2'))
  state, eos = ModelState(on_both_axes), np.int32(0)
  rows = functions.empty_rows(8, 32, 16)
  lies = [leaf.sharding for leaf in jax.tree.leaves(rows)]
  assert len(set(lies)) == 2
  prompts = functions.prefill(
    state, None, np.ones((4, 32), np.int32), np.full(4, 20, np.int32), eos
  )
  places = np.array([0, 3, 5, 8], np.int32)
  rows = functions.insert(rows, prompts, places, np.full(4, 9, np.int32))
  for change in (
    lambda rows: functions.decode(state, None, rows, np.int32(4), eos),
    lambda rows: functions.grow(rows, new=64),
    lambda rows: functions.keep(rows, np.array([0, 3, 5, 0], np.int32)),
  ):
    assert [leaf.sharding for leaf in jax.tree.leaves(rows)] == lies
    rows = change(rows)
  assert [leaf.sharding for leaf in jax.tree.leaves(rows)] == lies
  assert rows.count.tolist()[:3] == [5, 5, 5]


def test_rows_are_dealt_where_the_mesh_divides_them():
  mesh = _mesh('4x2')
  dealt, whole = sharding.deal_rows([np.zeros((8, 3)), np.zeros(6)], mesh)
  assert dealt.sharding == sharding.row_sharding(mesh)
  assert whole.sharding == sharding.replicated(mesh)
