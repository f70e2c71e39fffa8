"""Parameters in an Orbax checkpoint, read one at a time.

For whoever needs a few matrices of a model that is too large to load.
"""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import orbax.checkpoint as ocp

from me_jax import files, trees
from me_jax.models import checkpoint
from me_jax.typing import ParamPath


class CheckpointLeaves(Mapping[ParamPath, np.ndarray]):
  """The leaves of a checkpoint of `save_orbax`, by path.

  Each look-up reads that leaf, and nothing else, from the disk; nothing is
  kept. So the fingerprint, which takes all leaves, is not verified.
  """

  def __init__(self, directory: files.PathLike):
    """Reads which leaves there are.

    Args:
      directory: Where the model is.

    Raises:
      FileNotFoundError: There is no finished checkpoint.
      ValueError: It is damaged.
    """
    directory = pathlib.Path(directory).absolute()
    if not checkpoint.is_checkpoint(directory):
      raise FileNotFoundError(
        f'{directory} is no finished checkpoint of a model. Save the model '
        'with me_jax.models.load.save_orbax.'
      )
    self._directory = directory
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(directory / 'params')
      self._paths = tuple(trees.flatten(metadata.item_metadata.tree))
    # Orbax passes on whatever its storage raises, bare Exception included.
    except Exception as e:
      raise ValueError(self._damaged(e)) from e

  def __getitem__(self, path: ParamPath) -> np.ndarray:
    """The leaf, in the dtype it is stored in.

    Raises:
      KeyError: There is none.
      ValueError: It is damaged.
    """
    if path not in self._paths:
      # Names the nearest paths.
      trees.get(trees.unflatten(dict.fromkeys(self._paths)), path)
    restore = ocp.args.PyTreeRestore(
      item=trees.unflatten({path: 0}),
      restore_args=trees.unflatten(
        {path: ocp.RestoreArgs(restore_type=np.ndarray)}
      ),
      partial_restore=True,
    )
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(self._directory / 'params', args=restore)
    except Exception as e:
      raise ValueError(self._damaged(e)) from e
    return trees.get(found, path)

  def __iter__(self) -> Iterator[ParamPath]:
    """All paths, sorted."""
    return iter(self._paths)

  def __len__(self) -> int:
    """Number of leaves."""
    return len(self._paths)

  def _damaged(self, error: Exception) -> str:
    return (
      f'The checkpoint {self._directory} is damaged. Delete the directory and '
      f'save or copy the model again (params: {str(error)[:300]}).'
    )
