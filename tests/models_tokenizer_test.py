import random

import pytest
import tokenizers
from tokenizers import decoders, normalizers, processors

from me_jax.models import tokenizer as tokenizer_lib

TEXTS = ['Hello, world 42!', 'naïve café 日本語 🙂', '', ' \n\t x  ', 'a</s>b']


def llama_like():
  """SentencePiece-style BPE with bytes to fall back on, adding `<s>`."""
  vocab = {'<unk>': 0, '<s>': 1, '</s>': 2}
  vocab |= {f'<0x{i:02X}>': i + 3 for i in range(256)}
  for piece in ['▁', 'a', 'b', 'c', '▁a', 'bc', '▁abc']:
    vocab[piece] = len(vocab)
  merges = [('▁', 'a'), ('b', 'c'), ('▁a', 'bc')]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True
    )
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  backend.add_special_tokens(['<unk>', '<s>', '</s>'])
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  return tokenizer_lib.FastTokenizer(
    backend, {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  )


def _random_text(rng):
  return ''.join(rng.choices('ab c\n\té日本▁🙂\ufffd', k=rng.randrange(12)))


def _assert_text_only_grows(tokenizer, ids):
  texts = [tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
  for earlier, later in zip(texts, texts[1:], strict=False):
    assert later.startswith(earlier.rstrip('\ufffd')), (ids, earlier, later)


@pytest.mark.parametrize('text', TEXTS)
def test_byte_tokenizer_is_one_id_per_byte(text):
  tokenizer = tokenizer_lib.byte_tokenizer()
  ids = tokenizer.encode(text)
  assert len(ids) == len(text.encode())
  assert tokenizer.decode(ids) == text
  assert all(0 <= i < 256 for i in ids)


def test_byte_tokenizer_has_257_ids():
  tokenizer = tokenizer_lib.byte_tokenizer()
  assert tokenizer.vocab_size == 257
  assert tokenizer.eos_id == 256
  assert tokenizer.special_ids == {256}
  assert tokenizer.decode([*tokenizer.encode('ab'), 256]) == 'ab'
  # Distinct bytes, distinct ids.
  text = ''.join(map(chr, range(128)))
  assert len(set(tokenizer.encode(text))) == 128


def test_offsets_count_characters_not_bytes():
  tokenizer = tokenizer_lib.byte_tokenizer()
  ids, spans = tokenizer.encode_with_offsets('é日b')
  assert ids == tokenizer.encode('é日b')
  assert spans == [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]


def test_added_special_tokens_have_an_empty_span():
  tokenizer = llama_like()
  ids, spans = tokenizer.encode_with_offsets('abc é')
  assert ids[0] == 1
  assert spans[0][0] == spans[0][1]
  assert spans[1] == (0, 3)
  assert spans[-1] == (4, 5)
  assert tokenizer.decode(ids) == 'abc é'
  assert 2 not in ids  # It adds no end token, so neither do we.


def test_only_bytes_of_no_character_are_replaced():
  tokenizer = llama_like()
  of_byte = [tokenizer.backend.token_to_id(f'<0x{b:02X}>') for b in range(256)]
  word, end = tokenizer.backend.token_to_id('▁a'), 2
  for data, expected in (
    (b'\nF', '\nF'),
    (b'\n\xf0\x9f\x99', '\n\ufffd\ufffd\ufffd'),
    (b'\n\xf0\x9f\x99\x82', '\n🙂'),
    (b'\xc3\xa9\xe2\x97\xc3', 'é\ufffd\ufffd\ufffd'),
    (b'\xe2\x96\x81\xff \xed\xa0\x80', '▁\ufffd \ufffd\ufffd\ufffd'),
    ('\ufffdé'.encode() + b'\x80', '\ufffdé\ufffd'),
  ):
    ids = [of_byte[byte] for byte in data]
    assert tokenizer.decode(ids) == expected
    # Spaces, what is skipped (in the middle of a character, too), and an id
    # that only a model with spare rows has.
    ids = [1, word, *ids[:2], end, *ids[2:], 999, word]
    assert tokenizer.decode(ids) == f'a{expected} a'


def test_no_byte_tokens_where_the_decoder_knows_none():
  backend = tokenizer_lib.byte_tokenizer().backend
  backend.add_tokens(['<0x0A>', '<0xFF>'])
  tokenizer = tokenizer_lib.FastTokenizer(backend, {'eos_token': '<eos>'})
  ids = [*tokenizer.encode('é')[:1], *tokenizer.encode('<0x0A><0xFF>')]
  assert len(ids) == 3
  assert tokenizer.decode(ids) == '\ufffd<0x0A><0xFF>'


def test_decoding_whole_texts_is_left_to_the_backend():
  tokenizer, rng = llama_like(), random.Random(0)
  for _ in range(300):
    text = _random_text(rng)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)
    # It writes spaces as that sign.
    assert tokenizer.decode(ids) == text.replace('▁', ' ')


@pytest.mark.parametrize('make', [tokenizer_lib.byte_tokenizer, llama_like])
def test_text_grows_with_its_tokens(make):
  tokenizer, rng = make(), random.Random(0)
  for _ in range(200):
    ids = tokenizer.encode(_random_text(rng))
    _assert_text_only_grows(tokenizer, ids)
    if ids:
      del ids[rng.randrange(len(ids))]
    for _ in range(4):
      place = rng.randrange(len(ids) + 1)
      ids.insert(place, rng.randrange(tokenizer.vocab_size))
    _assert_text_only_grows(tokenizer, ids)


@pytest.mark.parametrize('make', [tokenizer_lib.byte_tokenizer, llama_like])
def test_saved_files_give_the_same_tokenizer(tmp_path, make):
  tokenizer = make()
  tokenizer.save(tmp_path)
  for loaded in (
    tokenizer_lib.from_saved(tmp_path),
    tokenizer_lib.from_directory(tmp_path),
  ):
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.eos_id == tokenizer.eos_id
    assert loaded.special_ids == tokenizer.special_ids
    assert loaded.roles == tokenizer.roles
    for text in TEXTS:
      expected = tokenizer.encode_with_offsets(text)
      assert loaded.encode_with_offsets(text) == expected
      assert loaded.decode(expected[0]) == tokenizer.decode(expected[0])


def test_transformers_loads_the_saved_files(tmp_path):
  transformers = pytest.importorskip('transformers')
  tokenizer = llama_like()
  tokenizer.save(tmp_path)
  loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  for text in TEXTS:
    assert loaded(text)['input_ids'] == tokenizer.encode(text)
  assert loaded.eos_token_id == tokenizer.eos_id
  assert loaded.bos_token_id == 1


def test_chat_template_survives(tmp_path):
  plain = tokenizer_lib.byte_tokenizer()
  template = '{% for m in messages %}{{ m.content }}{% endfor %}'
  tokenizer_lib.FastTokenizer(plain.backend, plain.roles, template).save(
    tmp_path
  )
  assert tokenizer_lib.from_saved(tmp_path).chat_template == template
  assert tokenizer_lib.from_directory(tmp_path).chat_template == template


def test_truncation_and_padding_in_files_are_switched_off(tmp_path):
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.save(tmp_path)
  backend = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  backend.enable_truncation(4)
  backend.enable_padding(length=8)
  backend.save(str(tmp_path / 'tokenizer.json'))
  assert len(tokenizer_lib.from_directory(tmp_path).encode('abcdefghij')) == 10
  with pytest.raises(ValueError, match='truncates or pads'):
    tokenizer_lib.FastTokenizer(backend, {'eos_token': '<eos>'})


def test_fingerprint_tells_tokenizers_apart():
  one = tokenizer_lib.byte_tokenizer()
  again = tokenizer_lib.byte_tokenizer()
  assert one.fingerprint == again.fingerprint
  again.backend.add_tokens(['more'])
  assert one.fingerprint != again.fingerprint


def test_missing_end_token_is_an_error():
  backend = tokenizer_lib.byte_tokenizer().backend
  for roles in ({}, {'eos_token': '</nowhere>'}):
    with pytest.raises(ValueError, match='end token'):
      tokenizer_lib.FastTokenizer(backend, roles)
  with pytest.raises(ValueError, match='mask_token'):
    tokenizer_lib.FastTokenizer(
      backend, {'eos_token': '<eos>', 'mask_token': '<eos>'}
    )


def test_damaged_files_are_an_error(tmp_path):
  tokenizer_lib.byte_tokenizer().save(tmp_path)
  file = tmp_path / 'tokenizer.json'
  file.write_text(file.read_text()[:500])
  with pytest.raises(ValueError, match='damaged'):
    tokenizer_lib.from_saved(tmp_path)
  with pytest.raises(ValueError, match='No tokenizer could be loaded'):
    tokenizer_lib.from_directory(tmp_path)


@pytest.mark.model
def test_real_tokenizer_survives_saving(smollm2, tmp_path):
  smollm2.tokenizer.save(tmp_path)
  loaded = tokenizer_lib.from_directory(tmp_path)
  assert loaded.fingerprint == smollm2.tokenizer.fingerprint
  for text in TEXTS:
    assert loaded.encode(text) == smollm2.tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.model
def test_real_text_grows_with_its_tokens(smollm2):
  rng = random.Random(0)
  for _ in range(50):
    ids = smollm2.tokenizer.encode(_random_text(rng))
    # Ids below 1000 are mostly single bytes and short pieces.
    ids += [rng.randrange(1000) for _ in range(6)]
    rng.shuffle(ids)
    _assert_text_only_grows(smollm2.tokenizer, ids)
