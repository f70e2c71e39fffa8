import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from me_jax import trees
from me_jax.models import config as config_lib
from me_jax.models import convert, hub, language_model, load
from me_jax.models import tokenizer as tokenizer_lib

CONFIG = config_lib.ModelConfig(
  vocab_size=257,
  embed_dim=16,
  mlp_dim=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_positions=64,
  rope_theta=20_000.0,
  norm_eps=1e-5,
)


def make_model(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  return load.language_model(
    config,
    load.init_params(config),
    tokenizer_lib.byte_tokenizer(),
    name='small',
  )


def rewrite(path, change):
  """Applies `change` to the tensors of a safetensors file."""
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def assert_same_weights(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert set(found) == set(expected)
  for path in expected:
    assert found[path].dtype == np.float32
    np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('max_shard_bytes', [5_000_000_000, 6_000])
def test_round_trip_is_exact(tmp_path, tied, max_shard_bytes):
  model = make_model(tie_embeddings=tied)
  convert.write_hf(tmp_path, model, max_shard_bytes=max_shard_bytes)
  config, params, tokenizer = convert.read_hf(tmp_path)
  assert config == model.config
  assert_same_weights(params, model.params)
  assert language_model.fingerprint(config, params) == model.fingerprint
  assert tokenizer.fingerprint == model.tokenizer.fingerprint
  shards = sorted(tmp_path.glob('model-*.safetensors'))
  if max_shard_bytes > 6_000:
    assert (tmp_path / 'model.safetensors').is_file() and not shards
  else:
    assert len(shards) > 3
    index = json.loads((tmp_path / convert._INDEX).read_text())
    names = set(index['weight_map'].values())
    assert names == {shard.name for shard in shards}
    total = sum(leaf.nbytes for leaf in trees.flatten(model.params).values())
    assert index['metadata']['total_size'] == total


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16])
def test_half_precision_files_become_float32(tmp_path, dtype):
  model = make_model()
  convert.write_hf(tmp_path, model)

  def halve(tensors):
    for name in tensors:
      tensors[name] = tensors[name].astype(dtype)

  rewrite(tmp_path / 'model.safetensors', halve)
  params = convert.read_params(tmp_path, model.config)
  expected = {
    path: leaf.astype(dtype).astype(np.float32)
    for path, leaf in trees.flatten(model.params).items()
  }
  assert_same_weights(params, trees.unflatten(expected))


NORM = 'model.layers.1.input_layernorm.weight'
UP = 'model.layers.0.mlp.up_proj.weight'


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda t: t.pop(NORM), f'{NORM} is missing'),
    (
      lambda t: t.update({'model.x.bias': np.ones(3, np.float32)}),
      'model.x.bias is not part',
    ),
    (
      lambda t: t.update({UP: t[UP].T.copy()}),
      rf'{UP} has shape \(16, 24\), not \(24, 16\)',
    ),
    (
      lambda t: t.update({UP: t[UP].astype(np.int8)}),
      f'{UP} is stored as I8',
    ),
  ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
  model = make_model()
  convert.write_hf(tmp_path, model)
  rewrite(tmp_path / 'model.safetensors', change)
  with pytest.raises(ValueError, match=words):
    convert.read_params(tmp_path, model.config)


def test_tensors_of_old_versions(tmp_path):
  model = make_model(tie_embeddings=True)
  convert.write_hf(tmp_path, model)
  name = 'model.embed_tokens.weight'
  inverse = 'model.layers.0.self_attn.rotary_emb.inv_freq'

  def add(tensors):
    tensors[inverse] = np.ones(4, np.float32)
    tensors['lm_head.weight'] = tensors[name].copy()

  rewrite(tmp_path / 'model.safetensors', add)
  assert_same_weights(convert.read_params(tmp_path, model.config), model.params)

  def untie(tensors):
    tensors['lm_head.weight'][0, 0] += 1

  rewrite(tmp_path / 'model.safetensors', untie)
  with pytest.raises(ValueError, match='lm_head.weight differs'):
    convert.read_params(tmp_path, model.config)

  def cut(tensors):
    tensors['lm_head.weight'] = tensors['lm_head.weight'][1:].copy()

  rewrite(tmp_path / 'model.safetensors', cut)
  with pytest.raises(
    ValueError, match="lm_head.weight has shape .*embedding's"
  ):
    convert.read_params(tmp_path, model.config)


