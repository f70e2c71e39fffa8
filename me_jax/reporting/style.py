"""How all figures look."""

from collections.abc import Mapping, Sequence
from typing import Any

# Okabe and Ito (2008): told apart with any kind of colour vision.
COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
)
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
LINES = ('-', '--', (0, (1, 1)), '-.')
# Levels that curves are seen against.
LEVELS: Mapping[str, Mapping[str, Any]] = {
  'unedited': {'linestyle': (0, (1, 1.5)), 'color': '#333333'},
  'chance': {'linestyle': (0, (1, 4)), 'color': '#777777'},
}
BAND = 0.15  # opacity of an interval
EMPTY = '#BBBBBB'  # answers that say nothing
HEAT = 'cividis'
MISSING = '#999999'  # strokes where a heat map has no value

RC: Mapping[str, Any] = {
  'font.family': 'DejaVu Sans',
  'font.size': 9,
  'axes.titlesize': 9,
  'axes.labelsize': 9,
  'legend.fontsize': 8.5,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.color': '#E5E5E5',
  'grid.linewidth': 0.6,
  'axes.axisbelow': True,
  'lines.linewidth': 1.5,
  'lines.markersize': 4.5,
  'legend.frameon': False,
  'figure.constrained_layout.h_pad': 0.08,
  'figure.constrained_layout.w_pad': 0.08,
  'savefig.dpi': 200,
  'hatch.linewidth': 0.5,
  # Names come from files: nothing in them is a formula.
  'text.parse_math': False,
  # The same figure is the same file.
  'svg.hashsalt': 'me_jax',
}


def pick(palette: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
  """One entry of the palette for each name, from the front, again and again."""
  return {
    name: palette[i % len(palette)]
    for i, name in enumerate(dict.fromkeys(names))
  }
