"""One program on many processes, of which the first reads and writes results.

Every process runs the same Python on one mesh of all their devices. What they
compute is computed together, so all call the same functions in the same order,
and what comes of it is read in whole (`trees.to_host`), the same everywhere.
Results are on the disk of process 0: what is there the others hear from it. In
a program of one process nothing of this takes place.
"""

import functools
import pathlib
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from me_jax import trees

T = TypeVar('T')

# Bytes that are sent at once. Each size is compiled for, so they are few.
_LEAST, _MOST = 1 << 16, 1 << 28


def are_many() -> bool:
  """Whether this is one of several processes; a single one touches no device
  to know."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this process reads and writes results."""
  return not are_many() or jax.process_index() == 0


def meet(mesh: Mesh) -> None:
  """Connects all processes along the axes of a mesh.

  A first meeting of processors is given up after half a minute, later ones are
  not: so this belongs where none is much behind the others.
  """
  for axes in (*mesh.axis_names, mesh.axis_names):
    add_up = jax.shard_map(
      functools.partial(jax.lax.psum, axis_name=axes),
      mesh=mesh,
      in_specs=P(),
      out_specs=P(),
      check_vma=False,
    )
    jax.block_until_ready(jax.jit(add_up)(np.zeros((), np.float32)))


def from_first(make: Callable[[], T]) -> T:
  """What `make` gives on process 0, on all. What it raises there, all raise.

  All processes must call it, and `make` must not call it again.

  Args:
    make: Called on process 0 alone.
  """
  if not are_many():
    return make()
  value, error, content = None, None, b''
  if is_first():
    try:
      value = make()
      content = pickle.dumps((value, None))
    except Exception as e:  # Whatever it is, the others wait for an answer.
      error = e
      content = pickle.dumps((None, _portable(e)))
  sent = _broadcast(content)
  if not is_first():
    # All are processes of one program, so what is sent can be trusted.
    value, error = pickle.loads(sent)
  if error is not None:
    raise error
  return value


def all_see(path: pathlib.Path) -> bool:
  """Whether there is such a file. All processes must ask.

  Raises:
    FileNotFoundError: Some have it and some do not.
  """
  is_there = path.is_file()
  if not are_many():
    return is_there
  seen = multihost_utils.process_allgather(np.asarray(is_there))
  if seen.any() and not seen.all():
    raise FileNotFoundError(
      f'{path} is there for {int(seen.sum())} of {seen.size} processes. All '
      'must read it: put its directory on a file system that they share.'
    )
  return bool(seen.all())


def as_on_first(tree: Any) -> Any:
  """A pytree of arrays with the bits of process 0, on all.

  What each has worked out on its host may differ in the last digit where their
  machines do.
  """
  if not are_many():
    return tree
  arrays = trees.to_host(tree)
  return jax.tree.map(jnp.asarray, from_first(lambda: arrays))


def _broadcast(content: bytes) -> bytes:
  """The content that process 0 gives."""
  # JAX's integers have 32 bits.
  high, low = _send(np.array(divmod(len(content), 1 << 32), np.uint32))
  size = (int(high) << 32) + int(low)
  parts = []
  for start in range(0, size, _MOST):
    length = min(_MOST, size - start)
    padded = np.zeros(max(_LEAST, 1 << (length - 1).bit_length()), np.uint8)
    part = np.frombuffer(content[start : start + length], np.uint8)
    padded[: len(part)] = part
    parts.append(_send(padded)[:length].tobytes())
  return b''.join(parts)


def _send(array: np.ndarray) -> Any:
  return multihost_utils.broadcast_one_to_all(array)


def _portable(error: Exception) -> Exception:
  """An error that others can raise: not all can be sent."""
  try:
    pickle.loads(pickle.dumps(error))
    return error
  except Exception:
    return RuntimeError(f'{type(error).__name__}: {error}')