@pytest.mark.parametrize('keep', [0, 5, 100, 0.5, 0.99])
@pytest.mark.parametrize('sharded', [False, True])
def test_truncated_weights_say_what_to_do(tmp_path, keep, sharded):
  model = make_model()
  size = 6_000 if sharded else 5_000_000_000
  convert.write_hf(tmp_path, model, max_shard_bytes=size)
  file = sorted(tmp_path.glob('*.safetensors'))[-1]
  content = file.read_bytes()
  end = int(keep * len(content)) if isinstance(keep, float) else keep
  file.write_bytes(content[:end])
  with pytest.raises(ValueError, match=f'{file.name} .*fetch it again'):
    convert.read_params(tmp_path, model.config)


def test_missing_files_are_named(tmp_path):
  model = make_model()
  convert.write_hf(tmp_path, model, max_shard_bytes=6_000)
  shard = sorted(tmp_path.glob('model-*.safetensors'))[1]
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=shard.name):
    convert.read_params(tmp_path, model.config)
  (tmp_path / convert._INDEX).write_text('{"weight_map": {"a"')
  with pytest.raises(ValueError, match='not JSON.*Fetch it again'):
    convert.read_params(tmp_path, model.config)
  with pytest.raises(FileNotFoundError, match='config.json is missing'):
    convert.read_hf(tmp_path / 'nowhere')


def test_pickles_are_refused(tmp_path):
  (tmp_path / 'pytorch_model-00001-of-00001.bin').write_bytes(b'\x80\x04')
  with pytest.raises(ValueError, match='pickles.*save_pretrained'):
    convert.read_params(tmp_path, CONFIG)


def test_two_models_are_not_mixed_in_one_directory(tmp_path):
  model = make_model()
  convert.write_hf(tmp_path / 'a', model)
  before = (tmp_path / 'a' / 'model.safetensors').stat().st_mtime_ns
  with pytest.raises(FileExistsError, match='not an empty directory'):
    convert.write_hf(tmp_path / 'a', model)
  assert (tmp_path / 'a' / 'model.safetensors').stat().st_mtime_ns == before


def test_hub_failure_names_the_id_and_the_way_out(monkeypatch):
  import huggingface_hub

  asked = {}

  def fail(repo_id, **kwargs):
    asked.update(kwargs, repo_id=repo_id)
    raise OSError('no network\nmore')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(
    FileNotFoundError,
    match=r"'org/model'.*\(no network\).*--config.model.path",
  ):
    hub.snapshot('org/model')
  assert asked['repo_id'] == 'org/model'
  assert not any('bin' in p or '.py' in p for p in asked['allow_patterns'])


@pytest.fixture
def torch_model(tmp_path):
  """A random LLaMA of transformers, and the directory that it was saved in."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=257,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_parameters={'rope_type': 'default', 'rope_theta': 20_000.0},
  )
  model = transformers.LlamaForCausalLM(config)
  tokenizer_lib.byte_tokenizer().save(tmp_path / 'theirs')
  return model, tmp_path / 'theirs'


@pytest.mark.parametrize('shard', ['5GB', '6KB'])
def test_what_transformers_saves_loads_with_equal_weights(torch_model, shard):
  theirs, directory = torch_model
  theirs.save_pretrained(directory, max_shard_size=shard)
  assert (directory / convert._INDEX).is_file() == (shard == '6KB')
  config, params, _ = convert.read_hf(directory)
  assert config == CONFIG
  state = theirs.state_dict()
  found = trees.flatten(params)
  assert {convert.hf_name(path) for path in found} == set(state)
  for path, leaf in found.items():
    expected = state[convert.hf_name(path)].numpy()
    expected = expected.T if path.endswith('kernel') else expected
    np.testing.assert_array_equal(leaf, expected, err_msg=path)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('max_shard_bytes', [5_000_000_000, 6_000])
def test_what_we_write_loads_in_transformers(tmp_path, tied, max_shard_bytes):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = make_model(tie_embeddings=tied)
  convert.write_hf(tmp_path, model, max_shard_bytes=max_shard_bytes)
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
    str(tmp_path), output_loading_info=True
  )
  assert not report['missing_keys'] and not report['unexpected_keys']
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  if tied:
    np.testing.assert_array_equal(
      state.pop('lm_head.weight'), state['model.embed_tokens.weight']
    )
  leaves = trees.flatten(model.params)
  assert {convert.hf_name(path) for path in leaves} == set(state)
  for path, leaf in leaves.items():
    found = state[convert.hf_name(path)]
    found = found.T if path.endswith('kernel') else found
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, leaf, err_msg=path)
  assert theirs.config.rope_parameters['rope_theta'] == 20_000.0
  assert theirs.config.head_dim == 8
  assert theirs.generation_config.eos_token_id == 256
