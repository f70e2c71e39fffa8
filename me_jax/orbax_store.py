"""Orbax's store of numbered steps, as one process of many keeps it.

The first process writes and reads, each step completely or not at all. What it
stores is small enough to be whole on each of them.
"""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from me_jax import files

_FULL_BELOW = 16 << 20  # bytes free; Orbax reports a full disk in many words
_SHOWN = 200  # characters of a storage error


class _Store(ocp.CheckpointManager):
  """One that leaves preemption alone: Orbax would ask for it on the first
  process only, by the number of a step, where `preemption` counts its own."""

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def open_store(
  directory: pathlib.Path, max_to_keep: int | None = None
) -> ocp.CheckpointManager:
  """Opens or creates a store; unfinished saves are cleaned up.

  Args:
    directory: Where the steps are.
    max_to_keep: The newest so many; None for all.
  """
  directory.mkdir(parents=True, exist_ok=True)
  return _Store(
    directory,
    options=ocp.CheckpointManagerOptions(
      create=False,  # Orbax would, but not for one of many processes.
      max_to_keep=max_to_keep,
      enable_async_checkpointing=False,
      cleanup_tmp_directories=True,
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}
      ),
    ),
  )


def save(
  store: ocp.CheckpointManager, step: int, items: dict[str, Any]
) -> None:
  """Writes a step and returns when it is on the disk.

  Args:
    store: Where.
    step: Larger than any there.
    items: By name Orbax's arguments, with NumPy arrays: it takes none of JAX's
      that is one process's own.

  Raises:
    OSError: The disk is full; earlier steps are intact.
  """
  directory = pathlib.Path(store.directory)
  try:
    store.save(step, args=ocp.args.Composite(**items))
    store.wait_until_finished()
  except Exception as e:
    if shutil.disk_usage(directory).free < _FULL_BELOW:
      full = OSError(28, 'No space left on device')
      raise files.explained(full, directory / str(step)) from e
    raise


def abstract(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
  """An array that is to be restored, to a device of this process."""
  here = SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(shape, dtype, sharding=here)


def reason(error: Exception) -> str:
  """Why a step cannot be read; the rest is the storage's own settings."""
  return f'{type(error).__name__}: {error}'[:_SHOWN]
