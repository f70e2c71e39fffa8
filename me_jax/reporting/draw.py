"""From a figure to pixels."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure as mpl
from matplotlib import lines, patches, ticker
from matplotlib.axes import Axes

from me_jax.reporting import style
from me_jax.reporting.figure import Bars, Chart, Curve, Figure, HeatMap

# Inches of one panel; a figure has at most two beside each other.
_ALONE, _IN_GRID = (5.6, 3.3), (3.5, 2.5)
_DATES = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}
_TITLE_WIDTH = 44  # characters
_LEGEND_WIDTH = 90
_LEGEND_LINE = 0.2  # inches
_STEPS = tuple(k * 10**e for e in range(6) for k in (1, 2, 5))
_MOST_TICKS = 11
_MANY = 40  # points from which markers are small


def draw(figure: Figure) -> mpl.Figure:
  """The figure, drawn."""
  kinds = {Chart: _chart, Bars: _bars, HeatMap: _heat_map}
  with matplotlib.rc_context(dict(style.RC)):
    return kinds[type(figure)](figure)


def save(drawn: mpl.Figure, kind: str) -> bytes:
  """The bytes of a 'png', 'pdf' or 'svg' file, the same each time."""
  out = io.BytesIO()
  with matplotlib.rc_context(dict(style.RC)):
    drawn.savefig(out, format=kind, metadata=_DATES.get(kind))
  return out.getvalue()


def _grid(
  panels: Sequence[str], size: tuple[float, float] | None = None
) -> tuple[mpl.Figure, dict[str, Axes]]:
  """An empty figure and the axes of each panel."""
  columns = min(2, len(panels))
  rows = math.ceil(len(panels) / columns)
  width, height = size or (_ALONE if columns == 1 else _IN_GRID)
  made = mpl.Figure(
    figsize=(width * columns, height * rows), layout='constrained'
  )
  axes = made.subplots(rows, columns, squeeze=False).flatten()
  for unused in axes[len(panels) :]:
    unused.remove()
  named = dict(zip(panels, axes, strict=False))
  for name, ax in named.items():
    ax.set_title(textwrap.fill(name, _TITLE_WIDTH), loc='left')
  return made, named


def _chart(figure: Chart) -> mpl.Figure:
  panels = list(dict.fromkeys(curve.panel for curve in figure.curves))
  made, axes = _grid(panels)
  labels = list(dict.fromkeys(curve.label for curve in figure.curves))
  variants = list(dict.fromkeys(c.variant for c in figure.curves))
  colours = style.pick(style.COLOURS, labels)
  markers = style.pick(style.MARKERS, labels)
  strokes = style.pick(style.LINES, variants)
  if len(variants) > 1:
    stroke = lambda label, variant: strokes[variant]
  else:  # Colours come again after the last: a stroke tells them apart.
    stroke = lambda label, variant: style.LINES[
      labels.index(label) // len(style.COLOURS) % len(style.LINES)
    ]
  for panel, ax in axes.items():
    scale = figure.y_scale
    scale = scale if isinstance(scale, str) else scale.get(panel, 'linear')
    own = [curve for curve in figure.curves if curve.panel == panel]
    levels = [level for level in figure.levels if level.panel == panel]
    for curve in own:
      _curve(
        ax,
        curve,
        shade=len(variants) == 1,
        color=colours[curve.label],
        marker=markers[curve.label],
        linestyle=stroke(curve.label, curve.variant),
      )
    for level in levels:
      kind = dict(style.LEVELS[level.kind])
      if level.label in colours:
        kind['color'] = colours[level.label]
      ax.axhline(level.y, linewidth=1.2, zorder=1.5, **kind)
    _x_axis(ax, figure.x_scale, own)
    _y_axis(ax, scale, own, figure.y_low, figure.y_high)
    ax.set_xlabel(figure.x_label)
    ax.set_ylabel(textwrap.fill(figure.y_label, 34))
  handles = [
    lines.Line2D(
      [],
      [],
      color=colours[label],
      marker=markers[label],
      linestyle=stroke(label, variants[0]),
      label=label,
    )
    for label in labels
  ]
  if len(labels) == 1 and not labels[0]:
    handles = []
  if len(variants) > 1:
    handles += [
      lines.Line2D([], [], color='#333333', linestyle=strokes[v], label=v)
      for v in variants
    ]
  handles += [
    lines.Line2D([], [], label=kind, **style.LEVELS[kind])
    for kind in dict.fromkeys(level.kind for level in figure.levels)
  ]
  _legend(made, handles)
  return made


def _curve(ax: Axes, curve: Curve, *, shade: bool, **look: Any) -> None:
  x, y = np.array(curve.x, float), np.array(curve.y, float)
  shown = np.isfinite(y)
  if curve.is_thin:
    look |= {'linewidth': 0.6, 'marker': '', 'alpha': 0.6}
  if len(x) > _MANY:
    look |= {'markersize': 2.5, 'linewidth': 1.0}
  infinite = np.isposinf(y)
  # Clipped, a marker on the edge of the panel would be half a marker.
  drawn = ax.plot(x[shown], y[shown], clip_on=False, zorder=3, **look)
  drawn += ax.plot(
    x[infinite],
    np.ones(infinite.sum()),
    transform=ax.get_xaxis_transform(),
    linestyle='',
    marker=6,  # a caret
    markersize=8,
    color=look['color'],
    clip_on=False,
  )
  for line in drawn:  # else the layout makes room for what may be anywhere
    line.set_in_layout(False)
  ends = [
    (x[i], y[i], curve.low[i], curve.high[i])
    for i in np.flatnonzero(shown)
    if curve.low and curve.low[i] is not None and curve.high[i] is not None
  ]
  ends = [e for e in ends if np.isfinite(e[2]) and np.isfinite(e[3])]
  if shade and len(ends) > 1 and len(ends) == shown.sum():
    at, _, low, high = zip(*ends, strict=True)
    ax.fill_between(
      at, low, high, color=look['color'], alpha=style.BAND, linewidth=0
    )
  elif ends:
    at, middle, low, high = map(np.array, zip(*ends, strict=True))
    ax.errorbar(
      at,
      middle,
      yerr=np.maximum(0, [middle - low, high - middle]),
      fmt='none',
      ecolor=look['color'],
      elinewidth=0.9,
      alpha=0.6,
      capsize=2,
    )


def _x_axis(ax: Axes, scale: str, curves: Sequence[Curve]) -> None:
  if scale == 'log':
    ax.set_xscale('log')
    points = sorted({x for curve in curves for x in curve.x})
    ax.set_xticks(points, [f'{x:g}' for x in points])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
  else:
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def _y_axis(
  ax: Axes,
  scale: str,
  curves: Sequence[Curve],
  low: float | None,
  high: float | None,
) -> None:
  if scale == 'log':
    values = [y for c in curves for y in c.y if np.isfinite(y) and y > 0]
    values += [
      y
      for c in curves
      for y in (*c.low, *c.high)
      if y is not None and np.isfinite(y) and y > 0
    ]
    ax.set_yscale('log')
    if values:
      # Room for the carets of infinite values.
      infinite = any(np.isposinf(y) for c in curves for y in c.y)
      room = 3 if infinite else 1.4
      ax.set_ylim(min(values) / 1.4, max(values) * room)
    span = math.log10(max(values) / min(values) * 2) if values else 1
    subs = (1, 2, 3, 5) if span < 2 else (1,)
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=9))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:g}'))
    return
  bottom, top = ax.get_ylim()
  ax.set_ylim(
    bottom if low is None else low,
    top if high is None else high,
  )


def _bars(figure: Bars) -> mpl.Figure:
  made, axes = _grid(list(figure.panels))
  parts = dict.fromkeys(
    part
    for bars in figure.panels.values()
    for heights in bars.values()
    for part in heights
  )
  named = [part for part in parts if part != 'empty']
  colours = style.pick(style.COLOURS, named) | {'empty': style.EMPTY}
  for panel, ax in axes.items():
    bars = figure.panels[panel]
    bottom = np.zeros(len(bars))
    for part in parts:
      heights = np.array([bar.get(part, 0.0) for bar in bars.values()])
      ax.bar(
        range(len(bars)),
        heights,
        bottom=bottom,
        color=colours[part],
        width=0.75,
        edgecolor='white',
        linewidth=0.5,
      )
      bottom += heights
    ax.set_xticks(range(len(bars)), list(bars))
    ax.set_ylim(0, 100)
    ax.grid(visible=False, axis='x')
    ax.set_xlabel(figure.x_label)
    ax.set_ylabel(figure.y_label)
  _legend(
    made,
    [patches.Patch(color=colours[part], label=part) for part in parts],
  )
  return made


def _heat_map(figure: HeatMap) -> mpl.Figure:
  height = min(6.0, max(2.4, 0.045 * len(figure.lines) + 1.2))
  width = 3.6 if len(figure.panels) > 1 else 5.2
  made, axes = _grid(list(figure.panels), (width, height))
  column = {name: i for i, name in enumerate(figure.columns)}
  line = {name: i for i, name in enumerate(figure.lines)}
  image = None
  for panel, ax in axes.items():
    values = np.full((len(line), len(column)), np.nan)
    for (x, y), value in figure.panels[panel].items():
      values[line[y], column[x]] = value
    ax.grid(visible=False)
    ax.patch.set(hatch='////', edgecolor=style.MISSING, facecolor='white')
    image = ax.imshow(
      np.ma.masked_invalid(values),
      cmap=style.HEAT,
      vmin=0,
      vmax=100,
      aspect='auto',
      interpolation='nearest',
    )
    step = max(1, math.ceil(len(column) / 12))
    ax.set_xticks(
      range(0, len(column), step),
      figure.columns[::step],
      rotation=45,
      ha='right',
    )
    every = next(k for k in _STEPS if len(line) <= _MOST_TICKS * k)
    ticks = [number for number in line if number % every == 0]
    ax.set_yticks([line[number] for number in ticks], list(map(str, ticks)))
    ax.set_xlabel(figure.x_label)
    ax.set_ylabel(figure.y_label)
  made.colorbar(
    image, ax=list(axes.values()), label=figure.value_label, shrink=0.8
  )
  return made


def _legend(made: mpl.Figure, handles: Sequence[Any]) -> None:
  """Below all panels, in as many columns as fit; the figure grows with it."""
  if not handles:
    return
  longest = max(len(handle.get_label()) for handle in handles) + 6
  width = _LEGEND_WIDTH * made.get_figwidth() / 7
  rows = math.ceil(len(handles) / max(1, int(width // longest)))
  made.set_figheight(made.get_figheight() + _LEGEND_LINE * (rows + 1))
  made.legend(
    handles=handles,
    loc='outside lower center',
    ncols=math.ceil(len(handles) / rows),
  )
