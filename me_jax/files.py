"""Durable files: a reader never sees half of what a writer wrote.

Whole files are replaced atomically. Logs (`.jsonl`) are only ever appended to;
the torn last line that a killed process may leave is dropped on the next read
and cut off before the next append. What others watch while it grows is
extended. Of many processes (see `processes`) the first writes, and calls of the
others do nothing; only `replace` writes on each.
"""

import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from me_jax import processes

PathLike = str | os.PathLike


def canonical_json(value: Any) -> str:
  """One text per value: sorted keys, no blanks, no NaN."""
  return json.dumps(
    value,
    sort_keys=True,
    separators=(',', ':'),
    ensure_ascii=False,
    allow_nan=False,
  )


def short_hash(value: Any) -> str:
  """16 hex digits that stand for a JSON value."""
  return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def write_atomic(path: PathLike, content: str | bytes) -> None:
  """Replaces the file `path` by `content`, or leaves it as it was.

  Raises:
    OSError: The disk is full or not writable; the message says what to do.
  """
  if processes.is_first():
    replace(path, content)


def replace(path: PathLike, content: str | bytes) -> None:
  """`write_atomic`, for a file that each process reads on its own machine."""
  path = pathlib.Path(path)
  data = content.encode() if isinstance(content, str) else content
  # One name per process: two writers must not share a temporary file.
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, path)
  except OSError as e:
    partial.unlink(missing_ok=True)
    raise explained(e, path) from e


def extend(path: PathLike, content: bytes) -> None:
  """Appends to the file `path` what it lacks of `content`.

  A file that does not begin like `content` is replaced; see `write_atomic`.

  Raises:
    OSError: The disk is full or not writable; the message says what to do.
  """
  if not processes.is_first():
    return
  path = pathlib.Path(path)
  stored = path.read_bytes() if path.is_file() else b''
  if not stored or not content.startswith(stored):
    write_atomic(path, content)
    return
  try:
    with open(path, 'ab') as f:
      f.write(content[len(stored) :])
      f.flush()
      os.fsync(f.fileno())
  except OSError as e:
    raise explained(e, path) from e


def write_jsonl(path: PathLike, records: Iterable[Mapping[str, Any]]) -> None:
  """Replaces a file by one line per record; see `write_atomic`."""
  write_atomic(path, _lines(records))


def append_jsonl(path: PathLike, records: Iterable[Mapping[str, Any]]) -> None:
  """Appends one line per record and returns when they are on the disk.

  Raises:
    OSError: The disk is full or not writable; the message says what to do.
      Lines appended earlier stay intact.
  """
  path = pathlib.Path(path)
  lines = _lines(records)
  if not lines or not processes.is_first():
    return
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_line(path)
    with open(path, 'ab') as f:
      f.write(lines.encode())
      f.flush()
      if path.is_file():
        os.fsync(f.fileno())
  except OSError as e:
    raise explained(e, path) from e


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
  """The records of a log; none if the file does not exist.

  A last line without a newline is what a killed process left: it is ignored.

  Raises:
    ValueError: Any other line is not a JSON object; names file and line.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  records = []
  *lines, _torn = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
    except ValueError as e:
      raise ValueError(
        f'{path}:{number}: expected one JSON object a line, found '
        f'{line[:60]!r} ({e}). The file was damaged; restore it, or delete it '
        'to have its contents computed again.'
      ) from e
    if not isinstance(record, dict):
      raise ValueError(
        f'{path}:{number}: expected a JSON object, found '
        f'{type(record).__name__}.'
      )
    records.append(record)
  return records


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
  return ''.join(
    json.dumps(r, ensure_ascii=False, allow_nan=False) + '\n' for r in records
  )


def explained(error: OSError, path: PathLike) -> OSError:
  """The same error, saying what it means for the run and what to do."""
  if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    advice = (
      'the disk is full. What was written before is intact: free some space '
      'and run the same command again, it resumes.'
    )
  elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    advice = 'no permission to write there. Choose another directory.'
  else:
    advice = error.strerror or str(error)
  return OSError(error.errno, f'Could not write {path}: {advice}')


def _cut_torn_line(path: pathlib.Path) -> None:
  if not path.is_file() or path.stat().st_size == 0:
    return
  with open(path, 'r+b') as f:
    f.seek(-1, os.SEEK_END)
    if f.read(1) == b'\n':
      return
    f.seek(0)
    content = f.read()
    f.truncate(content.rfind(b'\n') + 1)
