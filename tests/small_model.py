"""A random model that can be taught a word: ` x` and ` y` are one token."""

import dataclasses

import tokenizers
from tokenizers import decoders, pre_tokenizers

from me_jax.models import load
from me_jax.models import tokenizer as tokenizer_lib


def small_model(tiny, num_layers):
  """`tiny` with so many layers, and these words in its vocabulary."""
  symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [('Ġ', 'x'), ('Ġ', 'y')]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {s: i for i, s in enumerate([*symbols, *map(''.join, merges)])}, merges
    )
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(['<eos>'])
  config = dataclasses.replace(
    tiny.config, num_layers=num_layers, vocab_size=259
  )
  return load.language_model(
    config,
    load.init_params(config),
    tokenizer_lib.FastTokenizer(backend, {'eos_token': '<eos>'}),
    name='small',
  )
