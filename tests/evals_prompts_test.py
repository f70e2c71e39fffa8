import pytest
from evals_fakes import CharTokenizer

from me_jax.evals import prompts


def _turns(*pairs):
  make = {'H': prompts.human, 'B': prompts.bot}
  return [make[role](text) for role, text in pairs]


def test_base_prompt_keeps_final_newlines_and_skips_empty_turns():
  turns = _turns(('H', 'Q\n'), ('B', 'A'), ('B', ''), ('H', 'Q'))
  assert prompts.render(turns, is_chat=False) == 'Q\n\nA\nQ'


def test_chat_prompt_marks_what_the_user_says_and_joins_nothing():
  turns = _turns(('H', 'Q\n'), ('B', 'A'), ('H', 'R'), ('B', 'S'), ('H', 'T'))
  assert prompts.render(turns, is_chat=True) == (
    ' [INST] Q\n [/INST] A [INST] R [/INST] S [INST] T [/INST] '
  )


@pytest.mark.parametrize('begun', [['[BEGIN]\n'], ['a', 'b']])
def test_what_the_bot_should_begin_with_is_for_base_models(begun):
  turns = _turns(('H', 'Q'), ('B', 'A'), ('H', 'R'), *(('B', x) for x in begun))
  base, chat = (prompts.render(turns, is_chat=c) for c in (False, True))
  assert base == '\n'.join(['Q', 'A', 'R', *begun])
  assert chat == ' [INST] Q [/INST] A [INST] R [/INST] '


def test_plain_text_has_no_marks_in_chat():
  turns = [prompts.Turn('TEXT', 'Passage\n'), prompts.Turn('TEXT', 'Q')]
  assert prompts.render(turns, is_chat=True) == 'Passage\n\nQ'
  assert prompts.render(turns, is_chat=False) == 'Passage\n\nQ'


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', ('', False)),
    ('B', ('B', False)),
    ('B [INST] C [INST]', ('B ', True)),
    ('[INST]', ('', True)),
    ('B [', ('B ', False)),
    ('B [INS', ('B ', False)),
    ('B [INST', ('B ', False)),
    ('B [INTS', ('B [INTS', False)),
    ('B [inst]', ('B [inst]', False)),
    ('[[', ('[', False)),
    ('[INS[INST', ('[INS', False)),
  ],
)
def test_before_instruction(text, expected):
  assert prompts.before_instruction(text) == expected


@pytest.mark.parametrize(
  ('adds_bos', 'limit', 'expected'),
  [
    (True, 3, [1, 'd', 'e']),
    (True, 6, [1, 'a', 'b', 'c', 'd', 'e']),
    (False, 3, ['c', 'd', 'e']),
    (False, 9, ['a', 'b', 'c', 'd', 'e']),
  ],
)
def test_cut_left_keeps_bos(adds_bos, limit, expected):
  tokenizer = CharTokenizer(adds_bos=adds_bos)
  ids = prompts.cut_left(tokenizer.encode('abcde'), limit, tokenizer)
  assert ids == tuple(e if e == 1 else ord(e) + 3 for e in expected)


def test_split_common_prefix():
  assert prompts.split_common_prefix([[5, 6, 7], [5, 6, 8, 9]]) == (
    (5, 6),
    ((7,), (8, 9)),
  )


def test_no_continuation_is_empty_where_one_text_begins_another():
  assert prompts.split_common_prefix([[5, 6], [5, 6, 7]]) == (
    (5,),
    ((6,), (6, 7)),
  )


def test_texts_without_a_common_token_are_refused():
  with pytest.raises(ValueError, match='share no first token'):
    prompts.split_common_prefix([[1, 2], [3, 2]])
