"""Result rows in long form: what every table and figure is built from."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from me_jax import files, processes
from me_jax.evals.task import Metric

EDIT_TASK = 'edit'  # the task that is about the facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One number about one model state.

  Attributes:
    run: Name of the workdir.
    method: Editing method.
    model: Base model.
    edit_step: Edit steps applied; 0 is the unedited model.
    num_edits: Facts written by then.
    task: 'edit' or a benchmark.
    metric: Unique within the task.
    value: May be infinite or NaN.
    n: Number of items behind it.
    ci_low: Lower end of the 95 % interval, None where there is none.
    ci_high: Upper end.
    state: Fingerprint of the model state.
  """

  run: str
  method: str
  model: str
  edit_step: int
  num_edits: int
  task: str
  metric: str
  value: float
  n: int
  ci_low: float | None = None
  ci_high: float | None = None
  state: str = ''


def rows(
  metrics: Sequence[Metric],
  *,
  run: str,
  method: str,
  model: str,
  edit_step: int,
  num_edits: int,
  task: str,
  state: str,
) -> list[Row]:
  """The rows of one task on one model state."""
  return [
    Row(
      run=run,
      method=method,
      model=model,
      edit_step=edit_step,
      num_edits=num_edits,
      task=task,
      metric=metric.name,
      value=metric.value,
      n=metric.n,
      ci_low=metric.ci_low,
      ci_high=metric.ci_high,
      state=state,
    )
    for metric in metrics
  ]


_NUMBERS = ('value', 'ci_low', 'ci_high')


def read_rows(path: files.PathLike) -> list[Row]:
  """All rows of a results file; none if it does not exist.

  They are the same on all of many processes.

  Raises:
    ValueError: A line is malformed, or has fields that a row has not.
  """
  rows = []
  records = processes.from_first(lambda: files.read_jsonl(path))
  for number, record in enumerate(records, start=1):
    try:
      numbers = {
        k: float(record[k]) for k in _NUMBERS if record.get(k) is not None
      }
      rows.append(Row(**{**record, **numbers}))
    except (TypeError, ValueError, KeyError) as e:
      raise ValueError(
        f'{path}:{number}: not a result row ({e}). Restore the file, or delete '
        'it: rows are made again from the stored samples.'
      ) from e
  return rows


def append_rows(path: files.PathLike, rows: Sequence[Row]) -> None:
  """Appends rows; a number that JSON cannot hold becomes 'inf' or 'nan'."""
  files.append_jsonl(path, map(_to_json, rows))


def replace_rows(path: files.PathLike, rows: Sequence[Row]) -> None:
  """Writes rows in the place of those of the same task and edit step, or after
  all others."""
  new = {(row.edit_step, row.task) for row in rows}
  there = read_rows(path)
  is_old = [(r.edit_step, r.task) in new for r in there]
  first = is_old.index(True) if True in is_old else len(there)
  kept = [r for r, old in zip(there, is_old, strict=True) if not old]
  files.write_jsonl(path, map(_to_json, [*kept[:first], *rows, *kept[first:]]))


def _to_json(row: Row) -> dict[str, Any]:
  return {
    name: str(value)
    if isinstance(value, float) and not math.isfinite(value)
    else value
    for name, value in dataclasses.asdict(row).items()
  }


def table(
  rows: Iterable[Row],
  columns: Sequence[tuple[str, str, str]],
  digits: int = 1,
) -> str:
  """A Markdown table, one line per number of edits.

  Args:
    rows: Of one run.
    columns: Triples (heading, task, metric).
    digits: After the decimal point.
  """
  cells: dict[int, dict[tuple[str, str], Row]] = {}
  for row in rows:
    cells.setdefault(row.num_edits, {})[row.task, row.metric] = row
  heads = ['edits', *(heading for heading, _, _ in columns)]
  lines = [heads, ['--:'] * len(heads)]
  for num_edits, found in sorted(cells.items()):
    line = [_cell(found.get((task, m)), digits) for _, task, m in columns]
    if any(line):
      lines.append([str(num_edits), *line])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def _cell(row: Row | None, digits: int) -> str:
  if row is None:
    return ''
  value = f'{row.value:.{digits}f}'
  if row.ci_low is None or row.ci_high is None:
    return value
  return f'{value} ({row.ci_low:.{digits}f}–{row.ci_high:.{digits}f})'
