"""LLaMAs in GGUF files: shape, weights and tokenizer from one file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import tokenizers
from jax.sharding import Mesh
from tokenizers import decoders, pre_tokenizers, processors

from me_jax import files, sharding, trees
from me_jax.models import config as config_lib
from me_jax.models import shapes
from me_jax.models import tokenizer as tokenizer_lib
from me_jax.typing import Params

# What GGUF calls each tensor: our path, whether it is stored transposed.
_TOP_TENSORS = {
  'token_embd.weight': ('embed_tokens/embedding', False),
  'output_norm.weight': ('norm/scale', False),
  'output.weight': ('lm_head/kernel', True),
}
_LAYER_TENSORS = {
  'attn_norm.weight': ('input_layernorm/scale', False),
  'attn_q.weight': ('self_attn/q_proj/kernel', True),
  'attn_k.weight': ('self_attn/k_proj/kernel', True),
  'attn_v.weight': ('self_attn/v_proj/kernel', True),
  'attn_output.weight': ('self_attn/o_proj/kernel', True),
  'ffn_norm.weight': ('post_attention_layernorm/scale', False),
  'ffn_gate.weight': ('mlp/gate_proj/kernel', True),
  'ffn_up.weight': ('mlp/up_proj/kernel', True),
  'ffn_down.weight': ('mlp/down_proj/kernel', True),
}

# Keys under `llama.` that are read below, or that change no number.
_KNOWN_KEYS = frozenset(
  {
    'attention.head_count',
    'attention.head_count_kv',
    'attention.key_length',
    'attention.layer_norm_rms_epsilon',
    'attention.value_length',
    'block_count',
    'context_length',
    'embedding_length',
    'feed_forward_length',
    'rope.dimension_count',
    'rope.freq_base',
    'rope.scaling.type',
    'vocab_size',
  }
)


def read(
  path: files.PathLike, mesh: Mesh | None = None
) -> tuple[config_lib.ModelConfig, Params, tokenizer_lib.FastTokenizer]:
  """Shape, float32 parameters and tokenizer of a GGUF file.

  Quantised tensors are dequantised, and the rows of the query and key
  projections put back into the order of Hugging Face's `rotate_half`.

  Args:
    path: The file.
    mesh: Where the parameters are to lie; None for the default device.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged, or holds something not implemented here.
  """
  path, reader, metadata = _open(path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  config = _config(path, metadata, tensors)
  params = _params(path, config, tensors, mesh)
  return config, params, _tokenizer(path, metadata)


def read_tokenizer(path: files.PathLike) -> tokenizer_lib.FastTokenizer:
  """The tokenizer alone; no tensor is read. Raises as `read`."""
  path, _, metadata = _open(path)
  return _tokenizer(path, metadata)


def _open(
  path: files.PathLike,
) -> tuple[pathlib.Path, gguf.GGUFReader, dict[str, Any]]:
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'No GGUF file at {path}.')
  # The reader checks little itself: a file cut short shows up as an index,
  # shape or enumeration that does not fit.
  try:
    reader = gguf.GGUFReader(path)
    metadata = {k: field.contents() for k, field in reader.fields.items()}
  except (ValueError, IndexError, KeyError, TypeError, OverflowError) as e:
    raise ValueError(
      f'{path} ({path.stat().st_size} bytes) is not a complete GGUF file: {e}. '
      'It was probably cut short; delete it and fetch it again.'
    ) from e
  return path, reader, metadata


def _config(
  path: pathlib.Path,
  metadata: Mapping[str, Any],
  tensors: Mapping[str, gguf.ReaderTensor],
) -> config_lib.ModelConfig:
  architecture = metadata.get('general.architecture')
  if architecture != 'llama':
    raise ValueError(
      f'{path}: expected general.architecture llama, found {architecture!r}. '
      'Only the LLaMA family is implemented.'
    )
  values = {
    key.removeprefix('llama.'): value
    for key, value in metadata.items()
    if key.startswith('llama.')
  }

  def value(key: str, default: Any = None, kind: type = int) -> Any:
    found = values.get(key, default)
    if not isinstance(found, kind) or kind is not str and found <= 0:
      raise ValueError(
        f'{path}: expected one positive {kind.__name__} as llama.{key}, found '
        f'{found!r}. Values that differ between layers are not implemented.'
      )
    return found

  heads = value('attention.head_count')
  embed_dim = value('embedding_length')
  head_dim = value('attention.key_length', embed_dim // heads)
  refused = [
    f'llama.{key} = {found}'
    for key, found in values.items()
    if key not in _KNOWN_KEYS and found not in (0, False, None)
  ]
  if value('rope.scaling.type', 'none', str) != 'none':
    refused.append(f'llama.rope.scaling.type = {values["rope.scaling.type"]}')
  for key in ('rope.dimension_count', 'attention.value_length'):
    if value(key, head_dim) != head_dim:
      refused.append(f'llama.{key} = {values[key]} (head size {head_dim})')
  refused += [
    f'tensor {name}'
    for name in tensors
    if _path_of(name, value('block_count')) is None
  ]
  if refused:
    raise ValueError(
      f'{path} has what is not implemented: {", ".join(refused)}. Rope scaling '
      '(rope_freqs.weight too), biases, experts and sliding windows are not.'
    )
  if 'token_embd.weight' not in tensors:
    raise ValueError(f'{path}: the tensor token_embd.weight is missing.')
  return config_lib.ModelConfig(
    vocab_size=int(tensors['token_embd.weight'].shape[1]),
    embed_dim=embed_dim,
    mlp_dim=value('feed_forward_length'),
    num_layers=value('block_count'),
    num_heads=heads,
    num_kv_heads=value('attention.head_count_kv', heads),
    head_dim=head_dim,
    max_positions=value('context_length'),
    rope_theta=_decimal(value('rope.freq_base', 10_000.0, float)),
    norm_eps=_decimal(value('attention.layer_norm_rms_epsilon', kind=float)),
    tie_embeddings='output.weight' not in tensors,
  )


def _decimal(value: float) -> float:
  """1e-05 for the float32 nearest to it: the number that was meant."""
  return float(str(np.float32(value)))


def _path_of(name: str, num_layers: int) -> tuple[str, bool] | None:
  """Our path of a tensor and whether to transpose it; None if unknown."""
  if name in _TOP_TENSORS:
    return _TOP_TENSORS[name]
  match = re.fullmatch(r'blk\.(\d+)\.(.+)', name)
  if not match or int(match[1]) >= num_layers:
    return None
  if match[2] not in _LAYER_TENSORS:
    return None
  path, transpose = _LAYER_TENSORS[match[2]]
  return f'layers/{int(match[1])}/{path}', transpose


def _params(
  path: pathlib.Path,
  config: config_lib.ModelConfig,
  tensors: Mapping[str, gguf.ReaderTensor],
  mesh: Mesh | None,
) -> Params:
  expected = shapes.param_shapes(config)
  layout = sharding.Layout(config, tuple(expected), mesh)
  leaves = {}
  wrong = []
  for name, tensor in tensors.items():
    leaf_path, transpose = _path_of(name, config.num_layers)
    # GGUF gives the innermost dimension first.
    stored = tuple(int(n) for n in tensor.shape)
    shape = stored if transpose else stored[::-1]
    if shape != expected[leaf_path]:
      wrong.append(f'{name} {shape} is not {expected[leaf_path]}')
      leaves[leaf_path] = None
      continue
    array = _dequantize(path, tensor)
    if name.endswith('attn_q.weight'):
      array = _unpermute(array, config.num_heads)
    elif name.endswith('attn_k.weight'):
      array = _unpermute(array, config.num_kv_heads)
    array = array.T if transpose else array
    array = np.ascontiguousarray(array)
    leaves[leaf_path] = layout(leaf_path, array.shape, array.__getitem__)
  missing = sorted(set(expected) - set(leaves))
  if wrong or missing:
    raise ValueError(
      f'{path}: tensors do not fit the metadata. Wrong shape: '
      f'{", ".join(wrong) or "none"}. Missing: {", ".join(missing) or "none"}.'
    )
  return trees.unflatten(leaves)


def _dequantize(path: pathlib.Path, tensor: gguf.ReaderTensor) -> np.ndarray:
  """float32 [out, in]."""
  try:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as e:
    raise ValueError(
      f'{path}: {tensor.name} is stored as {tensor.tensor_type.name}, which '
      'the gguf package cannot dequantise. Take a file of another type, such '
      'as F16 or Q8_0.'
    ) from e
  return np.asarray(array, np.float32)


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows [..., i, half] of each head back in the order [..., half, i].

  The inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
  """
  rows, columns = weight.shape
  by_pair = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
  return by_pair.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(
  path: pathlib.Path, metadata: Mapping[str, Any]
) -> tokenizer_lib.FastTokenizer:
  def value(key: str, default: Any = None) -> Any:
    return metadata.get(f'tokenizer.ggml.{key}', default)

  model, pre = value('model'), value('pre')
  if model != 'gpt2' or pre not in _PRE_TOKENIZERS:
    raise ValueError(
      f'{path}: the tokenizer is of model {model!r} with pre-tokenizer '
      f"{pre!r}. Read from GGUF are: model 'gpt2' (byte-level BPE) with "
      f'pre-tokenizer {" or ".join(map(repr, _PRE_TOKENIZERS))}. Load the '
      "model's Hugging Face directory instead."
    )
  tokens, merges = value('tokens'), value('merges')
  if not isinstance(tokens, list) or not isinstance(merges, list):
    raise ValueError(f'{path}: the metadata lack a vocabulary or merges.')
  vocab = {token: i for i, token in enumerate(tokens)}
  if len(vocab) != len(tokens):
    raise ValueError(
      f'{path}: {len(tokens) - len(vocab)} tokens occur twice. The file is '
      'damaged; fetch it again.'
    )
  pairs = [tuple(pair.split(' ', 1)) for pair in merges]
  try:
    backend = tokenizers.Tokenizer(
      tokenizers.models.BPE(vocab=vocab, merges=pairs)
    )
  # The Rust library raises bare Exception for merges out of the vocabulary.
  except Exception as e:
    raise ValueError(
      f'{path}: vocabulary and merges do not go together: {e}. The file is '
      'damaged; fetch it again.'
    ) from e
  backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  backend.decoder = decoders.ByteLevel()
  kinds = value('token_type', [gguf.TokenType.NORMAL] * len(tokens))
  if len(kinds) != len(tokens):
    raise ValueError(
      f'{path}: {len(kinds)} token types for {len(tokens)} tokens. The file is '
      'damaged; fetch it again.'
    )
  for token, kind in zip(tokens, kinds, strict=True):
    if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
      special = kind == gguf.TokenType.CONTROL
      backend.add_tokens(
        [tokenizers.AddedToken(token, special=special, normalized=False)]
      )
  ids = {
    'bos_token': value('bos_token_id'),
    'eos_token': value('eos_token_id'),
    'unk_token': value('unknown_token_id'),
    'pad_token': value('padding_token_id'),
  }
  ids = {role: i for role, i in ids.items() if i is not None}
  beyond = {role: i for role, i in ids.items() if i not in range(len(tokens))}
  if beyond:
    raise ValueError(
      f'{path}: {beyond} are not among {len(tokens)} tokens. The file is '
      'damaged; fetch it again.'
    )
  roles = {role: tokens[i] for role, i in ids.items()}
  before = ['bos_token'] if value('add_bos_token', False) else []
  after = ['eos_token'] if value('add_eos_token', False) else []
  if not set(before + after) <= set(roles):
    raise ValueError(
      f'{path}: {before + after} are to be added, but the metadata give no id.'
    )
  before = [roles[role] for role in before]
  after = [roles[role] for role in after]
  if before or after:
    backend.post_processor = processors.TemplateProcessing(
      single=[*before, '$A', *after],
      special_tokens=[(token, vocab[token]) for token in before + after],
    )
  return tokenizer_lib.FastTokenizer(
    backend, roles, metadata.get('tokenizer.chat_template')
  )


def _gpt2_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), _gpt2_pre_tokenizer()]
  )


_PRE_TOKENIZERS = {
  'gpt-2': _gpt2_pre_tokenizer,
  'smollm': _smollm_pre_tokenizer,
}
