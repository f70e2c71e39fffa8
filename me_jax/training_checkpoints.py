"""Checkpoints of a training: the newest state, and what goes with it."""

import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from me_jax import files

_FULL_BELOW = 16 << 20  # bytes free; Orbax reports a full disk in many words
_SHOWN = 200  # characters of a storage error


class TrainingCheckpoints:
  """The last two states of a training, in a directory."""

  def __init__(self, directory: files.PathLike):
    """Opens or creates the directory; unfinished saves are cleaned up."""
    self._directory = pathlib.Path(directory).absolute()
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
      ),
    )

  def save(self, iteration: int, state: Any, record: dict[str, Any]) -> None:
    """Writes a state, completely or not at all.

    Args:
      iteration: Larger than any saved before.
      state: A pytree of arrays.
      record: JSON values.

    Raises:
      OSError: The disk is full; earlier states are intact.
    """
    try:
      self._manager.save(
        iteration,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        ),
      )
      self._manager.wait_until_finished()
    except Exception as e:
      if shutil.disk_usage(self._directory).free < _FULL_BELOW:
        full = OSError(28, 'No space left on device')
        raise files.explained(full, self._directory / str(iteration)) from e
      raise

  def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Iteration, state and record of the newest; None if there is none.

    Args:
      like: A state of the same structure, shapes and dtypes, which lies where
        the newest is to lie.

    Raises:
      ValueError: It is damaged, or of another structure.
    """
    iteration = self._manager.latest_step()
    if iteration is None:
      return None
    abstract = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
      like,
    )
    try:
      found = self._manager.restore(
        iteration,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          record=ocp.args.JsonRestore(),
        ),
      )
    except Exception as e:  # Orbax raises whatever its backends raise.
      raise ValueError(
        f'{self._directory / str(iteration)} is damaged '
        f'({f"{type(e).__name__}: {e}"[:_SHOWN]}). Delete that directory: '
        'the training goes on from the one before, or from the start.'
      ) from e
    return iteration, found['state'], found['record']

  def close(self) -> None:
    """Lets go of Orbax's threads."""
    self._manager.close()
