"""The answers of unedited models, kept for all runs that begin with them.

A file holds all answers of one task by one model: its name is a hash of the
model, of its arrays and of everything that is asked, and what it holds is
checked against them when it is read. Deleting it costs time, no numbers.
"""

import pathlib

from me_jax import files, processes, trees
from me_jax.evals.runner import Selection
from me_jax.typing import ModelState


class UneditedAnswers:
  """A directory of them."""

  def __init__(self, directory: files.PathLike, fingerprint: str):
    """Binds a directory, which need not exist, and a model's fingerprint."""
    self._directory = pathlib.Path(directory)
    self._fingerprint = fingerprint

  def fetch(
    self, selection: Selection, state: ModelState, log: pathlib.Path
  ) -> pathlib.Path:
    """Puts the answers in place as a log, if they are there and it is not.

    Returns:
      Where they are, or would be: what `keep` wants.
    """
    kept = self._path(selection, state)
    if processes.is_first() and kept.is_file() and not log.exists():
      files.write_atomic(log, kept.read_bytes())
    return kept

  def keep(self, kept: pathlib.Path, log: pathlib.Path) -> None:
    """Keeps a finished log for other runs."""
    if processes.is_first() and not kept.exists():
      files.write_atomic(kept, log.read_bytes())

  def _path(self, selection: Selection, state: ModelState) -> pathlib.Path:
    asked = [[item.id for item in selection.items], selection.keys]
    name = files.short_hash([self._fingerprint, trees.checksum(state), asked])
    return self._directory / selection.task.name / f'{name}.jsonl'
