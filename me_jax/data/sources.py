"""Where data files come from: two local roots, then the public hub.

Below a root the layout is one folder per corpus: `zsre/`, `counterfact/`,
`mmlu/`, `commonsenseqa/`, `wikitext/`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from me_jax import files

Records = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubFile:
  """One file of a public data set repository.

  Attributes:
    repo: Hub id of the data set, e.g. 'zjunlp/KnowEdit'.
    filename: Path inside the repository.
    revision: Branch, tag or commit.
  """

  repo: str
  filename: str
  revision: str = 'main'

  def fetch(self, relative_path: str) -> pathlib.Path:
    """The downloaded file, from the hub's own cache if it is there."""
    # Only a run without local data pays for importing the hub clients.
    import huggingface_hub

    del relative_path
    path = huggingface_hub.hf_hub_download(
      self.repo, self.filename, repo_type='dataset', revision=self.revision
    )
    return pathlib.Path(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubTable:
  """Rows of a public data set, to be written as the file they stand for.

  Attributes:
    repo: Hub id of the data set, e.g. 'cais/mmlu'.
    split: Split expression, e.g. 'test' or 'train+test'.
    to_text: The content of the expected file from the rows.
    config: Configuration of the data set, if it has several.
    revision: Branch, tag or commit.
  """

  repo: str
  split: str
  to_text: Callable[[Iterable[Mapping[str, Any]]], str]
  config: str | None = None
  revision: str = 'main'

  def fetch(self, relative_path: str) -> pathlib.Path:
    """The rows as a file, written once beside the cache of `datasets`."""
    import datasets

    cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE) / 'me_jax'
    path = cache / self.repo / self.revision / relative_path
    if not path.is_file():
      rows = datasets.load_dataset(
        self.repo, self.config, split=self.split, revision=self.revision
      )
      files.replace(path, self.to_text(rows))
    return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSources:
  """Finds data files.

  Attributes:
    data_root: Looked at first.
    env_root: Looked at next; what `$ME_JAX_DATA` says.
    allow_hub: Whether the public hub may be asked last.
  """

  data_root: pathlib.Path | None = None
  env_root: pathlib.Path | None = None
  allow_hub: bool = True

  def is_local(self, relative_path: str) -> bool:
    """Whether the file need not come from the hub."""
    roots = (self.data_root, self.env_root)
    return any(
      root is not None and (pathlib.Path(root) / relative_path).is_file()
      for root in roots
    )

  def find(
    self, relative_path: str, hub: HubFile | HubTable | None = None
  ) -> pathlib.Path:
    """Path of the first `relative_path` found: local roots, then `hub`.

    Raises:
      FileNotFoundError: It is nowhere; names the file, the places looked at
        and what to do, and gives the hub's own reason.
    """
    looked_at = []
    for label, root in (
      ('data_root', self.data_root),
      ('$ME_JAX_DATA', self.env_root),
    ):
      if root is None:
        looked_at.append(f'{label}: not set')
        continue
      path = pathlib.Path(root) / relative_path
      if path.is_file():
        return path
      looked_at.append(f'{label}: no file {path}')
    cause = None
    if hub is None:
      looked_at.append('hub: does not have this file')
    elif not self.allow_hub:
      looked_at.append(f'hub: {hub.repo} not asked, as configured')
    else:
      try:
        return hub.fetch(relative_path)
      # Whatever goes wrong there (network, login, disk), the answer to the
      # caller is the same: the file is not at hand, for this reason.
      except Exception as e:
        cause = e
        looked_at.append(f'hub: {hub.repo}: {type(e).__name__}: {e}')
    raise FileNotFoundError(
      f'Expected the data file {relative_path}. Looked at: '
      + '; '.join(looked_at)
      + f'. Put it at <root>/{relative_path} and give that root as '
      '--data_root or $ME_JAX_DATA.'
    ) from cause


def read_json(path: files.PathLike) -> Records:
  """The records of a JSON file that holds one list of objects.

  Raises:
    ValueError: The file is empty or malformed, or not such a list; names the
      file, the line or record, and the reason.
  """
  text = _text(path)
  try:
    records = json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(
      f'{path}:{e.lineno}:{e.colno}: not valid JSON: {e.msg}. Restore the file.'
    ) from e
  if not isinstance(records, list) or not records:
    raise ValueError(
      f'{path}: expected a list of records, found '
      f'{"an empty list" if records == [] else type(records).__name__}.'
    )
  for index, record in enumerate(records):
    _check_object(record, f'{path}: record {index}')
  return records


def read_jsonl(path: files.PathLike) -> Records:
  """The records of a file with one JSON object a line.

  Unlike a log, a data file has no torn last line: every line must parse.

  Raises:
    ValueError: The file is empty or a line is malformed; names the file, the
      line and the reason.
  """
  records = []
  # Not splitlines: it also splits at U+2028, which JSON allows in strings.
  for number, line in enumerate(_text(path).rstrip().split('\n'), start=1):
    try:
      record = json.loads(line)
    except json.JSONDecodeError as e:
      raise ValueError(
        f'{path}:{number}: expected one JSON object a line, found '
        f'{line[:60]!r}: {e.msg}. Restore the file.'
      ) from e
    _check_object(record, f'{path}:{number}')
    records.append(record)
  return records


def field(
  record: Mapping[str, Any], name: str, kind: type | tuple, *, where: str
) -> Any:
  """`record[name]`, which must be of `kind`.

  Args:
    record: One object of a data file.
    name: The field.
    kind: What `isinstance` must say of it.
    where: File and index of the record, for the message.

  Raises:
    ValueError: The field is missing or of another kind.
  """
  if name not in record:
    raise ValueError(
      f'{where}: no field {name!r}; it has {sorted(record)}. Is this the '
      'file format that was asked for?'
    )
  value = record[name]
  if not isinstance(value, kind):
    kinds = kind if isinstance(kind, tuple) else (kind,)
    raise ValueError(
      f'{where}: field {name!r} must be '
      f'{" or ".join(k.__name__ for k in kinds)}, found {value!r:.60}.'
    )
  return value


def strings(
  record: Mapping[str, Any], name: str, *, where: str
) -> tuple[str, ...]:
  """`record[name]`, which must be a list of texts.

  Raises:
    ValueError: The field is missing or holds something else.
  """
  values = field(record, name, list, where=where)
  for value in values:
    if not isinstance(value, str):
      raise ValueError(
        f'{where}: field {name!r} must be a list of texts, found {value!r:.60} '
        'in it.'
      )
  return tuple(values)


def _text(path: files.PathLike) -> str:
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path}: not UTF-8 text at byte {e.start}: {e.reason}. Restore the file.'
    ) from e
  if not text.strip():
    raise ValueError(f'{path}: the file is empty. Restore it.')
  return text


def _check_object(record: Any, where: str) -> None:
  if not isinstance(record, dict):
    raise ValueError(
      f'{where}: expected a JSON object, found {type(record).__name__}.'
    )
