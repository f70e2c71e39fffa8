import pytest
from evals_fakes import CharTokenizer

from me_jax.evals import prompts


def test_base_prompt_keeps_final_newlines_and_skips_empty_turns():
  assert prompts.base_prompt(['Q\n', 'A', '', 'Q']) == 'Q\n\nA\nQ'


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
