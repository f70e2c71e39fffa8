import pytest
import tokenizers
from tokenizers import pre_tokenizers, processors

from me_jax.data.token_ids import joint_ids, lookup_position
from me_jax.models import tokenizer as tokenizer_lib

BLANK = 'Ġ'  # how byte-level vocabularies spell a blank


def _byte_level(merges=(), bos=False):
  """Bytes, the given merges (over blanks too), and `<s>` in front if asked."""
  symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
  symbols += [a + b for a, b in merges]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={s: i for i, s in enumerate(symbols)}, merges=list(merges)
    )
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(['</s>', '<s>'])
  if bos:
    backend.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', backend.token_to_id('<s>'))]
    )
  return tokenizer_lib.FastTokenizer(
    backend, {'eos_token': '</s>', 'bos_token': '<s>'}
  )


BYTES = _byte_level()
WITH_BOS = _byte_level(bos=True)


# Prompt and target


@pytest.mark.parametrize('tokenizer', [BYTES, WITH_BOS], ids=['bytes', 'bos'])
@pytest.mark.parametrize(
  'prompt, target', [('Who is', 'Ada'), ('Wer? Ürün', 'ß é')]
)
def test_joint_ids(tokenizer, prompt, target):
  ids = joint_ids(tokenizer, prompt, target)
  assert list(ids.full) == tokenizer.encode(f'{prompt} {target}')
  assert list(ids.prompt) == tokenizer.encode(prompt)
  assert ids.prompt + ids.target == ids.full
  assert ids.num_prompt == len(ids.prompt)
  assert tokenizer.decode(ids.target) == f' {target}'
  assert not ids.boundary_merged


def test_exactly_one_bos_in_front():
  bos = WITH_BOS.backend.token_to_id('<s>')
  ids = joint_ids(WITH_BOS, 'Who is', 'Ada')
  assert ids.full[0] == bos
  assert bos not in ids.full[1:]


def test_blanks_at_the_ends_do_not_matter():
  assert joint_ids(BYTES, ' Who is \n', '\tAda ') == joint_ids(
    BYTES, 'Who is', 'Ada'
  )


def test_target_swallows_the_end_of_the_prompt():
  """`is` and the blank after it are one token, but only if a target follows."""
  tokenizer = _byte_level([('s', BLANK)])
  ids = joint_ids(tokenizer, 'Who i s', 'Ada')
  assert ids.boundary_merged
  assert ids.num_prompt == len(tokenizer.encode('Who i s')) - 1
  assert tokenizer.decode(ids.prompt) == 'Who i '
  assert tokenizer.decode(ids.target) == 's Ada'
  # A merge elsewhere is none at the boundary.
  assert not joint_ids(tokenizer, 'is it', 'Ada').boundary_merged


def test_token_that_ends_with_the_prompt_is_no_merge():
  tokenizer = _byte_level([(BLANK, 'A')])
  ids = joint_ids(tokenizer, 'Who is', 'Ada')
  assert not ids.boundary_merged
  assert tokenizer.decode(ids.target[:1]) == ' A'


@pytest.mark.parametrize(
  'prompt, target, counts', [('Who is', ' ', '6 and 0'), ('', '', '0 and ')]
)
def test_nothing_to_predict(prompt, target, counts):
  with pytest.raises(ValueError, match='at least one token each'):
    joint_ids(_blank_dropping(), prompt, target)


def test_nothing_to_predict_from():
  with pytest.raises(ValueError, match='got 0 and'):
    joint_ids(BYTES, '', 'Ada')


@pytest.mark.parametrize('special', ['<s>', '</s>'])
@pytest.mark.parametrize('tokenizer', [BYTES, WITH_BOS], ids=['bytes', 'bos'])
def test_special_tokens_are_refused(tokenizer, special):
  with pytest.raises(ValueError, match='target .* special tokens'):
    joint_ids(tokenizer, 'Who is', f'A{special}da')
  with pytest.raises(ValueError, match='special tokens.*Remove'):
    joint_ids(tokenizer, f'Who {special} is', 'Ada')


def test_a_second_bos_is_refused():
  """A text that brings its own `<s>` to a tokenizer that adds one."""
  with pytest.raises(ValueError, match='special tokens.*Remove'):
    joint_ids(WITH_BOS, '<s>Who is', 'Ada')


def test_appended_end_token_is_refused():
  tokenizer = _byte_level()
  tokenizer.backend.post_processor = processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', tokenizer.eos_id)]
  )
  with pytest.raises(ValueError, match='special tokens'):
    joint_ids(tokenizer, 'Who is', 'Ada')


# Subject


def _blank_dropping():
  words = ['Who', 'is', 'Ada', '?', '</s>']
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {w: i for i, w in enumerate(words)}, unk_token='</s>'
    )
  )
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  return tokenizer_lib.FastTokenizer(backend, {'eos_token': '</s>'})


def _position(tokenizer, text, subject):
  return lookup_position(tokenizer, text, text.index(subject) + len(subject))


@pytest.mark.parametrize('tokenizer', [BYTES, WITH_BOS], ids=['bytes', 'bos'])
@pytest.mark.parametrize(
  'text, subject',
  [
    ('Who is Ada?', 'Ada'),
    ('Who is Ada', 'Ada'),
    ('Ada', 'Ada'),
    ('Wo liegt Århus?', 'Århus'),
    ('Kim jest Zbyszko Ś?', 'Ś'),
    ('東京 is where?', '東京'),
    ('What is 👩‍🚀?', '👩‍🚀'),
    ('What is naïveté', 'naïveté'),
  ],
)
def test_lookup_is_the_last_token_of_the_subject(tokenizer, text, subject):
  """Also where several tokens share its last character."""
  found = _position(tokenizer, text, subject)
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids[: found.position + 1]).endswith(subject)
  assert not tokenizer.decode(ids[: found.position]).endswith(subject)
  assert found.prefix_length_agrees


def test_token_over_the_end_of_the_subject():
  tokenizer = _byte_level([('a', '?')])
  found = _position(tokenizer, 'Who is Ada?', 'Ada')
  ids = tokenizer.encode('Who is Ada?')
  assert tokenizer.decode([ids[found.position]]) == 'a?'
  assert found.prefix_length_agrees


def test_disagreement_with_the_prefix_length():
  """`a?` is one token; without the `?`, `da` is."""
  tokenizer = _byte_level([('a', '?'), ('d', 'a')])
  found = _position(tokenizer, 'Who is Ada?', 'Ada')
  assert tokenizer.decode(
    tokenizer.encode('Who is Ada?')[found.position :]
  ) == ('a?')
  assert not found.prefix_length_agrees
  assert found.position == len(tokenizer.encode('Who is Ada'))


def test_subject_that_ends_with_a_blank():
  tokenizer = _blank_dropping()
  assert lookup_position(tokenizer, 'Who is Ada ?', 10).position == 2
  with pytest.raises(ValueError, match='No token covers character 10'):
    lookup_position(tokenizer, 'Who is Ada ?', 11)


def test_empty_span_of_an_added_token_is_never_the_subject():
  found = lookup_position(WITH_BOS, 'A', 1)
  assert found.position == 1
  with pytest.raises(ValueError, match='No token covers'):
    lookup_position(WITH_BOS, 'A', 0)
