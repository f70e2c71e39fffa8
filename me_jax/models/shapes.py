"""The parameter tree of a LLaMA: path and shape of every leaf."""

from me_jax.models import config as config_lib
from me_jax.typing import ParamPath


def param_shapes(
  config: config_lib.ModelConfig,
) -> dict[ParamPath, tuple[int, ...]]:
  """Shape of each parameter by path; kernels are [in, out]."""
  d, f = config.embed_dim, config.mlp_dim
  query_dim = config.num_heads * config.head_dim
  key_dim = config.num_kv_heads * config.head_dim
  layer = {
    'input_layernorm/scale': (d,),
    'self_attn/q_proj/kernel': (d, query_dim),
    'self_attn/k_proj/kernel': (d, key_dim),
    'self_attn/v_proj/kernel': (d, key_dim),
    'self_attn/o_proj/kernel': (query_dim, d),
    'post_attention_layernorm/scale': (d,),
    'mlp/gate_proj/kernel': (d, f),
    'mlp/up_proj/kernel': (d, f),
    'mlp/down_proj/kernel': (f, d),
  }
  shapes: dict[ParamPath, tuple[int, ...]] = {
    'embed_tokens/embedding': (config.vocab_size, d),
    'norm/scale': (d,),
  }
  if not config.tie_embeddings:
    shapes['lm_head/kernel'] = (d, config.vocab_size)
  for i in range(config.num_layers):
    for name, shape in layer.items():
      shapes[f'layers/{i}/{name}'] = shape
  return shapes
