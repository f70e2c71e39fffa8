"""Estimates as tables, and which mesh is the best."""

import collections
from collections.abc import Mapping, Sequence

from me_jax.capacity import estimate as estimate_lib
from me_jax.capacity.chips import Chip
from me_jax.capacity.estimate import Estimate
from me_jax.reporting.table import Cell, Line, Table

# By mesh; a text says why there is none.
Estimates = Mapping[str, Estimate | str]


def main_table(function: str, found: Estimates, chip: Chip | None) -> Table:
  """Memory, work and time of a function on each mesh.

  Args:
    function: Its name.
    found: The estimates.
    chip: On which; None if nothing is known of it: then there are no times.
  """
  return Table(
    name=function,
    title=function,
    heads=('mesh',),
    columns=(
      'arguments GB',
      'temporaries GB',
      'output GB',
      'of memory %',
      'TFLOP',
      'moved GB',
      'sent GB',
      'bound ms',
      'by',
      'each',
    ),
    lines=[
      Line(
        (mesh,),
        [None] * 9 + [one] if isinstance(one, str) else _cells(one, chip),
      )
      for mesh, one in found.items()
    ],
  )


def collectives_table(function: str, found: Estimates) -> Table:
  """What passes between devices."""
  lines = []
  for mesh, one in found.items():
    if isinstance(one, str):
      continue
    alike = collections.defaultdict(list)
    for c in one.costs.collectives:
      crosses = estimate_lib.crosses_data(one.mesh, c)
      alike[c.kind, crosses, c.in_loop].append(c)
    lines += [
      Line(
        (mesh, kind),
        [
          'data' if crosses else 'model',
          'yes' if in_loop else 'no',
          Cell(sum(c.times for c in members), digits=0),
          Cell(max(c.nbytes for c in members) / 1e6, digits=3),
          Cell(sum(c.times * c.nbytes for c in members) / 1e6, digits=1),
        ],
      )
      for (kind, crosses, in_loop), members in sorted(alike.items())
    ]
  return Table(
    name=f'{function}_collectives',
    title=f'{function}, between devices, on each',
    heads=('mesh', 'kind'),
    columns=('along', 'in a loop', 'times', 'largest MB', 'in all MB'),
    lines=lines,
  )


def best(function: str, found: Estimates, chip: Chip) -> str:
  """A sentence: where a function fits and is fastest.

  Meshes are ranked by the sum of the three times, for many share the largest.
  """
  fits = {
    mesh: [seconds / one.amount for seconds in one.seconds(chip).values()]
    for mesh, one in found.items()
    if isinstance(one, Estimate) and one.memory <= chip.hbm
  }
  if not fits:
    return f'{function}: fits none of {", ".join(found)}.'
  mesh = min(fits, key=lambda mesh: sum(fits[mesh]))
  return (
    f'{function}: fits {", ".join(fits)}; fastest on {mesh}, '
    f'{_rate(max(fits[mesh]), found[mesh].unit)} at best.'
  )


def gathered(function: str, found: Estimates) -> list[str]:
  """A sentence for each mesh on which a parameter is put together."""
  return [
    f'{function} on {mesh} gathers all of {", ".join(one.gathered[:3])}'
    f'{" and others" if len(one.gathered) > 3 else ""}.'
    for mesh, one in found.items()
    if isinstance(one, Estimate) and one.gathered
  ]


def _cells(one: Estimate, chip: Chip | None) -> Sequence[Cell | str | None]:
  gb = lambda value: Cell(value / 1e9, digits=2)
  sent = sum(c.sent(one.mesh.size) for c in one.costs.collectives)
  cells = [
    gb(one.arguments),
    gb(one.temporaries),
    gb(one.outputs),
    Cell(100 * one.memory / chip.hbm, digits=0) if chip else None,
    Cell(one.costs.flops / 1e12, digits=3),
    gb(one.costs.nbytes),
    gb(sent),
  ]
  if chip is None:
    return [*cells, None, None, None]
  seconds = one.seconds(chip)
  name = max(seconds, key=seconds.get)
  each = 1e3 * seconds[name] / one.amount
  return [
    *cells,
    Cell(1e3 * seconds[name], digits=2),
    name,
    f'{each:.3g} ms a {one.unit}',
  ]


def _rate(seconds: float, unit: str) -> str:
  return (
    f'{seconds:.3g} s a {unit}'
    if seconds >= 0.1
    else f'{1 / seconds:,.0f} {unit}s a second'
  )
