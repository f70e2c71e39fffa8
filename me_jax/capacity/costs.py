"""What a compiled program does on each device: FLOPs, bytes, collectives.

XLA's own count takes every loop for one round, so these are counted here, from
the text of the program. FLOPs are those of matrix products.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from me_jax.capacity import chips, compiled_text, traffic
from me_jax.capacity.compiled_text import Computation, Instruction, Program

_COLLECTIVES = frozenset(
  (
    'all-gather',
    'all-reduce',
    'all-to-all',
    'collective-permute',
    'ragged-all-to-all',
    'reduce-scatter',
  )
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """Something that passes between devices.

  Attributes:
    kind: E.g. 'all-reduce'.
    shapes: Of what a device has of it afterwards.
    nbytes: Of that, or of what it has before, whichever is more.
    groups: See `compiled_text.groups`.
    times: How often.
    in_loop: It is in a loop.
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  nbytes: int
  groups: tuple[tuple[int, ...], ...]
  times: int
  in_loop: bool

  def sent(self, devices: int) -> float:
    """Bytes that each of so many devices sends, at least, all times."""
    if self.kind == 'collective-permute':
      return self.times * self.nbytes
    size = len(self.groups[0]) if self.groups else devices
    ways = 2 if self.kind == 'all-reduce' else 1
    return self.times * ways * self.nbytes * (size - 1) / size


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one device.

  Attributes:
    flops: Of matrix products.
    bfloat16_flops: Those of the products of bfloat16 that a TPU does for them.
    nbytes: Read from and written to the device's memory.
    collectives: All.
  """

  flops: int
  bfloat16_flops: int
  nbytes: int
  collectives: tuple[Collective, ...]


def costs(text: str, rounds: int | None = None) -> Costs:
  """The costs of a compiled program.

  Args:
    text: See `compiled_text`.
    rounds: How often its loops go round that end when something they compute
      says so; None if it has none.

  Raises:
    ValueError: It has one, or a product that a library does.
  """
  program = compiled_text.parse(text)
  flops = bfloat16_flops = nbytes = 0
  collectives = []
  for visit in _visits(program, program.entry, rounds):
    i, computation, times = visit.instruction, visit.computation, visit.times
    if i.opcode in ('dot', 'convolution'):
      done = times * _flops(computation, i)
      flops += done
      bfloat16_flops += done * _passes(computation, i)
    if (kind := i.opcode.removesuffix('-start')) in _COLLECTIVES:
      collectives.append(_collective(kind, visit))
    if not visit.in_fusion:
      nbytes += times * traffic.moved(program, computation, i)
  return Costs(flops, bfloat16_flops, nbytes, tuple(collectives))


@dataclasses.dataclass(frozen=True)
class _Visit:
  """An instruction, and how often it is run."""

  instruction: Instruction
  computation: Computation
  times: int
  in_loop: bool
  in_fusion: bool


def _visits(
  program: Program,
  name: str,
  rounds: int | None,
  times: int = 1,
  in_loop: bool = False,
  in_fusion: bool = False,
) -> Iterator[_Visit]:
  """All that is run from a computation on."""
  computation = program.computations[name]
  for i in computation.values():
    yield _Visit(i, computation, times, in_loop, in_fusion)
    again = _rounds(i, rounds) if i.opcode == 'while' else 1
    for inner in _runs(i):
      yield from _visits(
        program,
        inner,
        rounds,
        times * again,
        in_loop or i.opcode == 'while',
        in_fusion or i.opcode == 'fusion',
      )


def _runs(i: Instruction) -> list[str]:
  """The computations that an instruction runs as a whole."""
  match i.opcode:
    case 'while':
      return [i.called('body'), i.called('condition')]
    case 'fusion' | 'async-start':
      return [i.called('calls')]
    case 'call':
      return [i.called('to_apply')]
    case 'conditional':
      # All, though one is run: which, is not known.
      names = re.search(r'\bbranch_computations={([^}]*)}', i.rest)
      return (
        re.findall(r'[\w.\-]+', names[1])
        if names
        else [i.called('true_computation'), i.called('false_computation')]
      )
    case 'custom-call':
      target = re.search(r'custom_call_target="([^"]*)"', i.rest)[1]
      if re.search('gemm|matmul|dnn', target, re.IGNORECASE):
        raise ValueError(
          f'{target} is a product that a library does, whose FLOPs the text '
          'of the program does not tell: costs are counted for TPUs and '
          'processors.'
        )
  return []


def _rounds(i: Instruction, otherwise: int | None) -> int:
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.rest)
  if known is None and otherwise is None:
    raise ValueError(
      f'The loop {i.name} does not say how often it goes round. Give rounds.'
    )
  return int(known[1]) if known else otherwise


def _collective(kind: str, visit: _Visit) -> Collective:
  i = visit.instruction
  before = sum(visit.computation[name].nbytes for name in i.operands)
  # Of these a start gives back what it was given, too.
  gives_back = i.opcode.endswith('-start') and kind != 'all-reduce'
  return Collective(
    kind,
    tuple(array.shape for array in i.arrays),
    max(before, i.nbytes - before * gives_back),
    compiled_text.groups(i),
    visit.times,
    visit.in_loop,
  )


def _passes(computation: Computation, i: Instruction) -> int:
  dtypes = {computation[name].arrays[0].dtype for name in i.operands}
  precision = re.search(r'operand_precision={(\w+)', i.rest)
  return chips.PASSES[precision[1]] if precision and 'f32' in dtypes else 1


def _flops(computation: Computation, i: Instruction) -> int:
  left, right = (computation[name].arrays[0].shape for name in i.operands)
  if i.opcode == 'dot':
    summed = [left[axis] for axis in i.numbers('lhs_contracting_dims')]
    return 2 * math.prod((*i.arrays[0].shape, *summed))
  # TPUs do all products as convolutions, with batch axes as axes of space.
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', i.rest)
  a, b, c = (
    dict(zip(names, shape, strict=True))
    for names, shape in zip(
      labels.groups(), (left, right, i.arrays[0].shape), strict=True
    )
  )
  batch_groups = re.search(r'batch_group_count=(\d+)', i.rest)
  batch = a['b'] // int(batch_groups[1] if batch_groups else 1)
  pairs = math.prod(
    _pairs(i.rest, axis, a[str(axis)], b[str(axis)], c[str(axis)])
    for axis in range(len(a) - 2)
  )
  return 2 * batch * b['i'] * b['o'] * pairs


def _pairs(rest: str, axis: int, inputs: int, window: int, outputs: int) -> int:
  """Inputs that a convolution multiplies along an axis, for all outputs: those
  in the window that are neither padding nor between two others."""

  def setting(name: str, otherwise: int) -> int:
    found = re.search(rf'\bwindow={{[^}}]*\b{name}=([\d_x\-]+)', rest)
    # Of padding, what comes first.
    return int(found[1].split('x')[axis].split('_')[0]) if found else otherwise

  at = (
    np.arange(outputs)[:, None] * setting('stride', 1)
    + np.arange(window) * setting('rhs_dilate', 1)
    - setting('pad', 0)
  )
  place, between = np.divmod(at, setting('lhs_dilate', 1))
  return int(((place >= 0) & (place < inputs) & (between == 0)).sum())
