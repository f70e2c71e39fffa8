import dataclasses
import json

import gguf as gguf_format
import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers, trainers

from me_jax import trees
from me_jax.models import config as config_lib
from me_jax.models import gguf, shapes

CONFIG = config_lib.ModelConfig(
  vocab_size=280,
  embed_dim=64,
  mlp_dim=96,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  max_positions=128,
  rope_theta=50_000.0,
  norm_eps=1e-5,
)
TEXT = ['In 1987 the tower was 324 metres high', "it's the tower's 2nd lift"]
# Names as llama.cpp's converter writes them, spelled out on their own here.
NAMES = {
  'embed_tokens/embedding': 'token_embd.weight',
  'norm/scale': 'output_norm.weight',
  'lm_head/kernel': 'output.weight',
  'input_layernorm/scale': 'attn_norm.weight',
  'self_attn/q_proj/kernel': 'attn_q.weight',
  'self_attn/k_proj/kernel': 'attn_k.weight',
  'self_attn/v_proj/kernel': 'attn_v.weight',
  'self_attn/o_proj/kernel': 'attn_output.weight',
  'post_attention_layernorm/scale': 'ffn_norm.weight',
  'mlp/gate_proj/kernel': 'ffn_gate.weight',
  'mlp/up_proj/kernel': 'ffn_up.weight',
  'mlp/down_proj/kernel': 'ffn_down.weight',
}


def gguf_name(path):
  if not path.startswith('layers/'):
    return NAMES[path]
  _, layer, rest = path.split('/', 2)
  return f'blk.{layer}.{NAMES[rest]}'


def permute(weights, n_head):
  """As in llama.cpp, convert_hf_to_gguf.py: LlamaModel.permute."""
  return (
    weights.reshape(
      n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:]
    )
    .swapaxes(1, 2)
    .reshape(weights.shape)
  )


def random_leaves(config, seed=0):
  rng = np.random.default_rng(seed)
  return {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in shapes.param_shapes(config).items()
  }


