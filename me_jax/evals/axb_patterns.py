"""How OpenCompass finds an option letter in what a model wrote.

An ordered list of patterns; the first that matches decides. Numbers are those
of its list of 2024-01; the list of 2023-12 has another order and lacks 37 and
38. A text is searched in linear time, whatever it is.
"""

import re
from collections.abc import Callable, Mapping

OPTIONS = 'AB'

# What a pattern matches first in a text, '' if nothing.
_Find = Callable[[str], str]


def find_option(text: str, profile: str) -> str:
  """The letter that the patterns of `profile` find in `text`, or ''.

  The first pattern whose match has an option in it decides, by the first of
  the options, not by the first in the match.
  """
  for number in _ORDER[profile]:
    found = _PATTERNS[number](text)
    for option in OPTIONS:
      if option in found:
        return option
  return ''


def _regex(pattern: str) -> _Find:
  """X stands for any option."""
  compiled = re.compile(pattern.replace('X', f'[{OPTIONS}]'))

  def find(text: str) -> str:
    match = compiled.search(text)
    return match[0] if match else ''

  return find


def _word_after(phrase: str) -> _Find:
  r"""`phrase\s?\S+(。|$)`, without trying a run of characters twice."""
  compiled = re.compile(rf'{phrase}\s?(\S++)')

  def find(text: str) -> str:
    start, end = 0, len(text) - text.endswith('\n')
    while match := compiled.search(text, start):
      if match.end() == end:
        return match[0]
      stop = text.rfind('。', match.start(1) + 1, match.end())
      if stop >= 0:
        return text[match.start() : stop + 1]
      # No later start in this run can do better, but its end may be the phrase
      # whose word comes after the blank.
      start = match.end() - len(phrase)
    return ''

  return find


def _after_one(text: str) -> str:
  r"""`1.\s?.*?$`: only the last line can match, and the three characters
  before it, whose newline `\s` may be."""
  last = text.rfind('\n', 0, len(text) - 1) + 1
  match = _AFTER_ONE.search(text[max(0, last - 3) :])
  return match[0] if match else ''


_AFTER_ONE = re.compile(r'1.\s?.*?$')

_PATTERNS: Mapping[int, _Find] = {
  1: _regex(r'答案是?\s?X'),
  2: _regex(r'答案是?\s?：X'),
  3: _regex(r'答案是?\s?:X'),
  4: _regex(r'答案应该?是\s?X'),
  5: _regex(r'答案应该?选\s?X'),
  6: _regex(r'答案为\s?X'),
  7: _regex(r'答案选\s?X'),
  8: _regex(r'选择?\s?X'),
  9: _regex(r'只有选?项?\s?X\s?是?对'),
  10: _regex(r'只有选?项?\s?X\s?是?错'),
  11: _regex(r'只有选?项?\s?X\s?不?正确'),
  12: _regex(r'只有选?项?\s?X\s?错误'),
  13: _regex(r'说法不?对选?项?的?是\s?X'),
  14: _regex(r'说法不?正确选?项?的?是\s?X'),
  15: _regex(r'说法错误选?项?的?是\s?X'),
  16: _regex(r'X\s?是正确的'),
  17: _regex(r'X\s?是正确答案'),
  18: _regex(r'选项\s?X\s?正确'),
  19: _regex(r'所以答\s?X'),
  20: _regex(r'1.\s?X[.。$]?$'),
  21: _regex(r'所以\s?X[.。$]?$'),
  22: _regex(r'所有\s?X[.。$]?$'),
  23: _regex(r'[\s，：:,]X[。，,.]?$'),
  24: _regex(r'[\s，,：:][故即]X[。.]?$'),
  25: _regex(r'[\s，,：:]因此X[。.]?$'),
  26: _regex(r'[是为。]\s?X[。.]?$'),
  27: _regex(r'因此\s?X[。.]?$'),
  28: _regex(r'显然\s?X[。.]?$'),
  29: _word_after('答案是'),
  30: _word_after('答案应该是'),
  31: _word_after('答案为'),
  32: _regex(r'[Tt]he answer is X'),
  33: _regex(r'[Tt]he answer is option X'),
  34: _regex(r'[Tt]he correct answer is X'),
  35: _regex(r'[Tt]he correct answer is option X'),
  36: _regex(r'[Tt]he answer to the question is X'),
  37: _regex(r'^选项\s?X'),
  38: _regex(r'^X\s?选?项'),
  39: _regex(r'(\s|^)X[\s。，,：:.$]'),
  40: _regex(r'(\s|^)X(\s|$)'),
  41: _after_one,
  42: _regex(r'X:'),
  43: _regex(r'X'),
}

_ORDER: Mapping[str, tuple[int, ...]] = {
  'oc-2023-12': (*range(1, 29), 41, 29, 30, 31, 39, *range(32, 37), 42, 40, 43),
  'oc-2024-01': tuple(range(1, 44)),
}
