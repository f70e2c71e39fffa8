"""LLaMAs in Hugging Face's files: `config.json`, safetensors, tokenizer."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from me_jax import files, sharding, trees
from me_jax.models import config as config_lib
from me_jax.models import hf_config, language_model, shapes
from me_jax.models import tokenizer as tokenizer_lib
from me_jax.typing import ParamPath, Params

_INDEX = 'model.safetensors.index.json'
_WHOLE = 'model.safetensors'
_EMBEDDING = 'embed_tokens/embedding'


def read_hf(
  directory: files.PathLike, mesh: Mesh | None = None
) -> tuple[config_lib.ModelConfig, Params, tokenizer_lib.FastTokenizer]:
  """Shape, float32 parameters and tokenizer of a Hugging Face directory.

  Args:
    directory: Where the files are.
    mesh: Where the parameters are to lie; None for the default device.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file is damaged, or asks for what is not implemented.
  """
  directory = pathlib.Path(directory)
  config = hf_config.config_from_hf(_read_json(directory / 'config.json'))
  params = read_params(directory, config, mesh)
  return config, params, tokenizer_lib.from_directory(directory)


def hf_name(path: ParamPath) -> str:
  """What Hugging Face calls the parameter at `path`.

  Kernels, [in, out] here, are stored as [out, in] there.
  """
  module = path.rpartition('/')[0].replace('/', '.')
  prefix = '' if module == 'lm_head' else 'model.'
  return f'{prefix}{module}.weight'


def read_params(
  directory: files.PathLike,
  config: config_lib.ModelConfig,
  mesh: Mesh | None = None,
) -> Params:
  """float32 parameters from `model.safetensors` or its shards.

  Tensors are read one at a time, so that the stored and the float32 copy of
  only one are held together; on a mesh of each only the parts that devices of
  this process hold.

  Args:
    directory: Where the files are.
    config: The model's shape.
    mesh: Where the parameters are to lie; None for the default device.

  Raises:
    FileNotFoundError: There are no safetensors, or a shard is missing.
    ValueError: A file is damaged, or tensors are missing, unexpected, of the
      wrong shape or of a type that is no plain float; names them.
  """
  directory = pathlib.Path(directory)
  by_path = shapes.param_shapes(config)
  expected = {hf_name(path): (path, s) for path, s in by_path.items()}
  layout = sharding.Layout(config, tuple(by_path), mesh)
  leaves: dict[ParamPath, jax.Array] = {}
  problems = []
  tied_head = None
  for name, tensor in _tensors(_weight_files(directory)):
    if name.endswith('.rotary_emb.inv_freq'):
      continue  # Written by old versions; follows from rope_theta.
    if name == 'lm_head.weight' and config.tie_embeddings:
      if tensor.shape == by_path[_EMBEDDING]:
        tied_head = layout(_EMBEDDING, tensor.shape, tensor.read)
      else:
        problems.append(f"{name} has shape {tensor.shape}, not the embedding's")
      continue
    if name not in expected:
      problems.append(f'{name} is not part of this model')
      continue
    path, shape = expected[name]
    is_kernel = path.endswith('/kernel')
    stored = shape[::-1] if is_kernel else shape
    if tensor.shape != stored:
      problems.append(f'{name} has shape {tensor.shape}, not {stored}')
      leaves[path] = None
      continue
    leaves[path] = layout(
      path, shape, tensor.read_transposed if is_kernel else tensor.read
    )
  problems += [
    f'{name} is missing'
    for name, (path, _) in expected.items()
    if path not in leaves
  ]
  embedding = leaves.get(_EMBEDDING)
  if tied_head is not None and embedding is not None:
    # Each process has a part: only compiled code can compare the whole.
    if not jnp.array_equal(tied_head, embedding):
      problems.append(
        'lm_head.weight differs from model.embed_tokens.weight although '
        'tie_word_embeddings is true'
      )
  if problems:
    shown = '; '.join(problems[:8])
    more = f'; and {len(problems) - 8} more' if len(problems) > 8 else ''
    raise ValueError(
      f'The tensors in {directory} do not fit its config.json: {shown}{more}.'
    )
  return trees.unflatten(leaves)


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
  if (directory / _INDEX).is_file():
    weight_map = _read_json(directory / _INDEX).get('weight_map')
    if not isinstance(weight_map, dict):
      raise ValueError(
        f'{directory / _INDEX} has no "weight_map". Fetch it again.'
      )
    shards = [directory / name for name in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
      raise FileNotFoundError(
        f'{directory} lacks {", ".join(missing)}, which {_INDEX} names. Fetch '
        'them again.'
      )
    return shards
  if (directory / _WHOLE).is_file():
    return [directory / _WHOLE]
  pickled = sorted(f.name for f in directory.glob('pytorch_model*.bin'))
  if pickled:
    raise ValueError(
      f'{directory} holds its weights only as {", ".join(pickled)}. Such files '
      'are pickles, which can run any code when they are read, and are '
      'refused. Convert them where PyTorch is installed: '
      'transformers.AutoModelForCausalLM.from_pretrained(IN)'
      '.save_pretrained(OUT) writes safetensors, and '
      'transformers.AutoTokenizer.from_pretrained(IN).save_pretrained(OUT) the '
      'tokenizer.'
    )
  raise FileNotFoundError(
    f'{directory} holds neither {_WHOLE} nor {_INDEX}. If the model is '
    'published only as pytorch_model*.bin (pickles, never read here), convert '
    'it first: transformers.AutoModelForCausalLM.from_pretrained(IN)'
    '.save_pretrained(OUT), the same with AutoTokenizer, and give OUT.'
  )


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """One in an open file."""

  stored: Any
  shape: tuple[int, ...]

  def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
    """float32, of a part or, by default, all."""
    part = self.stored[index or (slice(None),) * len(self.shape)]
    return np.ascontiguousarray(part, np.float32)

  def read_transposed(self, index: tuple[slice, ...]) -> np.ndarray:
    """float32, the part of the transposed matrix."""
    return np.ascontiguousarray(self.read(index[::-1]).T)


def _tensors(paths: list[pathlib.Path]) -> Iterator[tuple[str, _Tensor]]:
  """Each tensor by name, to be read before the next is asked for."""
  for path in paths:
    try:
      with safetensors.safe_open(path, framework='np') as f:
        for name in f.keys():
          stored = f.get_slice(name)
          dtype = stored.get_dtype()
          if dtype not in ('F32', 'F16', 'BF16'):
            raise ValueError(
              f'{path}: {name} is stored as {dtype}. Only F32, F16 and BF16 '
              'can be loaded; quantised weights cannot.'
            )
          yield name, _Tensor(stored, tuple(stored.get_shape()))
    except safetensors.SafetensorError as e:
      raise ValueError(
        f'{path} ({path.stat().st_size} bytes) is not a complete safetensors '
        f'file: {e}. It was probably cut short; delete it and fetch it again.'
      ) from e


def write_hf(
  directory: files.PathLike,
  model: language_model.LanguageModel,
  *,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes what `transformers.AutoModelForCausalLM` and `read_hf` load.

  The weights are stored as they are, bit for bit. `config.json` comes last: a
  directory without it is one that was not finished.

  Raises:
    FileExistsError: The directory is not empty.
    ValueError: The model is not float32.
  """
  language_model.require_float32(model)
  directory = language_model.require_empty(directory)
  leaves = trees.flatten(model.params)
  shards = _shards(leaves, max_shard_bytes)
  weight_map = {}
  for i, paths in enumerate(shards, start=1):
    name = f'model-{i:05}-of-{len(shards):05}.safetensors'
    name = name if len(shards) > 1 else _WHOLE
    tensors = {}
    for path in paths:
      array = np.asarray(jax.device_get(leaves[path]))
      array = array.T if path.endswith('/kernel') else array
      tensors[hf_name(path)] = np.ascontiguousarray(array)
    weight_map |= dict.fromkeys(tensors, name)
    # The mark of tensors in PyTorch's layout, which transformers asks for.
    content = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
    files.write_atomic(directory / name, content)
  if len(shards) > 1:
    total = sum(leaf.nbytes for leaf in leaves.values())
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    _write_json(directory / _INDEX, index)
  model.tokenizer.save(directory)
  _write_json(
    directory / 'generation_config.json', hf_config.token_ids(model.tokenizer)
  )
  _write_json(
    directory / 'config.json',
    hf_config.config_to_hf(model.config, model.tokenizer),
  )


def _shards(
  leaves: Mapping[ParamPath, Any], max_bytes: int
) -> list[list[ParamPath]]:
  """Paths by file; no file is larger unless a single leaf is."""
  shards: list[list[ParamPath]] = [[]]
  size = 0
  for path, leaf in leaves.items():
    if shards[-1] and size + leaf.nbytes > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(path)
    size += leaf.nbytes
  return shards


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise FileNotFoundError(f'{path} is missing.')
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}). Fetch it again.') from e
  if not isinstance(content, dict):
    raise ValueError(f'{path} holds no JSON object. Fetch it again.')
  return content


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  files.write_atomic(path, json.dumps(content, indent=2) + '\n')
