"""Values as plain data: what may cross from a program to its judge.

A value is written out by its contents, read through the methods of the built-in
type it derives from, so that what a program's own class says about itself
(`__eq__`, `__iter__`, `__class__`) does not count. What is not plain data
crosses as `Foreign`, which equals nothing.

Plain are None, bool, int, float, complex, str, bytes, bytearray, list, tuple,
set, frozenset, dict, their subclasses (namedtuple, Counter, defaultdict,
OrderedDict, IntEnum, ...), deque, range, key and item views of dictionaries,
Fraction and Decimal. Of an OrderedDict or Counter only the dictionary remains.

The file is imported on both sides; it needs few imports as every start of a
child pays for them.
"""

import sys
from _collections import deque
from _json import encode_basestring_ascii

_DEPTH = 200
_KEYS, _ITEMS = type({}.keys()), type({}.items())
_SEQUENCES = (
  (list, 'list'),
  (tuple, 'tuple'),
  (set, 'set'),
  (frozenset, 'set'),
  (deque, 'deque'),
  (_KEYS, 'set'),
  (_ITEMS, 'set'),
)


class Foreign:
  """Stands for a value that is not plain data; equal to nothing but itself."""

  def __init__(self, kind: str, truth: bool):
    self.kind, self.truth = kind, truth

  def __bool__(self) -> bool:
    return self.truth

  def __repr__(self) -> str:
    return f'<{self.kind}>'


class Range:
  """Stands for a range. What it holds is told without looking through it, which
  a range does for all but ints."""

  def __init__(self, *ends: int):
    self._range = range(*ends)

  def __eq__(self, other: object) -> bool:
    if isinstance(other, Range):
      other = other._range
    return isinstance(other, range) and self._range == other

  def __hash__(self) -> int:
    return hash(self._range)

  def __contains__(self, item: object) -> bool:
    if isinstance(item, float):
      return item.is_integer() and int(item) in self._range
    return isinstance(item, int) and item in self._range

  def __repr__(self) -> str:
    return repr(self._range)


class _TooLarge(Exception):
  pass


def encode(value: object, limit: int) -> str:
  """JSON of a value, in ASCII, of at most `limit` characters.

  A larger or deeper value is written as a true `Foreign`.
  """
  pieces: list[str] = []
  try:
    _write(value, pieces, [limit], 0)
  except (_TooLarge, RecursionError):
    return _foreign(f'{type(value).__name__} too large to compare', True)
  return ''.join(pieces)


def _write(value: object, pieces: list, room: list, depth: int) -> None:
  if depth > _DEPTH:
    raise _TooLarge
  sequence = None
  if value is None:
    text = 'null'
  elif value is True:
    text = 'true'
  elif value is False:
    text = 'false'
  else:
    # Not isinstance, which believes what an object says of its class.
    kind = type(value)
    if issubclass(kind, int):
      value = int.__index__(value)
      short = -(2**63) < value < 2**63
      text = int.__repr__(value) if short else f'["int","{value:x}"]'
    elif issubclass(kind, float):
      text = f'["float","{float.__repr__(value)}"]'
    elif issubclass(kind, complex):
      parts = (complex.real.__get__(value), complex.imag.__get__(value))
      text = f'["complex","{parts[0]!r}","{parts[1]!r}"]'
    elif issubclass(kind, str):
      if str.__len__(value) > room[0]:
        raise _TooLarge
      text = encode_basestring_ascii(str.__str__(value))
    elif issubclass(kind, bytes | bytearray):
      base = bytes if issubclass(kind, bytes) else bytearray
      if base.__len__(value) > room[0]:
        raise _TooLarge
      text = f'["bytes","{base.hex(value)}"]'
    elif kind is range:
      ends = (value.start, value.stop, value.step)
      digits = [f'"{int.__index__(end):x}"' for end in ends]
      text = f'["range",{",".join(digits)}]'
    elif issubclass(kind, dict):
      sequence, text = dict.items(value), '["dict"'
    else:
      text = None
      for base, tag in _SEQUENCES:
        if issubclass(kind, base):
          sequence, text = base.__iter__(value), f'["{tag}"'
          break
      if text is None:
        text = _number(value, kind) or _foreign(kind.__name__, _truth(value))
  # With the comma and the bracket that may follow.
  room[0] -= len(text) + 2
  if room[0] < 0:
    raise _TooLarge
  pieces.append(text)
  if sequence is not None:
    for item in sequence:
      pieces.append(',')
      _write(item, pieces, room, depth + 1)
    pieces.append(']')


def _number(value: object, kind: type) -> str | None:
  # A program can only hold one of these if the module was imported.
  module = sys.modules.get('fractions')
  if module and issubclass(kind, module.Fraction):
    top, bottom = int(value._numerator), int(value._denominator)
    return f'["fraction","{top:x}","{bottom:x}"]'
  module = sys.modules.get('decimal')
  if module and issubclass(kind, module.Decimal):
    return f'["decimal","{module.Decimal.__str__(value)}"]'
  return None


def _foreign(name: str, truth: bool) -> str:
  text = encode_basestring_ascii(name[:100])
  return f'["foreign",{text},{"true" if truth else "false"}]'


def _truth(value: object) -> bool:
  # The truth of an object whose class computes it in Python is its own claim.
  python = type(_truth)
  for base in type(value).__mro__:
    for name in ('__bool__', '__len__'):
      if isinstance(base.__dict__.get(name), python):
        return False
  return bool(value)


def decode(tree: object) -> object:
  """The value of a parsed JSON tree, with plain types.

  Raises:
    ValueError: `encode` cannot have written this.
  """
  try:
    return _decode(tree)
  except (TypeError, IndexError, ArithmeticError, RecursionError) as e:
    raise ValueError(f'not an encoded value: {type(e).__name__}') from e


def _decode(tree: object) -> object:
  if tree is None or isinstance(tree, bool | int | str):
    return tree
  if not isinstance(tree, list):
    raise ValueError(f'not an encoded value: {type(tree).__name__}')
  tag, *parts = tree
  if tag in _CONTAINERS:
    return _CONTAINERS[tag]([_decode(p) for p in parts])
  if tag in _SCALARS:
    return _SCALARS[tag](*parts)
  raise ValueError(f'not an encoded value: {str(tag)[:40]!r}')


def _fraction(top: str, bottom: str) -> object:
  import fractions

  return fractions.Fraction(int(top, 16), int(bottom, 16))


def _decimal(text: str) -> object:
  import decimal

  return decimal.Decimal(text)


_CONTAINERS = {
  'list': list,
  'tuple': tuple,
  'set': set,
  'deque': deque,
  'dict': dict,
}
_SCALARS = {
  'int': lambda digits: int(digits, 16),
  'float': float,
  'complex': lambda real, imag: complex(float(real), float(imag)),
  'bytes': bytes.fromhex,
  'range': lambda *ends: Range(*(int(e, 16) for e in ends)),
  'fraction': _fraction,
  'decimal': _decimal,
  'foreign': lambda kind, truth: Foreign(str(kind), truth is True),
}
