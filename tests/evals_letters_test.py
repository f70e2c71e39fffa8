import json
import math
import random

import pytest

from me_jax.evals import letters
from me_jax.evals.task import Item

ITEM = Item(id='0', group='g', fields={'gold': 'C'})


def test_first_capital_equals_the_vectors(spec_dir):
  vectors = json.loads((spec_dir / 'benchmark_vectors.json').read_text())
  assert vectors['first_capital']
  for text, expected in vectors['first_capital']:
    assert letters.first_capital(text) == expected, text


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', ''),
    ('C', 'C'),
    ('The answer is (B) Bank', 'B'),
    ('Bank (C)', 'C'),
    ('BC D', 'D'),
    ('A1 B2 1C D', 'D'),
    ('F G', ''),
    ('a b', ''),
    ('我选B。', 'B'),
    ('É选C', 'C'),
    ('_A_', 'A'),
    ("I'm sure: E.", 'E'),
    ('A\n', 'A'),
  ],
)
def test_first_option_stands_alone(text, expected):
  assert letters.first_option(text, 'ABCDE') == expected


def test_only_the_options_count():
  assert letters.first_option('E D C', 'ABC') == 'C'


def test_two_readings_of_one_text():
  oc, clean = letters.capital_readings('ABCD', 'gold')
  assert (oc.name, clean.name) == ('oc', 'clean')
  text = 'The answer is C'
  assert oc.filter(ITEM, text) == 'T' and clean.filter(ITEM, text) == 'C'
  assert oc.mark(ITEM, 'T') == {'accuracy': False}
  assert clean.mark(ITEM, 'C') == {'accuracy': True}
  assert oc.mark(ITEM, '') == {'accuracy': False}


def test_an_option_at_the_end_may_still_be_part_of_a_word():
  decided = letters.capital_decided('ABC')(ITEM)
  assert not decided('B') and not decided('x (B')
  assert decided('B ') and decided('x (B)')
  assert not decided('Bank') and not decided('T') and not decided('')


_PIECES = (
  *'ABCDEFabf19 \n.()_',
  'É',
  'é',
  '选',
  'Ⅱ',
  'The ',
  'Bank',
  ' is (',
  'ß',
)


@pytest.mark.parametrize('options', ['ABC', 'ABCD', 'ABCDE'])
def test_a_decided_text_never_changes_its_answers(options):
  rng = random.Random(options)
  readings = letters.capital_readings(options, 'gold')
  decided = letters.capital_decided(options)(ITEM)
  read = lambda text: [r.filter(ITEM, text) for r in readings]
  glue = lambda n: ''.join(rng.choices(_PIECES, k=n))
  fired = 0
  for _ in range(4000):
    text = glue(rng.randrange(14))
    looks = [decided(text[:end]) for end in range(len(text) + 1)]
    # Once decided, it stays so.
    assert looks == sorted(looks), repr(text)
    if not looks[-1]:
      continue
    fired += 1
    first = text[: looks.index(True)]
    expected = read(first)
    assert all(expected)
    tails = ['', 'A', ' A ', text[len(first) :], *(glue(5) for _ in range(3))]
    for tail in tails:
      assert read(first + tail) == expected, repr(first + tail)
  assert 500 < fired < 3500


@pytest.mark.parametrize(
  ('scores', 'index'),
  [
    ([3.0, 1.0, 2.0], 1),
    ([2.0, 1.0, 1.0], 1),
    ([math.nan, 1.0, 0.0], 0),
    ([1.0, math.nan, 0.0], 2),
    ([1.0, math.nan, math.nan], 0),
    ([math.inf, math.inf], 0),
    ([math.inf, 5.0], 1),
    ([0.0, -math.inf], 1),
  ],
)
def test_the_first_of_the_smallest(scores, index):
  assert letters.first_smallest(scores) == index
  assert letters.first_smallest(iter(scores)) == index


@pytest.mark.parametrize('value', [1.5, 0.0, math.nan, math.inf, -math.inf])
def test_numbers_go_through_json_and_back(value):
  text = json.dumps(letters.to_json(value), allow_nan=False)
  assert repr(float(json.loads(text))) == repr(value)
