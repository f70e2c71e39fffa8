import pytest

from me_jax.models import config as config_lib
from me_jax.models import hf_config
from me_jax.models import tokenizer as tokenizer_lib

# config.json of a LLaMA-2 as published, and what transformers 5 writes.
LLAMA2 = {
  '_name_or_path': 'x',
  'architectures': ['LlamaForCausalLM'],
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 11008,
  'max_position_embeddings': 4096,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 32,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': None,
  'tie_word_embeddings': False,
  'torch_dtype': 'float16',
  'transformers_version': '4.31.0.dev0',
  'use_cache': True,
  'vocab_size': 32000,
}
ROPE5 = {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}}


def test_published_llama2_config_is_the_preset():
  config = hf_config.config_from_hf(LLAMA2)
  assert config == config_lib.PRESETS['llama2_7b'].config


@pytest.mark.parametrize(
  'changes, theta',
  [
    ({}, 10_000.0),
    ({'rope_theta': 5e5}, 5e5),
    (ROPE5, 5e5),
    ({'rope_theta': 5e5, **ROPE5}, 5e5),
    ({'rope_scaling': {'type': 'default'}}, 10_000.0),
  ],
)
def test_rope_theta_in_either_place(changes, theta):
  assert hf_config.config_from_hf({**LLAMA2, **changes}).rope_theta == theta


def test_null_and_missing_keys_mean_the_default():
  config = hf_config.config_from_hf(
    {**LLAMA2, 'num_key_value_heads': None, 'head_dim': None}
  )
  assert (config.num_kv_heads, config.head_dim) == (32, 128)
  with pytest.raises(ValueError, match='lacks hidden_size'):
    hf_config.config_from_hf({**LLAMA2, 'hidden_size': None})


@pytest.mark.parametrize(
  'changes',
  [
    {'model_type': 'mistral'},
    {'architectures': ['LlamaForSequenceClassification']},
    {'hidden_act': 'gelu'},
    {'attention_bias': True},
    {'mlp_bias': True},
    {'pretraining_tp': 2},
    {'sliding_window': 4096},
    {'partial_rotary_factor': 0.5},
    {'rope_interleaved': True},
    {'quantization_config': {'bits': 4}},
    {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
    {'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}},
    {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4}},
    {'rope_parameters': {'partial_rotary_factor': 0.25}},
    {'rope_parameters': {'full_attention': {'rope_theta': 1e4}}},
    {'auto_map': {'AutoModel': 'x.Y'}},
    {'logit_scale': 0.5},
  ],
)
def test_what_is_not_implemented_is_refused_by_name(changes):
  (key,) = changes
  with pytest.raises(ValueError, match=f'{key} = '):
    hf_config.config_from_hf({**LLAMA2, **changes})


def test_all_refused_attributes_are_named_at_once():
  changes = {'mlp_bias': True, 'hidden_act': 'relu', 'brand_new': 1}
  with pytest.raises(ValueError) as e:
    hf_config.config_from_hf({**LLAMA2, **changes})
  assert all(f'{key} = ' in str(e.value) for key in changes)
  two = {'rope_theta': 1e4, **ROPE5}
  with pytest.raises(ValueError, match='two values of rope_theta'):
    hf_config.config_from_hf({**LLAMA2, **two})


@pytest.mark.parametrize('name', sorted(config_lib.PRESETS))
def test_what_is_written_is_read_back(name):
  config = config_lib.PRESETS[name].config
  written = hf_config.config_to_hf(config, tokenizer_lib.byte_tokenizer())
  assert hf_config.config_from_hf(written) == config
