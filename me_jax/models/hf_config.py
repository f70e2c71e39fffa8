"""What Hugging Face's `config.json` says about a LLaMA, and back."""

from collections.abc import Mapping
from typing import Any

from me_jax.models import config as config_lib
from me_jax.models import tokenizer as tokenizer_lib

# Keys of config.json that say what is computed; any other value is refused.
# A missing key has the first value.
_FIXED = {
  'hidden_act': ('silu',),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'pretraining_tp': (1, None),
  'partial_rotary_factor': (1.0, None),
  'rope_interleaved': (False, None),
  'sliding_window': (None,),
  'quantization_config': (None,),
  'per_layer_config': (None,),
  'is_encoder_decoder': (False, None),
  'architectures': (['LlamaForCausalLM'], ['LLaMAForCausalLM'], None),
}
_READ = frozenset(
  {
    'head_dim',
    'hidden_size',
    'intermediate_size',
    'max_position_embeddings',
    'model_type',
    'num_attention_heads',
    'num_hidden_layers',
    'num_key_value_heads',
    'rms_norm_eps',
    'rope_parameters',
    'rope_scaling',
    'rope_theta',
    'tie_word_embeddings',
    'vocab_size',
  }
)
# Names, storage, training, sampling and output format.
_HARMLESS = frozenset(
  {
    '_attn_implementation_autoset',
    '_name_or_path',
    'attention_dropout',
    'bos_token_id',
    'chunk_size_feed_forward',
    'do_sample',
    'dtype',
    'eos_token_id',
    'id2label',
    'initializer_range',
    'is_llama_config',
    'label2id',
    'max_length',
    'max_sequence_length',
    'output_attentions',
    'output_hidden_states',
    'pad_token_id',
    'problem_type',
    'return_dict',
    'temperature',
    'top_p',
    'torch_dtype',
    'transformers.js_config',
    'transformers_version',
    'unk_token_id',
    'use_cache',
  }
)
_REQUIRED = (
  'hidden_size',
  'intermediate_size',
  'num_attention_heads',
  'num_hidden_layers',
  'vocab_size',
)


def config_from_hf(hf_config: Mapping[str, Any]) -> config_lib.ModelConfig:
  """The shape that a `config.json` describes.

  Raises:
    ValueError: It describes another computation than the one implemented;
      names every such attribute, and those that are unknown.
  """
  refused = []
  if hf_config.get('model_type') != 'llama':
    refused.append(f'model_type = {hf_config.get("model_type")!r}')
  for key, accepted in _FIXED.items():
    value = hf_config.get(key, accepted[0])
    if value not in accepted:
      refused.append(f'{key} = {value!r}')
  known = _READ | _HARMLESS | set(_FIXED)
  refused += [f'{k} = {hf_config[k]!r}' for k in sorted(set(hf_config) - known)]
  rope_theta, wrong_rope = _rope_theta(hf_config)
  refused += wrong_rope
  if refused:
    raise ValueError(
      'config.json asks for what is not implemented, or not known: '
      f'{", ".join(refused)}. Only plain LLaMA (RMSNorm, SiLU, unscaled rope, '
      'no biases) can be loaded.'
    )
  missing = [key for key in _REQUIRED if hf_config.get(key) is None]
  if missing:
    raise ValueError(f'config.json lacks {", ".join(missing)}.')
  # A null means the default too. The defaults are those of LlamaConfig.
  given = {k: v for k, v in hf_config.items() if v is not None}
  heads = given['num_attention_heads']
  return config_lib.ModelConfig(
    vocab_size=given['vocab_size'],
    embed_dim=given['hidden_size'],
    mlp_dim=given['intermediate_size'],
    num_layers=given['num_hidden_layers'],
    num_heads=heads,
    num_kv_heads=given.get('num_key_value_heads', heads),
    head_dim=given.get('head_dim', given['hidden_size'] // heads),
    max_positions=given.get('max_position_embeddings', 2048),
    rope_theta=rope_theta,
    norm_eps=float(given.get('rms_norm_eps', 1e-6)),
    tie_embeddings=given.get('tie_word_embeddings', False),
  )


def _rope_theta(hf_config: Mapping[str, Any]) -> tuple[float, list[str]]:
  """The base of the rotary embedding, and what is refused about it.

  It stands at the top level, or since transformers 5 in `rope_parameters`.
  """
  refused = []
  found = set()
  if hf_config.get('rope_theta') is not None:
    found.add(float(hf_config['rope_theta']))
  for key in ('rope_parameters', 'rope_scaling'):
    rope = dict(hf_config.get(key) or {})
    if rope.get('rope_theta') is not None:
      found.add(float(rope['rope_theta']))
    plain = (
      rope.pop('rope_type', 'default') == 'default'
      and rope.pop('type', 'default') == 'default'
      and rope.pop('partial_rotary_factor', 1.0) in (1.0, None)
      and set(rope) <= {'rope_theta'}
    )
    if not plain:
      refused.append(f'{key} = {hf_config[key]!r}')
  if len(found) > 1:
    refused.append(f'two values of rope_theta, {sorted(found)}')
  return found.pop() if found else 10_000.0, refused


def config_to_hf(
  config: config_lib.ModelConfig, tokenizer: tokenizer_lib.FastTokenizer
) -> dict[str, Any]:
  """The `config.json` of a float32 model, for transformers 4 and 5."""
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_positions,
    'rms_norm_eps': config.norm_eps,
    'rope_theta': config.rope_theta,
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': config.rope_theta,
    },
    'tie_word_embeddings': config.tie_embeddings,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'dtype': 'float32',
    **token_ids(tokenizer),
  }


def token_ids(tokenizer: tokenizer_lib.FastTokenizer) -> dict[str, int | None]:
  """Ids of the tokens with a role, null where there is none."""
  ids = {}
  for role in ('bos_token', 'eos_token', 'pad_token'):
    token = tokenizer.roles.get(role)
    ids[f'{role}_id'] = token and tokenizer.backend.token_to_id(token)
  return ids
