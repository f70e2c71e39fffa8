import json
import random
import time

import pytest

from me_jax.evals import math_answers as answers


def _oc(text, profile='oc-2023-12'):
  return answers.normal(
    answers.piece(text), reads_answer_is=profile == 'oc-2024-01'
  )


def _clean(text):
  return answers.clean_normal(answers.clean_piece(text))


@pytest.mark.parametrize('profile', ['oc-2023-12', 'oc-2024-01'])
def test_extraction_and_equivalence_equal_the_vectors(spec_dir, profile):
  rows = json.loads((spec_dir / 'benchmark_vectors.json').read_text())['math']
  assert rows
  for text, reference, extracted, equal in rows:
    assert _oc(text, profile) == extracted
    assert answers.equivalent(extracted, reference) == equal


@pytest.mark.parametrize(
  ('solution', 'expected'),
  [
    (r'so $\boxed{1}$ and then $\boxed{\frac{1}{2}}$.', r'\frac{1}{2}'),
    (r'\boxed{\{a\}}', r'\{a\}'),
    (r'\boxed{a\}b}', 'a\\'),
    (r'\boxed{}', ''),
    (r'\boxed 5', None),
    (r'\boxed{1}, that is \boxed 5 {6}', None),
    (r'\boxed{\frac{1}{2}', None),
    (r'\fbox{5}', None),
    ('5', None),
  ],
)
def test_the_gold_answer_is_in_the_last_box(solution, expected):
  assert answers.gold(solution) == expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('a. FINAL ANSWER: 5. The final answer is 6', ' FINAL ANSWER: 5'),
    ('first. second', 'first'),
    ('fİnal answer 1. fınal answer 2. final answer 3', ' final answer 3'),
    ('.5 is final', ''),
    ('', ''),
  ],
)
def test_the_piece_is_the_first_sentence_that_says_final_answer(text, expected):
  assert answers.piece(text) == expected


