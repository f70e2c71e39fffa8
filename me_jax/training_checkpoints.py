"""Checkpoints of a training: the newest state, and what goes with it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from me_jax import files, orbax_store, processes, trees


class TrainingCheckpoints:
  """The last two states of a training, in a directory.

  Of many processes the first one writes and reads, and all must call.
  """

  def __init__(self, directory: files.PathLike):
    """Opens or creates the directory; unfinished saves are cleaned up."""
    self._directory = pathlib.Path(directory).absolute()
    self._store: ocp.CheckpointManager | None = None  # of the first process
    processes.from_first(self._open)

  def _open(self) -> None:
    self._store = orbax_store.open_store(self._directory, max_to_keep=2)

  def save(self, iteration: int, state: Any, record: dict[str, Any]) -> None:
    """Writes a state, completely or not at all.

    Args:
      iteration: Larger than any saved before.
      state: A pytree of arrays.
      record: JSON values.

    Raises:
      OSError: The disk is full; earlier states are intact.
    """
    items = {
      'state': ocp.args.StandardSave(trees.to_host(state)),
      'record': ocp.args.JsonSave(record),
    }
    processes.from_first(
      lambda: orbax_store.save(self._store, iteration, items)
    )

  def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Iteration, state and record of the newest; None if there is none.

    Args:
      like: A state of the same structure, shapes and dtypes.

    Raises:
      ValueError: It is damaged, or of another structure.
    """
    found = processes.from_first(lambda: self._read(like))
    if found is None:
      return None
    iteration, leaves, record = found
    # Not bound to the device they were read to: the model may lie on a mesh.
    state = jax.tree.unflatten(
      jax.tree.structure(like), map(jnp.asarray, leaves)
    )
    return iteration, state, record

  def _read(self, like: Any) -> tuple[int, list[Any], dict[str, Any]] | None:
    """The newest, its state as NumPy arrays in the order of leaves."""
    iteration = self._store.latest_step()
    if iteration is None:
      return None
    abstract = jax.tree.map(
      lambda a: orbax_store.abstract(a.shape, a.dtype), like
    )
    try:
      found = self._store.restore(
        iteration,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          record=ocp.args.JsonRestore(),
        ),
      )
      return (
        iteration,
        jax.device_get(jax.tree.leaves(found['state'])),
        found['record'],
      )
    except Exception as e:  # Orbax raises whatever its backends raise.
      raise ValueError(
        f'{self._directory / str(iteration)} is damaged '
        f'({orbax_store.reason(e)}). Delete that directory: '
        'the training goes on from the one before, or from the start.'
      ) from e

  def close(self) -> None:
    """Lets go of Orbax's threads."""
    if self._store is not None:
      self._store.close()
