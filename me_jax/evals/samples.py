"""The log of one task on one model state, one JSON record per item.

A record says which weights, which prompt and which version of the task it
belongs to, so a stored answer can never be taken for that of another model or
another question. Of the weights it holds the run's name for them and a checksum
of the arrays that were asked.

While a task is asked, records are only ever appended; when it is done, they are
written once more in the order of the items.
"""

import pathlib
from collections.abc import Sequence
from types import TracebackType

from me_jax import files, processes
from me_jax.evals.task import Item, Record

_KEYS = (
  'doc_id',
  'version',
  'prompt_hash',
  'decode',
  'state_fingerprint',
  'state_checksum',
)


def read_samples(
  path: files.PathLike,
  *,
  state_fingerprint: str | None,
  state_checksum: str | None = None,
) -> dict[str, Record]:
  """The records by doc_id, the same on all of many processes.

  Args:
    path: The log.
    state_fingerprint: Of the weights that are asked about; None if any will
      do, as long as it is one.
    state_checksum: Of their arrays, `trees.checksum`; None as above.

  Raises:
    ValueError: The log is damaged, is of other weights, or holds an item
      twice.
  """
  stored: dict[str, Record] = {}
  records = processes.from_first(lambda: files.read_jsonl(path))
  for number, record in enumerate(records, start=1):
    where = f'{pathlib.Path(path)}:{number}'
    missing = set(_KEYS) - set(record)
    if missing:
      raise ValueError(
        f'{where}: the record lacks {", ".join(sorted(missing))}. Delete the '
        'file to have its items computed again.'
      )
    state_fingerprint = state_fingerprint or record['state_fingerprint']
    state_checksum = state_checksum or record['state_checksum']
    check_field(record, 'state_fingerprint', state_fingerprint, where)
    check_field(record, 'state_checksum', state_checksum, where)
    if record['doc_id'] in stored:
      raise ValueError(
        f'{where}: item {record["doc_id"]!r} is recorded twice. Two runs '
        'wrote to the file at once; delete it to have its items computed '
        'again.'
      )
    stored[record['doc_id']] = record
  return stored


def state_of(path: files.PathLike) -> str:
  """Fingerprint of the state that a log's answers come from."""
  stored = read_samples(path, state_fingerprint=None)
  return next(iter(stored.values()))['state_fingerprint']


def check_field(
  record: Record, field: str, expected: object, where: files.PathLike
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


def put_in_order(
  path: files.PathLike, items: Sequence[Item], stored: dict[str, Record]
) -> None:
  """Writes the finished log again in the order of the items, so that it does
  not show when and how often its run was interrupted."""
  chosen = {item.id: stored[item.id] for item in items}
  in_order = chosen | stored
  if list(in_order) != list(stored):
    files.write_jsonl(path, in_order.values())


class SampleWriter:
  """Appends records in groups; leaving the context writes the rest."""

  def __init__(self, path: files.PathLike, flush_every: int):
    """Binds a log; every so many records it waits for the disk."""
    self._path = path
    self._flush_every = flush_every
    self._waiting: list[Record] = []

  def add(self, record: Record) -> None:
    """Takes a record; it is on the disk `flush_every` records later at most."""
    self._waiting.append(record)
    if len(self._waiting) >= self._flush_every:
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
