"""Arrays that lie in parts on several processes, read some rows at a time."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

# Of a slab, about. Larger ones stay with the allocator when they are freed.
_BYTES = 1 << 22


def slabs(array: Array) -> Iterator[np.ndarray]:
  """The bits of an array [R, ...], rows after rows, the same on each process.

  All must ask, and none holds more of it at a time than a slab and its copies.
  Bits are unsigned integers, which stay as they are when zeros are added.

  Args:
    array: One axis of it is cut along an axis of a mesh.
  """
  mesh, spec = array.sharding.mesh, array.sharding.spec
  parts = mesh.shape[spec[0]] if spec[0] else 1
  rows = len(array) // parts
  size = min(rows, max(1, _BYTES * len(array) // array.nbytes))
  for part in range(parts):
    for first in range(0, rows, size):
      # The last has as many rows as the others, some of them once more.
      start = min(first, rows - size)
      where = np.array([part, start], np.int32)
      slab = _slab(array, where, mesh=mesh, spec=spec, size=size)
      yield np.asarray(slab)[first - start :]


@functools.partial(jax.jit, static_argnames=('mesh', 'spec', 'size'))
def _slab(
  array: Array, where: Array, *, mesh: Mesh, spec: P, size: int
) -> Array:
  """Some rows of one part, where rows are cut, else of all parts."""

  def local(block, where):
    part, start = where
    bits = jax.lax.bitcast_convert_type(
      block, jnp.dtype(f'uint{8 * block.dtype.itemsize}')
    )
    slab = jax.lax.dynamic_slice_in_dim(bits, start, size)
    if spec[0]:
      is_here = jax.lax.axis_index(spec[0]) == part
      return jax.lax.psum(jnp.where(is_here, slab, 0), spec[0])
    cut = next(i for i, name in enumerate(spec) if name)
    return jax.lax.all_gather(slab, spec[cut], axis=cut, tiled=True)

  return jax.shard_map(
    local, mesh=mesh, in_specs=(spec, P()), out_specs=P(), check_vma=False
  )(array, where)
