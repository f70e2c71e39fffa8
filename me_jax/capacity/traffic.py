"""Bytes that instructions of a compiled program read and write.

Of the memory of the device only: what a fusion passes on inside, or a chip
keeps in memories of its own, is none.
"""

from me_jax.capacity import compiled_text
from me_jax.capacity.compiled_text import Computation, Instruction, Program

# Views; what is known while compiling; and what runs other computations, whose
# instructions are looked at.
_FREE = frozenset(
  (
    'after-all',
    'async-done',
    'async-start',
    'async-update',
    'bitcast',
    'call',
    'conditional',
    'constant',
    'get-tuple-element',
    'opt-barrier',
    'parameter',
    'partition-id',
    'tuple',
    'while',
  )
)
# Of their first operand these read no more than they give,
_READS_PART = frozenset(('dynamic-slice', 'gather', 'slice'))
# and these write, where it is, what the operand of that place holds.
_WRITES_PART = {'dynamic-update-slice': 1, 'scatter': 2}


def moved(program: Program, computation: Computation, i: Instruction) -> int:
  """Bytes that an instruction outside of fusions reads and writes."""
  if i.opcode in _FREE or i.opcode.endswith('-start'):
    return 0
  if i.opcode.endswith('-done'):
    # Its start names where it comes from, and may name all of that for a part.
    start = computation[i.operands[0]]
    is_read = any(_hbm_bytes(computation[name]) for name in start.operands)
    return sum(a.nbytes * (is_read + a.in_hbm) for a in i.arrays)
  read = sum(
    _read(program, computation, i, place) for place in range(len(i.operands))
  )
  return read + _written(program, computation, i)


def _read(
  program: Program, computation: Computation, i: Instruction, place: int
) -> int:
  """Of the operand at a place."""
  whole = _hbm_bytes(computation[i.operands[place]])
  if i.opcode in _READS_PART and place == 0:
    return min(whole, i.nbytes)
  if i.opcode in _WRITES_PART and place == 0:
    return 0
  if i.opcode != 'fusion' or not whole:
    return whole
  inner = program.computations[i.called('calls')]
  number = str(place)
  parameter = next(
    p
    for p in inner.values()
    if p.opcode == 'parameter' and p.operands[0] == number
  )
  return min(whole, _read_by_users(program, inner, parameter))


def _read_by_users(
  program: Program, computation: Computation, i: Instruction
) -> int:
  if i.is_root:  # Whoever gets it from the fusion reads it.
    return i.nbytes
  total = 0
  for user in computation.values():
    for place, name in enumerate(user.operands):
      if name == i.name and user.opcode != 'parameter':
        total += (
          _read_by_users(program, computation, user)
          if user.opcode == 'bitcast'
          else _read(program, computation, user, place)
        )
  return total


def _written(program: Program, computation: Computation, i: Instruction) -> int:
  if i.opcode in _WRITES_PART:
    part = computation[i.operands[_WRITES_PART[i.opcode]]]
    return part.nbytes if _hbm_bytes(i) else 0
  if i.opcode != 'fusion':
    return _hbm_bytes(i)
  inner = program.computations[i.called('calls')]
  last = compiled_text.root(inner)
  givers = (
    [inner[name] for name in last.operands]
    if last.opcode == 'tuple'
    else [last]
  )
  if len(givers) != len(i.arrays):  # It gives a tuple from further inside.
    return _hbm_bytes(i)
  return sum(
    _part_or_all(inner, giver)
    for giver, array in zip(givers, i.arrays, strict=True)
    if array.in_hbm
  )


def _part_or_all(computation: Computation, i: Instruction) -> int:
  """Bytes that one output of a fusion takes to write."""
  while i.opcode == 'bitcast':
    i = computation[i.operands[0]]
  if i.opcode in _WRITES_PART:
    i = computation[i.operands[_WRITES_PART[i.opcode]]]
  return i.nbytes


def _hbm_bytes(i: Instruction) -> int:
  return sum(array.nbytes for array in i.arrays if array.in_hbm)
