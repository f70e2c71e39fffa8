"""Reads the text of a compiled program, as XLA prints it.

`jax.stages.Compiled.as_text()` is what each device runs: shapes in it are of
the part that one device holds.
"""

import math
import re
from typing import NamedTuple

import numpy as np

_INSTRUCTION = re.compile(r'\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) .*-> .*\{$')
_IOTA = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?')


class Array(NamedTuple):
  """An array that an instruction gives.

  Attributes:
    dtype: In XLA's names, e.g. 'f32'.
    shape: Of the part that a device holds.
    in_hbm: Not in a memory of the chip itself.
  """

  dtype: str
  shape: tuple[int, ...]
  in_hbm: bool

  @property
  def nbytes(self) -> int:
    """Without padding."""
    # A 'pred' is a byte; what has no number, as a token, is nothing.
    bits = re.search(r'\d+|$', self.dtype)[0] or 8 * (self.dtype == 'pred')
    return math.prod(self.shape) * int(bits) // 8


class Instruction(NamedTuple):
  """One line.

  Attributes:
    name: In its computation.
    opcode: E.g. 'all-reduce'.
    arrays: What it gives, a tuple's one after another.
    operands: Names of instructions; of a parameter its number.
    rest: What stands behind the operands.
    is_root: Its computation gives what it gives.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  @property
  def nbytes(self) -> int:
    """Of all that it gives."""
    return sum(array.nbytes for array in self.arrays)

  def called(self, attribute: str) -> str:
    """The computation that an attribute names, e.g. 'body'."""
    return re.search(rf'\b{attribute}=%?([\w.\-]+)', self.rest)[1]

  def numbers(self, attribute: str) -> list[int]:
    """Those of e.g. 'lhs_contracting_dims={0,2}'; none if it is not there."""
    found = re.search(rf'\b{attribute}={{([\d,]*)}}', self.rest)
    return [int(n) for n in found[1].split(',') if n] if found else []


Computation = dict[str, Instruction]


class Program(NamedTuple):
  """A compiled program.

  Attributes:
    entry: Name of the computation that is run.
    computations: All, each with its instructions by name and in order.
  """

  entry: str
  computations: dict[str, Computation]


def parse(text: str) -> Program:
  """The program.

  Raises:
    ValueError: The text is something else.
  """
  entry, computations, current = '', {}, {}
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif found := _INSTRUCTION.match(line):
      operands, rest = _split(line[found.end() :])
      current[found[2]] = Instruction(
        found[2],
        found[4],
        _arrays(found[3]),
        (operands,)
        if found[4] == 'parameter'
        else tuple(re.findall(r'%([\w.\-]+)', operands)),
        rest,
        bool(found[1]),
      )
  if not entry:
    raise ValueError(
      'Expected the text of a compiled program, Compiled.as_text(), with an '
      f'ENTRY; got {text[:60]!r}.'
    )
  return Program(entry, computations)


def root(computation: Computation) -> Instruction:
  """What a computation gives."""
  return next(i for i in computation.values() if i.is_root)


def groups(instruction: Instruction) -> tuple[tuple[int, ...], ...]:
  """Devices, as places in the mesh, that a collective joins; of a permutation
  pairs of a sender and a receiver; () for all in one group.

  Raises:
    ValueError: They are written in a way that is not known.
  """
  rest = instruction.rest
  found = re.search(r'\b(?:replica_groups|source_target_pairs)=(\S.*)', rest)
  if not found or found[1].startswith('{}'):
    return ()
  if listed := re.match(r'\{(\{[\d,{} ]*\})\}', found[1]):
    inside = re.findall(r'\{([\d, ]+)\}', listed[1])
    return tuple(map(tuple, map(_ints, inside)))
  if counted := re.match(rf'\[([\d,]+)\]<={_IOTA}', found[1]):
    return _rows(_iota(*counted.groups()[1:]).reshape(_ints(counted[1])))
  if on_mesh := re.match(
    rf"mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{('\w+'(?:,'\w+')*)\}}",
    found[1],
  ):
    axes = dict(re.findall(r"('\w+')=(\d+)", on_mesh[1]))
    joined = on_mesh[4].split(',')
    ids = (
      _iota(on_mesh[2], on_mesh[3])
      if on_mesh[2]
      else np.arange(math.prod(map(int, axes.values())))
    ).reshape([int(size) for size in axes.values()])
    places = [list(axes).index(name) for name in joined]
    ids = np.moveaxis(ids, places, range(-len(places), 0))
    return _rows(ids.reshape(-1, math.prod(int(axes[n]) for n in joined)))
  raise ValueError(
    f'The groups of devices of {instruction.name} are written in a way that is '
    f'not known: {found[1][:80]}.'
  )


def _ints(text: str) -> list[int]:
  return [int(n) for n in text.split(',')]


def _iota(dims: str, order: str | None) -> np.ndarray:
  """E.g. [4,2]T(1,0): numbers in that shape, turned."""
  ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
  return ids.transpose(_ints(order)) if order else ids


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
  return tuple(map(tuple, ids.tolist()))


def _arrays(text: str) -> tuple[Array, ...]:
  return tuple(
    Array(
      dtype,
      tuple(int(n) for n in dims.split(',') if n),
      # S(0), the default, is the memory of the device; S(5) is the host's.
      not re.search(r'S\([1-9]', layout),
    )
    for dtype, dims, layout in _ARRAY.findall(text)
  )


def _split(text: str) -> tuple[str, str]:
  """What stands before the parenthesis that closes, and behind it."""
  depth = 1
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return text[: match.start()], text[match.end() :]
  return text, ''