@pytest.mark.parametrize(
  ('piece', 'expected'),
  [
    ('the final answer is a square', ''),
    (r'1 \text{and} x \text{m}^2', '1,x'),
    (r'\mbox{ten} \ldots', 'ten'),
    ('12\\text{\ns}; 3\\text{}^3', '12;3'),
    (r'\textbf{(A)} \overline{AB}', '(A)AB'),
    (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    ('oxed{1}oxed{2}', '2'),
    ('$1$ or $2$ or $3', '2'),
    # The rest of the text is kept from the first occurrence on.
    ('final answer is 1, final answer is 2', '1,finalansweris2'),
    (r'\frac12 + \sqrt3', r'\frac{1}{2}+\sqrt{3}'),
    ('rac{1}{2}', r'\frac{1}{2}'),
    ('1,234,567', '1234567'),
    ('1,234.5', '1,234.5'),
    ('(1,2)', '(1,2)'),
    (r'45^\circ, 30^{\circ}', '4530'),
  ],
)
def test_normal_form_of_a_prediction(piece, expected):
  assert answers.normal(piece, reads_answer_is=False) == expected


@pytest.mark.parametrize('words', ['answer is', 'answer is:', 'answeis'])
def test_the_later_profile_reads_answer_is(words):
  text = f'The {words} 5'
  assert _oc(text, 'oc-2024-01') == '5'
  assert _oc(text, 'oc-2023-12') == text.replace(' ', '')


@pytest.mark.parametrize(
  ('one', 'other', 'expected'),
  [
    (r'\dfrac{1}{2}', r'\tfrac12', True),
    (r'\frac1{2}', r'\frac{1}2', False),
    (r'\left(1,\!2\right)', '(1, 2)', True),
    (r'90^\circ', '90', True),
    (r'\$5\%', '5', True),
    ('5\\\\\n', '5\\', True),
    (r'5\text{ cm}', '5', True),
    ('.5', '0.5', True),
    ('0.5', r'\frac{1}{2}', True),
    ('{.3}', '{0.3}', True),
    ('k=5', '5', True),
    ('k =5', '5', True),
    ('k  =5', '5', False),
    ('xy=5', '5', True),
    ('a=b=5', 'b=5', False),
    (r'\sqrt2', r'\sqrt{2}', True),
    ('3/4', r'\frac{3}{4}', True),
    ('-3/4', r'\frac{-3}{4}', True),
    ('+3/4', r'\frac{+3}{4}', False),
    ('1/2/3', '1/2 /3', True),
    # What cannot be brought into the form is compared as it is.
    ('a/b', 'a / b', False),
    ('a/b', 'a/b', True),
    (r'\sqrt', r'\sqrt ', False),
    (r'2\sqrt\sqrt3', r'2\sqrt\sqrt{3}', False),
    (r'\frac', r'\frac ', False),
    (r'1\text{ a} 2\text{ b}', r'1 \text{ a} 2\text{ b}', False),
    # A fraction of one sign only stays as it is, without an error.
    (r'\frac 1', r'\frac1', True),
    (r'\frac12\frac3', r'\frac12 \frac3', True),
    (r'\frac12\frac3', r'\frac{1}{2}\frac3', False),
    ('', '', True),
    (None, None, True),
    (None, '', False),
    ('', None, False),
  ],
)
def test_equivalence(one, other, expected):
  assert answers.equivalent(one, other) is expected
  assert answers.equivalent(other, one) is expected


_LAST = 'Final Answer: The final answer is'


@pytest.mark.parametrize(
  ('text', 'gold'),
  [
    (f'a. b\n{_LAST} $0.5$. I hope it is correct.', r'\frac{1}{2}'),
    (f'{_LAST} $x \\le 3$.\nProblem: $4$', r'x \le 3'),
    (f'{_LAST} 1,000', '1,000'),
    (f'{_LAST} $\\frac{{{{2}}}}{{{{3}}}}$. I hope', r'\frac{2}{3}'),
    (f'{_LAST} $\\sqrt{{{{x^{{{{2}}}}}}}}$. I hope', r'\sqrt{x^{2}}'),
    (f'{_LAST} $\\dfrac12$. I hope', r'\frac{1}{2}'),
    (f'{_LAST} $\\frac{{1}}{{2}}$. I hope', r'\dfrac{1}{2}'),
    (f'{_LAST} $x^{{2^{{3}}}}$. I hope', 'x^{2^{3}}'),
    ('Final answer:\n\nThe final answer is 3.5.\n', '3.5'),
    ('It is $7$.\nIt is $8$.', '7'),
  ],
)
def test_the_clean_reading_undoes_the_quirks(text, gold):
  read = _clean(text)
  assert answers.equivalent(read, answers.clean_normal(gold))


def test_the_clean_reading_is_no_more_lenient_than_that():
  for text, gold in (
    (f'{_LAST} $5$. I hope', '6'),
    (f'{_LAST} $[2,5)$. I hope', '(2,5]'),
    (f'{_LAST} $x^{{2}}$. I hope', 'x^2'),
    (f'{_LAST}\nProblem:\n$6$', '5'),
  ):
    assert not answers.equivalent(_clean(text), answers.clean_normal(gold))


_FRAGMENTS = (
  *('final answer', 'Final Answer: The final answer is ', 'final ', 'answer'),
  *('.', '. I hope', ' I hope', '. I', ' ', '\n', ':', 'answer is ', 'fİnal'),
  *('$', r'\boxed{', '{{', '}}', '}', '5', '0', ',', 'x', r'\frac', '/', 'Q:'),
)


def test_a_decided_text_never_changes_its_answer():
  rng = random.Random(0)
  glue = lambda n: ''.join(rng.choice(_FRAGMENTS) for _ in range(n))
  n_decided = 0
  for _ in range(3000):
    text = glue(rng.randint(0, 4)) + 'final answer' + glue(rng.randint(0, 12))
    end = next(
      (e for e in range(len(text) + 1) if answers.decided(text[:e])), None
    )
    if end is None:
      continue
    n_decided += 1
    longer = [text, text[:end] + glue(5), text[:end] + glue(5)]
    for read in (
      lambda t: _oc(t, 'oc-2023-12'),
      lambda t: _oc(t, 'oc-2024-01'),
      _clean,
    ):
      assert {read(t) for t in longer} == {read(text[:end])}
    assert all(answers.decided(t) for t in longer)
  assert n_decided > 500


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('It is $5$. And more.\n', False),
    (f'{_LAST} $5$', False),
    (f'{_LAST} $5$.', False),
    (f'{_LAST} $5$. I hope', True),
    (f'{_LAST} $5$.\n', True),
    (f'{_LAST} $5$\n', False),
    (f'{_LAST} $5$\nSo.', True),
  ],
)
def test_when_an_answer_is_decided(text, expected):
  assert answers.decided(text) is expected


@pytest.mark.parametrize(
  'unit', ['{', r'\boxed{', r'\text{', 'final answer ', '$', 'oxed{', '. I ']
)
def test_hostile_texts_take_no_time(unit):
  text = 'final answer ' + unit * (8000 // len(unit))
  start = time.perf_counter()
  answers.equivalent(_oc(text), _clean(text))
  assert not answers.decided(text)
  assert time.perf_counter() - start < 2
