"""What a function needs and takes on a mesh, at best.

The bound of a roofline: the time that the dearest of three takes alone, matrix
products, memory and links between chips, were all else free. Nothing is
measured.
"""

import dataclasses
import re

import jax
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.capacity import costs as costs_lib
from me_jax.capacity import functions
from me_jax.capacity.chips import Chip
from me_jax.capacity.costs import Costs
from me_jax.capacity.functions import Call
from me_jax.capacity.setting import Setting


class TooLarge(Exception):
  """What is compiled does not fit a device; says what the compiler said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """Of one call on one device.

  Attributes:
    mesh: Where.
    arguments: Bytes of what it is given, weights included.
    temporaries: Bytes that it needs besides, its code included.
    outputs: Bytes of what it gives that does not lie where arguments lay.
    costs: What it does.
    gathered: Parameters that are put together from their parts.
    amount: How many all devices do in the call,
    unit: of what.
  """

  mesh: Mesh
  arguments: int
  temporaries: int
  outputs: int
  costs: Costs
  gathered: tuple[str, ...]
  amount: int
  unit: str

  @property
  def memory(self) -> int:
    """Bytes in all."""
    return self.arguments + self.temporaries + self.outputs

  def seconds(self, chip: Chip) -> dict[str, float]:
    """What each of the three takes at best."""
    sent = sum(c.sent(self.mesh.size) for c in self.costs.collectives)
    return {
      'products': self.costs.bfloat16_flops / chip.peak,
      'memory': self.costs.nbytes / chip.hbm_bandwidth,
      'links': sent / chip.ici_bandwidth,
    }


def estimate(at: Setting, name: str, effort: float) -> Estimate:
  """Compiles a function.

  Args:
    at: The model and where it lies.
    name: One of `functions.FUNCTIONS`.
    effort: Of the compiler, -1 to 0, JAX's own. With the least FLOPs and
      collectives are the same, but more passes through memory.

  Raises:
    TooLarge: The compiler found no room for it.
    ValueError: The text of the compiled program cannot be counted.
  """

  def compile_(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    return lowered.compile({'exec_time_optimization_effort': effort})

  try:
    function = functions.FUNCTIONS[name]
    call = function.call(at, function.params(at), compile_)
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    used = re.search(r'Used \S+ of \S+ hbm', str(e))
    raise TooLarge(used[0] if used else str(e).splitlines()[0]) from e
  return _of(at, call)


def gathered_parameters(at: Setting, costs: Costs) -> tuple[str, ...]:
  """Cut parameters that have the shape of something gathered."""
  plain = lambda shape: sorted(n for n in shape if n > 1)
  found = [
    plain(shape)
    for c in costs.collectives
    if c.kind == 'all-gather'
    for shape in c.shapes
  ]
  return tuple(
    path
    for path, leaf in trees.flatten(at.params).items()
    if not leaf.sharding.is_fully_replicated and plain(leaf.shape) in found
  )


def crosses_data(mesh: Mesh, collective: costs_lib.Collective) -> bool:
  """Whether groups of devices along 'data' wait for one another in it."""
  parts = mesh.shape[sharding.MODEL]
  groups = collective.groups or (tuple(range(mesh.size)),)
  return any(len({device // parts for device in g}) > 1 for g in groups)


def _of(at: Setting, call: Call) -> Estimate:
  memory = [part.program.memory_analysis() for part in call.parts]
  each = [
    costs_lib.costs(part.program.as_text(), part.rounds) for part in call.parts
  ]
  costs = Costs(
    sum(c.flops for c in each),
    sum(c.bfloat16_flops for c in each),
    sum(c.nbytes for c in each),
    tuple(one for c in each for one in c.collectives),
  )
  # Parts follow one another: the largest is what needs room.
  largest = max(
    memory, key=lambda m: m.argument_size_in_bytes + m.temp_size_in_bytes
  )
  return Estimate(
    mesh=at.mesh,
    arguments=largest.argument_size_in_bytes,
    temporaries=largest.temp_size_in_bytes
    + largest.generated_code_size_in_bytes,
    outputs=largest.output_size_in_bytes - largest.alias_size_in_bytes,
    costs=costs,
    gathered=gathered_parameters(at, costs),
    amount=call.amount,
    unit=call.unit,
  )
