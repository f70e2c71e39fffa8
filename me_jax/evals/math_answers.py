"""Final answers of MATH: where they stand, and when two are the same.

The rules of OpenCompass 0.2.0, quirks and all; and next to them ours
(`clean_piece`, `clean_normal`), which undo the quirks that cost right answers.
"""

import re

# ASCII: otherwise dotless and dotted i would count as i, which they do not
# where the text is lower-cased.
_FINAL_ANSWER = re.compile('final answer', re.IGNORECASE | re.ASCII)
_BLANK = re.compile(r'[\s:]*')
_GOODBYE = '. I hope'

_REPLACED = (
  ('an ', ''),
  ('a ', ''),
  ('.$', '$'),
  (r'\$', ''),
  ('\\ ', ''),
  (' ', ''),
  ('mbox', 'text'),
  (r',\text{and}', ','),
  (r'\text{and}', ','),
  (r'\text{m}', r'\text{}'),
  (r'\le', '<'),
)
_REMOVED = (
  *'square ways integers dollars mph inches ft hours km units'.split(),
  r'\ldots',
  *'sue points feet minutes digits cents degrees cm gm pounds meters'.split(),
  *'meals edges students childrentickets multiples'.split(),
  r'\text{s}',
  r'\text{.}',
  '\\text{\ns}',
  r'\text{}^2',
  r'\text{}^3',
  '\\text{\n}',
  r'\text{}',
  r'\mathrm{th}',
  r'^\circ',
  r'^{\circ}',
  r'\;',
  r',\!',
  '{,}',
  '"',
  r'\dots',
  '\n',
  '\r',
  '\f',
)
_UNWRAPPED = tuple(
  re.compile(pattern)
  for pattern in (
    r'\\text\{([^}]*)\}',
    r'\\textbf\{([^}]*)\}',
    r'\\overline\{([^}]*)\}',
    r'\\boxed\{(.*)\}',
  )
)
_IS = re.compile('finalansweris(.*)')
_ANSWER_IS = re.compile('answer?is:?(.*)')
_BOX = re.compile(r'oxed\{([^}]*)\}')
_DOLLARS = re.compile(r'\$([^$]*)\$')


def gold(solution: str) -> str | None:
  r"""What the last `\boxed{...}` of a solution holds, braces matched; None if
  the last `\boxed` has no braces or they do not close."""
  start = solution.rfind(r'\boxed')
  opening = r'\boxed{'
  if start < 0 or not solution.startswith(opening, start):
    return None
  depth = 1
  for end in range(start + len(opening), len(solution)):
    depth += {'{': 1, '}': -1}.get(solution[end], 0)
    if not depth:
      return solution[start + len(opening) : end]
  return None


def piece(text: str) -> str:
  """The part of an output that OpenCompass looks at: of what is between full
  stops, the first that says 'final answer'; else the first."""
  pieces = text.split('.')
  return next((p for p in pieces if _FINAL_ANSWER.search(p)), pieces[0])


def clean_piece(text: str) -> str:
  """The part of an output that we look at: from 'final answer', or from the
  start, to '. I hope' or the end of the line.

  Where nothing but blanks and colons follow 'final answer' on its line, the
  answer is on the next one.
  """
  start, end, _ = _clean_span(text)
  return text[start:end]


def decided(text: str) -> bool:
  """Whether no continuation can change `piece` or `clean_piece`."""
  found = _FINAL_ANSWER.search(text)
  if not found:
    return False
  *_, is_ended = _clean_span(text)
  return is_ended and text.find('.', found.end()) >= 0


def _clean_span(text: str) -> tuple[int, int, bool]:
  """Start and end of the part, and whether something in the text ends it."""
  found = _FINAL_ANSWER.search(text)
  start, begin = found.span() if found else (0, 0)
  begin = _BLANK.match(text, begin).end()
  ends = [e for mark in (_GOODBYE, '\n') if (e := text.find(mark, begin)) >= 0]
  return start, min(ends, default=len(text)), bool(ends)


