"""The log of one task on one model state, one JSON record per item.

A record says which weights and which prompt it belongs to, so a stored answer
can never be taken for that of another model or another question.
"""

import pathlib
from types import TracebackType

from me_jax import files
from me_jax.evals.task import Sample

_FLUSH_EVERY = 16  # records; each flush waits for the disk


def read_samples(
  path: files.PathLike, *, state_fingerprint: str
) -> dict[str, Sample]:
  """The records by doc_id.

  Raises:
    ValueError: The log is damaged, is of other weights, or holds an item
      twice.
  """
  stored: dict[str, Sample] = {}
  for number, record in enumerate(files.read_jsonl(path), start=1):
    where = f'{pathlib.Path(path)}:{number}'
    missing = {'doc_id', 'prompt_hash', 'state_fingerprint'} - set(record)
    if missing:
      raise ValueError(
        f'{where}: the record lacks {", ".join(sorted(missing))}. Delete the '
        'file to have its items computed again.'
      )
    check_field(record, 'state_fingerprint', state_fingerprint, where)
    if record['doc_id'] in stored:
      raise ValueError(
        f'{where}: item {record["doc_id"]!r} is recorded twice. Two runs '
        'wrote to the file at once; delete it to have its items computed '
        'again.'
      )
    stored[record['doc_id']] = record
  return stored


def check_field(
  record: Sample, field: str, expected: str, where: files.PathLike
) -> None:
  """Returns if the stored record belongs to this run.

  Raises:
    ValueError: `record[field]` is not `expected`.
  """
  if record[field] != expected:
    raise ValueError(
      f'{where}: item {record["doc_id"]!r} was stored with {field} '
      f'{record[field]!r}, this run has {expected!r}. Give this run a '
      'directory of its own, or delete the file.'
    )


class SampleWriter:
  """Appends records in groups; leaving the context writes the rest."""

  def __init__(self, path: files.PathLike):
    self._path = path
    self._waiting: list[Sample] = []

  def add(self, record: Sample) -> None:
    """Takes a record; it is on the disk a few records later at most."""
    self._waiting.append(record)
    if len(self._waiting) >= _FLUSH_EVERY:
      self._flush()

  def __enter__(self) -> 'SampleWriter':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._flush()

  def _flush(self) -> None:
    waiting, self._waiting = self._waiting, []
    files.append_jsonl(self._path, waiting)
