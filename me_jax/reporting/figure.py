"""Figures as values: what is drawn, and nothing else."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """Measured points that belong together.

  Attributes:
    panel: In which part of the figure.
    label: Whose it is; one colour each.
    x: Ascending.
    y: As many; may be infinite, which is shown as an arrow at the top, or NaN,
      which is left out.
    low: Lower ends of 95 % intervals, None where there is none.
    high: Upper ends.
    n: Items behind each point, None where that is not a count of items.
    variant: Which of the curves of one label; one line style each.
    is_thin: A part of another curve's mean.
  """

  panel: str
  label: str
  x: Sequence[int | float]
  y: Sequence[float]
  low: Sequence[float | None] = ()
  high: Sequence[float | None] = ()
  n: Sequence[int | None] = ()
  variant: str = ''
  is_thin: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
  """A dotted line across a panel.

  Attributes:
    panel: In which part of the figure.
    kind: 'unedited' or 'chance'.
    y: How high.
    label: Whose it is, empty if everybody's.
  """

  panel: str
  kind: str
  y: float
  label: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Figure:
  """What all kinds of figures have.

  Attributes:
    name: Of its files.
    title: A line.
    caption: What it shows and how to read it.
  """

  name: str
  title: str
  caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart(_Figure):
  """Curves over a number.

  Attributes:
    x_label: With its unit.
    y_label: With its unit; of every panel.
    curves: In the order of the legend.
    levels: Dotted lines.
    x_scale: 'linear' or 'log'.
    y_scale: 'linear' or 'log'; by panel if they differ.
    y_low: Where the axis begins; None to fit the data.
    y_high: Where it ends.
  """

  x_label: str
  y_label: str
  curves: Sequence[Curve]
  levels: Sequence[Level] = ()
  x_scale: str = 'linear'
  y_scale: str | Mapping[str, str] = 'linear'
  y_low: float | None = None
  y_high: float | None = None

  def rows(self) -> list[dict[str, Any]]:
    """Everything that is drawn, one line per point or dotted line."""
    rows = []
    for c in self.curves:
      for i, (x, y) in enumerate(zip(c.x, c.y, strict=True)):
        rows.append(
          {
            'panel': c.panel,
            'label': c.label,
            'variant': c.variant,
            'x': x,
            'y': y,
            'ci_low': c.low[i] if c.low else None,
            'ci_high': c.high[i] if c.high else None,
            'n': c.n[i] if c.n else None,
          }
        )
    rows += [
      {
        'panel': level.panel,
        'label': level.label,
        'variant': f'{level.kind} level',
        'x': None,
        'y': level.y,
        'ci_low': None,
        'ci_high': None,
        'n': None,
      }
      for level in self.levels
    ]
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars(_Figure):
  """Stacked bars.

  Attributes:
    x_label: Of the bars.
    y_label: Of the heights.
    panels: Heights by panel, bar and part.
  """

  x_label: str
  y_label: str
  panels: Mapping[str, Mapping[str, Mapping[str, float]]]

  def rows(self) -> list[dict[str, Any]]:
    """One line per part of a bar."""
    return [
      {'panel': panel, 'x': bar, 'part': part, 'y': height}
      for panel, bars in self.panels.items()
      for bar, parts in bars.items()
      for part, height in parts.items()
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeatMap(_Figure):
  """Values of pairs.

  Attributes:
    x_label: Of the columns.
    y_label: Of the lines.
    value_label: Of the colours.
    columns: Names, in order.
    lines: Numbers, in order from the top.
    panels: Values by panel, column and line; what is missing is not there.
  """

  x_label: str
  y_label: str
  value_label: str
  columns: Sequence[str]
  lines: Sequence[int]
  panels: Mapping[str, Mapping[tuple[str, int], float]]

  def rows(self) -> list[dict[str, Any]]:
    """One line per value that there is."""
    return [
      {'panel': panel, 'x': column, 'line': line, 'value': value}
      for panel, values in self.panels.items()
      for (column, line), value in values.items()
    ]


Figure = Chart | Bars | HeatMap


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
  """The rows, with a head; None is an empty field."""
  rows = list(rows)
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()
