"""A stock transformers model with the weights of one of ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers


def build_model(
  config: Any, leaves: Mapping[str, np.ndarray]
) -> transformers.LlamaForCausalLM:
  """A frozen float32 model.

  Args:
    config: Has the attributes of `me_jax.models.config.ModelConfig`.
    leaves: Parameters by path, kernels [in, out].

  Raises:
    RuntimeError: A parameter is missing, unexpected or of the wrong shape.
  """
  hf_config = transformers.LlamaConfig(
    vocab_size=config.vocab_size,
    hidden_size=config.embed_dim,
    intermediate_size=config.mlp_dim,
    num_hidden_layers=config.num_layers,
    num_attention_heads=config.num_heads,
    num_key_value_heads=config.num_kv_heads,
    head_dim=config.head_dim,
    max_position_embeddings=config.max_positions,
    rms_norm_eps=config.norm_eps,
    rope_parameters={'rope_type': 'default', 'rope_theta': config.rope_theta},
    tie_word_embeddings=config.tie_embeddings,
    use_cache=False,
  )
  model = transformers.LlamaForCausalLM(hf_config).eval()
  state = {}
  for path, leaf in leaves.items():
    module, _, kind = path.rpartition('/')
    prefix = '' if module == 'lm_head' else 'model.'
    array = leaf.T if kind == 'kernel' else leaf
    name = f'{prefix}{module.replace("/", ".")}.weight'
    state[name] = torch.from_numpy(np.array(array, np.float32, order='C'))
  if config.tie_embeddings:
    state['lm_head.weight'] = state['model.embed_tokens.weight']
  model.load_state_dict(state)
  return model.requires_grad_(False)
