"""A table as a value, and how its numbers read."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from me_jax.results import Row

_TINY = 1e-9  # below it, a number is a rounding error
INTERVAL = 'With each number its 95 % interval; n is the number of items.'


class Cell(NamedTuple):
  """What stands in one place.

  Attributes:
    value: A number; NaN is shown as '/', for there is none.
    low: Lower end of its 95 % interval, None where there is none.
    high: Upper end.
    n: How many items are behind it.
    mark: A sign behind it.
    p: Of the test that the mark is about, None where there was none.
    digits: After the decimal point.
    is_change: A difference, whose sign is always shown.
  """

  value: float
  low: float | None = None
  high: float | None = None
  n: int | None = None
  mark: str = ''
  p: float | None = None
  digits: int = 1
  is_change: bool = False


class Line(NamedTuple):
  """One line: what it is about, then its cells.

  Attributes:
    heads: Texts.
    cells: Numbers, texts, or None for what was not measured.
    is_paper: The numbers are the paper's.
  """

  heads: Sequence[str]
  cells: Sequence[Cell | str | None]
  is_paper: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table.

  Attributes:
    name: Of its files.
    title: A line.
    heads: Headings of the columns that say what a line is about.
    columns: Headings of the others.
    lines: In order.
    notes: What must be known of it.
  """

  name: str
  title: str
  heads: Sequence[str]
  columns: Sequence[str]
  lines: Sequence[Line]
  notes: Sequence[str] = ()


def cell(
  row: Row | None, *, mark: str = '', p: float | None = None, digits: int = 1
) -> Cell | None:
  """A result with its interval and n."""
  if row is None:
    return None
  return Cell(row.value, row.ci_low, row.ci_high, row.n, mark, p, digits)


def number(value: float, digits: int = 1) -> str:
  """A number as read: '29,634.9', '1.2e+08', '∞', '/' for none."""
  if math.isnan(value):
    return '/'
  if math.isinf(value):
    return '∞' if value > 0 else '−∞'
  if abs(value) >= 1e6 or _TINY < abs(value) < 10**-digits / 2:
    return f'{value:.2g}'.replace('-', '−')
  return f'{value:z,.{digits}f}'.replace('-', '−')


def shared_n(table: Table) -> list[int | None]:
  """By column the n that all its cells share, None if they differ."""
  found = []
  for index in range(len(table.columns)):
    cells = [line.cells[index] for line in table.lines if not line.is_paper]
    ns = {c.n for c in cells if isinstance(c, Cell)}
    found.append(ns.pop() if len(ns) == 1 else None)
  return found


def headings(table: Table) -> list[str]:
  """The headings of the columns, with n where the column shares it."""
  return [
    name if n is None else f'{name} (n = {n:,})'
    for name, n in zip(table.columns, shared_n(table), strict=True)
  ]


def value_text(c: Cell) -> str:
  """The number with its mark."""
  sign = '+' if c.is_change and c.value > 0 else ''
  return f'{sign}{number(c.value, c.digits)}{c.mark}'


def interval(c: Cell) -> str:
  """'17.8–29.5', '−2.0 to 3.1', or '' where there is none."""
  if c.low is None or c.high is None or math.isnan(c.value):
    return ''
  between = ' to ' if c.is_change else '–'
  return f'{number(c.low, c.digits)}{between}{number(c.high, c.digits)}'


def details(c: Cell, shares_n: bool) -> list[str]:
  """The interval and, unless the heading has it, n."""
  n = '' if shares_n or c.n is None else f'n = {c.n:,}'
  return list(filter(None, (interval(c), n)))