def trained_bpe(vocab_size):
  """A digit-splitting byte-level BPE, made apart from the code under test."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=['<s>', '</s>'],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXT * 10, trainer)
  assert tokenizer.get_vocab_size() == vocab_size
  return tokenizer


def write_gguf(
  path,
  config=CONFIG,
  leaves=None,
  *,
  architecture='llama',
  types=None,
  metadata=None,
  extra_tensors=None,
  drop=(),
  tokenizer=None,
  add_bos=False,
):
  """A GGUF file with `leaves` (ours: kernels [in, out]), F32 unless `types`
  says otherwise by path."""
  leaves = leaves or random_leaves(config)
  writer = gguf_format.GGUFWriter(path, architecture)
  writer.add_block_count(config.num_layers)
  writer.add_context_length(config.max_positions)
  writer.add_embedding_length(config.embed_dim)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  for add, key, value in metadata or ():
    getattr(writer, f'add_{add}')(key, value)
  tokenizer = tokenizer or trained_bpe(config.vocab_size)
  vocab = tokenizer.get_vocab()
  tokens = sorted(vocab, key=vocab.get)
  merges = as_json(tokenizer)['model']['merges']
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list(tokens)
  writer.add_token_types([3 if t in ('<s>', '</s>') else 1 for t in tokens])
  writer.add_token_merges([' '.join(pair) for pair in merges])
  writer.add_bos_token_id(vocab['<s>'])
  writer.add_eos_token_id(vocab['</s>'])
  writer.add_add_bos_token(add_bos)
  for leaf_path, leaf in leaves.items():
    if leaf_path in drop:
      continue
    array = leaf.T if leaf_path.endswith('kernel') else leaf
    if leaf_path.endswith('q_proj/kernel'):
      array = permute(array, config.num_heads)
    if leaf_path.endswith('k_proj/kernel'):
      array = permute(array, config.num_kv_heads)
    array = np.ascontiguousarray(array)
    kind = (types or {}).get(leaf_path)
    if kind is None:
      writer.add_tensor(gguf_name(leaf_path), array)
    else:
      writer.add_tensor(
        gguf_name(leaf_path),
        gguf_format.quants.quantize(array, kind),
        raw_dtype=kind,
      )
  for name, array, kind in extra_tensors or ():
    writer.add_tensor(name, array, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def as_json(tokenizer):
  return json.loads(tokenizer.to_str())


@pytest.mark.parametrize('tied', [False, True])
def test_float32_weights_and_config_come_back_exactly(tmp_path, tied):
  config = dataclasses.replace(CONFIG, tie_embeddings=tied)
  leaves = random_leaves(config)
  path = write_gguf(tmp_path / 'm.gguf', config, leaves)
  found_config, params, _ = gguf.read(path)
  assert found_config == config
  found = trees.flatten(params)
  assert set(found) == set(leaves)
  for leaf_path, leaf in leaves.items():
    assert isinstance(found[leaf_path], jax.Array)
    assert found[leaf_path].dtype == np.float32
    np.testing.assert_array_equal(found[leaf_path], leaf, err_msg=leaf_path)


def test_head_size_of_its_own(tmp_path):
  config = dataclasses.replace(CONFIG, head_dim=32)
  leaves = random_leaves(config)
  path = write_gguf(
    tmp_path / 'm.gguf',
    config,
    leaves,
    metadata=[
      ('uint32', 'llama.attention.key_length', 32),
      ('uint32', 'llama.attention.value_length', 32),
      ('uint32', 'llama.rope.dimension_count', 32),
    ],
  )
  found_config, params, _ = gguf.read(path)
  assert found_config == config
  np.testing.assert_array_equal(
    trees.get(params, 'layers/1/self_attn/k_proj/kernel'),
    leaves['layers/1/self_attn/k_proj/kernel'],
  )


# Largest error as a share of the largest entry of its block of 32. Half a step:
# 1/127/2 at 8 bits; a range of at most twice the largest entry in 15 or 31
# steps; a whole step where the positive end is cut off (Q4_0, Q5_0). Rounding
# the scale, and the offset where there is one, to float16 adds to it.
HALF = 2**-11


@pytest.mark.parametrize(
  'kind, share',
  [
    ('F16', HALF),
    ('BF16', 2**-8),
    ('Q8_0', 1 / 254 + HALF),
    ('Q4_0', 1 / 8 + HALF),
    ('Q4_1', 1 / 15 + 3 * HALF),
    ('Q5_0', 1 / 16 + HALF),
    ('Q5_1', 1 / 31 + 3 * HALF),
  ],
)
def test_quantised_weights_are_close(tmp_path, kind, share):
  kernel = 'layers/0/self_attn/q_proj/kernel'
  leaves = random_leaves(CONFIG)
  path = write_gguf(
    tmp_path / 'm.gguf',
    leaves=leaves,
    types={kernel: gguf_format.GGMLQuantizationType[kind]},
  )
  found = np.asarray(trees.get(gguf.read(path)[1], kernel)).T
  exact = leaves[kernel].T
  largest = np.abs(exact).reshape(64, 2, 32).max(-1, keepdims=True)
  error = np.abs(found - exact).reshape(64, 2, 32) / largest
  assert 0 < error.max() <= share + 1e-6


@pytest.mark.parametrize('kind', ['Q4_K', 'Q6_K'])
def test_super_block_types_are_read(tmp_path, kind):
  config = dataclasses.replace(CONFIG, embed_dim=256, head_dim=64, num_layers=1)
  kind = gguf_format.GGMLQuantizationType[kind]
  _, bytes_per_block = gguf_format.GGML_QUANT_SIZES[kind]
  raw = np.zeros((config.vocab_size, bytes_per_block), np.uint8)
  # The float16 scale of a block: last in Q6_K, first in Q4_K (then the scale
  # of the minima, left at 0).
  at = bytes_per_block - 2 if kind.name == 'Q6_K' else 0
  raw[:, at : at + 2] = np.array([0.5], np.float16).view(np.uint8)
  if kind.name == 'Q6_K':
    raw[:, 192:208] = 1  # 8-bit scales; all 6-bit values 0 mean -32
    expected = -32 * 0.5
  else:
    raw[:, 4:8] = 1  # 6-bit scales of the first four groups of 32
    raw[:, 16:] = 0x33  # every 4-bit value 3
    expected = 3 * 0.5
  path = write_gguf(
    tmp_path / 'm.gguf',
    config,
    drop=['embed_tokens/embedding'],
    extra_tensors=[('token_embd.weight', raw, kind)],
  )
  found = np.asarray(trees.get(gguf.read(path)[1], 'embed_tokens/embedding'))
  assert found.shape == (config.vocab_size, 256)
  np.testing.assert_array_equal(found[:, :128], expected)


def test_tokenizer_of_the_metadata_gives_the_same_ids(tmp_path):
  bpe = trained_bpe(CONFIG.vocab_size)
  path = write_gguf(tmp_path / 'm.gguf', tokenizer=bpe)
  tokenizer = gguf.read(path)[2]
  for text in [*TEXT, 'é 日本 2024', '', '  two  blanks\n\n']:
    ids = tokenizer.encode(text)
    assert ids == bpe.encode(text).ids
    assert tokenizer.decode(ids) == text
  assert tokenizer.eos_id == bpe.token_to_id('</s>')
  assert tokenizer.special_ids == {0, 1}
  # Each digit is a token of its own.
  assert len(tokenizer.encode('1987')) == 4


def test_bos_is_added_only_if_the_metadata_say_so(tmp_path):
  plain = gguf.read(write_gguf(tmp_path / 'a.gguf'))[2]
  with_bos = gguf.read(write_gguf(tmp_path / 'b.gguf', add_bos=True))[2]
  ids, spans = with_bos.encode_with_offsets('the lift')
  assert ids == [0, *plain.encode('the lift')]
  assert spans[0][0] == spans[0][1]
  assert with_bos.decode(ids) == 'the lift'


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'architecture': 'qwen2'}, 'qwen2'),
    (
      {'metadata': [('string', 'llama.rope.scaling.type', 'linear')]},
      'rope.scaling.type = linear',
    ),
    (
      {'metadata': [('uint32', 'llama.attention.sliding_window', 64)]},
      'sliding_window = 64',
    ),
    (
      {'metadata': [('uint32', 'llama.rope.dimension_count', 8)]},
      'rope.dimension_count = 8',
    ),
    (
      {'metadata': [('array', 'llama.attention.key_length', [16, 32])]},
      r'key_length, found \[16, 32\]',
    ),
    (
      {'metadata': [('uint32', 'tokenizer.ggml.padding_token_id', 999)]},
      "'pad_token': 999",
    ),
    ({'metadata': [('uint32', 'llama.expert_count', 4)]}, 'expert_count = 4'),
    (
      {'extra_tensors': [('rope_freqs.weight', np.ones(8, np.float32), None)]},
      'rope_freqs.weight',
    ),
    (
      {'extra_tensors': [('blk.0.attn_q.bias', np.ones(64, np.float32), None)]},
      'blk.0.attn_q.bias',
    ),
    (
      {'extra_tensors': [('blk.2.attn_v.weight', np.ones(4, 'f4'), None)]},
      'blk.2.attn_v.weight',
    ),
    ({'drop': ['layers/1/mlp/up_proj/kernel']}, 'layers/1/mlp/up_proj/kernel'),
    (
      {
        'drop': ['layers/0/self_attn/q_proj/kernel'],
        'extra_tensors': [
          ('blk.0.attn_q.weight', np.ones((63, 64), 'f4'), None)
        ],
      },
      r'attn_q.weight \(64, 63\) is not \(64, 64\)',
    ),
    ({'drop': ['embed_tokens/embedding']}, 'token_embd.weight'),
    (
      {
        'drop': ['norm/scale'],
        'extra_tensors': [('output_norm.weight', np.ones(32, 'f4'), None)],
      },
      r'output_norm.weight \(32,\) is not \(64,\)',
    ),
    (
      {
        'drop': ['norm/scale'],
        'extra_tensors': [('output_norm.weight', np.ones(64, 'f8'), None)],
      },
      'F64',
    ),
  ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, words):
  path = write_gguf(tmp_path / 'm.gguf', **changes)
  with pytest.raises(ValueError, match=words):
    gguf.read(path)


def test_other_tokenizers_are_refused(tmp_path):
  path = write_gguf(tmp_path / 'm.gguf')
  content = path.read_bytes()
  assert content.count(b'smollm') == 1
  path.write_bytes(content.replace(b'smollm', b'falcon'))
  with pytest.raises(ValueError, match="'falcon'.*'gpt-2' or 'smollm'"):
    gguf.read(path)


def test_scaling_type_none_and_zero_experts_are_harmless(tmp_path):
  path = write_gguf(
    tmp_path / 'm.gguf',
    metadata=[
      ('string', 'llama.rope.scaling.type', 'none'),
      ('uint32', 'llama.expert_count', 0),
    ],
  )
  assert gguf.read(path)[0] == CONFIG


@pytest.mark.parametrize(
  'keep', [0, 3, 4, 10, 24, 30, 100, 0.02, 0.05, 0.1, 0.5, 0.9, -512]
)
def test_truncated_file_says_what_to_do(tmp_path, keep):
  path = write_gguf(tmp_path / 'm.gguf')
  content = path.read_bytes()
  end = int(keep * len(content)) if isinstance(keep, float) else keep
  path.write_bytes(content[:end])
  with pytest.raises(ValueError, match='m.gguf .*fetch it again'):
    gguf.read(path)


def test_a_file_of_another_kind_is_not_taken_for_gguf(tmp_path):
  path = tmp_path / 'm.gguf'
  path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n' * 3)
  with pytest.raises(ValueError, match='magic'):
    gguf.read(path)
  with pytest.raises(FileNotFoundError, match='none.gguf'):
    gguf.read(tmp_path / 'none.gguf')


@pytest.mark.golden
@pytest.mark.model
def test_golden_ids(smollm2, golden):
  records = golden('lm.json')
  assert len(records) == 8
  for record in records:
    ids = smollm2.tokenizer.encode(record['text'])
    assert ids == record['ids']
    if smollm2.tokenizer.special_ids.isdisjoint(ids):
      assert smollm2.tokenizer.decode(ids) == record['text']
    assert (
      smollm2.tokenizer.decode(record['greedy_40']) == (record['greedy_text'])
    )


@pytest.mark.model
def test_real_model_is_the_preset(smollm2):
  assert smollm2.config == config_lib.PRESETS['smollm2_135m'].config
  assert len(trees.flatten(smollm2.params)) == 30 * 9 + 2
