"""Estimates as tables, and which mesh is the best."""

import collections
from collections.abc import Mapping, Sequence

from me_jax.capacity import estimate as estimate_lib
from me_jax.capacity.chips import Chip
from me_jax.capacity.estimate import Estimate
from me_jax.reporting.table import Cell, Line, Table

# By function and mesh; a text says why there is none.
Estimates = Mapping[tuple[str, str], Estimate | str]


def main_table(title: str, found: Estimates, chip: Chip | None) -> Table:
  """Memory, work and time of each function on each mesh.

  Args:
    title: Of the table.
    found: The estimates.
    chip: On which; None if nothing is known of it: then there are no times.
  """
  return Table(
    name='capacity',
    title=title,
    heads=('function', 'mesh'),
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
      'ms each',
    ),
    lines=[
      Line(
        key,
        [None] * 9 + [one] if isinstance(one, str) else _cells(one, chip),
      )
      for key, one in found.items()
    ],
    notes=[str(chip)] if chip else [],
  )


def collectives_table(found: Estimates) -> Table:
  """What passes between devices."""
  lines = []
  for (function, mesh), one in found.items():
    if isinstance(one, str):
      continue
    groups = collections.defaultdict(list)
    for c in one.costs.collectives:
      crosses = estimate_lib.crosses_data(one.mesh, c)
      groups[c.kind, crosses, c.in_loop].append(c)
    lines += [
      Line(
        (function, mesh, kind),
        [
          'data' if crosses else 'model',
          'yes' if in_loop else 'no',
          Cell(sum(c.times for c in members), digits=0),
          Cell(max(c.nbytes for c in members) / 1e6, digits=3),
          Cell(sum(c.times * c.nbytes for c in members) / 1e6, digits=1),
        ],
      )
      for (kind, crosses, in_loop), members in sorted(groups.items())
    ]
  return Table(
    name='collectives',
    title='Between devices, on each',
    heads=('function', 'mesh', 'kind'),
    columns=('along', 'in a loop', 'times', 'largest MB', 'in all MB'),
    lines=lines,
  )


def best(found: Estimates, chip: Chip) -> list[str]:
  """For each function a sentence: where it fits and is fastest."""
  by_function = collections.defaultdict(dict)
  for (function, mesh), one in found.items():
    by_function[function][mesh] = one
  sentences = []
  for function, by_mesh in by_function.items():
    fits = {
      mesh: _seconds(one, chip) / one.amount
      for mesh, one in by_mesh.items()
      if isinstance(one, Estimate) and one.memory <= chip.hbm
    }
    if not fits:
      sentences.append(f'{function}: fits none of {", ".join(by_mesh)}.')
      continue
    mesh = min(fits, key=fits.get)
    unit = by_mesh[mesh].unit
    sentences.append(
      f'{function}: fits {", ".join(fits)}; fastest on {mesh}, '
      f'{_rate(fits[mesh], unit)} at best.'
    )
  return sentences


def gathered(found: Estimates) -> list[str]:
  """A sentence for each function that puts a parameter together."""
  return [
    f'{function} on {mesh} gathers all of {", ".join(one.gathered[:3])}'
    f'{" and others" if len(one.gathered) > 3 else ""}.'
    for (function, mesh), one in found.items()
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
    f'{each:.3g} a {one.unit}',
  ]


def _seconds(one: Estimate, chip: Chip) -> float:
  return max(one.seconds(chip).values())


def _rate(seconds: float, unit: str) -> str:
  return (
    f'{seconds:.3g} s a {unit}'
    if seconds >= 0.1
    else f'{1 / seconds:,.0f} {unit}s a second'
  )