def normal(answer: str, *, reads_answer_is: bool) -> str:
  """An output's final answer in the form that OpenCompass compares.

  Args:
    answer: A `piece`.
    reads_answer_is: Also keep only what follows 'answer is', as profile
      oc-2024-01 does.
  """
  for old, new in _REPLACED:
    answer = answer.replace(old, new)
  for expression in _REMOVED:
    answer = answer.replace(expression, '')
  for pattern in _UNWRAPPED:
    answer = pattern.sub(r'\1', answer)
  # The patterns that end in .* match once, at their first occurrence.
  for pattern in (_IS, *[_ANSWER_IS] * reads_answer_is, _BOX, _DOLLARS):
    found = pattern.findall(answer)
    if found:
      answer = found[-1]
  answer = answer.strip()
  if 'rac' in answer and r'\frac' not in answer:
    answer = answer.replace('rac', r'\frac')
  answer = re.sub('frac([^{])(.)', r'frac{\1}{\2}', answer)
  answer = re.sub('sqrt([^{])', r'sqrt{\1}', answer)
  answer = answer.replace('$', '')
  digits = answer.replace(',', '')
  return digits if digits.isdigit() else answer


def clean_normal(answer: str) -> str:
  r"""The form in which we compare, of an output's answer and of the gold.

  Doubled braces, which a model imitates from OpenCompass's exemplars, count
  as single ones; a full stop at the end does not count; `\dfrac` and `\tfrac`
  are `\frac`, before `normal` could take them for one without its first
  letters.
  """
  answer = _with_single_braces(answer).rstrip().removesuffix('.')
  return normal(re.sub('[dt]frac', 'frac', answer), reads_answer_is=False)


def _with_single_braces(text: str) -> str:
  """The text, where `{{...}}` is `{...}` if the braces match in pairs."""
  partner, stack = {}, []
  for i, char in enumerate(text):
    if char == '{':
      stack.append(i)
    elif char == '}' and stack:
      partner[stack.pop()] = i
  doubled = set()
  for opening, closing in partner.items():
    if partner.get(opening + 1) == closing - 1:
      doubled |= {opening, closing}
  return ''.join(char for i, char in enumerate(text) if i not in doubled)


def equivalent(prediction: str | None, reference: str | None) -> bool:
  """Whether two answers are the same to OpenCompass.

  Both are brought into one form; where that fails for either, they are
  compared as they are. A missing answer equals a missing answer only.
  """
  if prediction is None or reference is None:
    return prediction is reference
  try:
    return _canonical(prediction) == _canonical(reference)
  except _Malformed:
    return prediction == reference


class _Malformed(Exception):
  """An expression breaks off where the reference looks for its next part."""


def _canonical(text: str) -> str:
  """The form in which `equivalent` compares.

  Raises:
    _Malformed: Wherever the code of OpenCompass breaks.
  """
  for old, new in (
    ('\n', ''),
    (r'\!', ''),
    ('\\\\', '\\'),
    ('tfrac', 'frac'),
    ('dfrac', 'frac'),
    (r'\left', ''),
    (r'\right', ''),
    (r'^{\circ}', ''),
    (r'^\circ', ''),
    (r'\$', ''),
  ):
    text = text.replace(old, new)
  text, *units = text.split(r'\text{ ')
  if len(units) > 1:
    raise _Malformed
  text = text.replace(r'\%', '')
  text = text.replace(' .', ' 0.').replace('{.', '{0.')
  if not text:
    return text
  if text[0] == '.':
    text = '0' + text
  sides = text.split('=')
  if len(sides) == 2 and len(sides[0]) <= 2:
    text = sides[1]
  text = _with_root_braces(text).replace(' ', '')
  text = _with_fraction_braces(text)
  if text == '0.5':
    text = r'\frac{1}{2}'
  return _slash_as_fraction(text)


def _with_root_braces(text: str) -> str:
  head, *roots = text.split(r'\sqrt')
  for root in roots:
    if not root:
      raise _Malformed
    braced = root if root[0] == '{' else f'{{{root[0]}}}{root[1:]}'
    head += r'\sqrt' + braced
  return head


def _with_fraction_braces(text: str) -> str:
  head, *fractions = text.split(r'\frac')
  for fraction in fractions:
    if not fraction:
      raise _Malformed
    if fraction[0] != '{':
      if len(fraction) < 2:
        return text
      top, bottom, rest = fraction[0], fraction[1], fraction[2:]
      if bottom != '{':
        bottom = f'{{{bottom}}}'
      fraction = f'{{{top}}}{bottom}{rest}'
    head += r'\frac' + fraction
  return head


def _slash_as_fraction(text: str) -> str:
  parts = text.split('/')
  if len(parts) != 2:
    return text
  try:
    top, bottom = map(int, parts)
  except ValueError as e:
    raise _Malformed from e
  # int also reads '+3' and '1_000', which stay as they are.
  return rf'\frac{{{top}}}{{{bottom}}}' if text == f'{top}/{bottom}' else text
