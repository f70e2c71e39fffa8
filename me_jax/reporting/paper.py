"""The numbers of the paper that this project follows, on LLaMA-2-7B."""

import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from me_jax.reporting.labels import method_name
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.table import Cell, Line, Table


def numbers() -> dict[str, Any]:
  """All of them: see `paper.json`.

  `model` is whose they are, `presets` by which names a run has that model,
  `scorer` who judged its text, `layers` which layers of it were edited.
  `benchmarks` and `facts`: by method, number of edits and column, where
  'avg' is the mean as printed. `adjusted_perplexity`: ROME's, by layer and
  number of edits; null where no answer qualifies. `grace_eps` and
  `grace_layer`: after 100 edits, by radius and by layer.
  """
  source = importlib.resources.files('me_jax.reporting') / 'paper.json'
  return json.loads(source.read_text(encoding='utf-8'))


def has_model(run: MeasuredRun) -> bool:
  """Whether the run is of the paper's model."""
  return run.model in numbers()['presets']


def is_table_1(run: MeasuredRun) -> bool:
  """Whether Tables 1 and 2 have this very setting: the paper's model, method
  and layers, one fact at a time."""
  layers = numbers()['layers'].get(run.method['name'])
  return (
    has_model(run)
    and run.config.get('edit_batch_size', 1) == 1
    and not method_name(run.method).endswith('w/o C')
    and (layers is None or not run.layers or list(run.layers) == layers)
  )


def cell(there: Mapping[str, Any], column: str) -> Cell | str | None:
  """A number with the digits it was printed with; '/' as printed."""
  if column not in there:
    return None
  value = there[column]
  if value is None:
    return '/'
  return Cell(float(value), digits=len(str(value).partition('.')[2]))


def name(method: str) -> str:
  """Of a line of the paper's numbers between ours."""
  return f'paper ({numbers()["model"]}): {method_name({"name": method})}'


def line(
  method: str,
  num_edits: str,
  there: Mapping[str, Any],
  columns: Iterable[str],
  *,
  apart: bool = False,
) -> Line:
  """A line of the paper's numbers, between ours or in a table apart."""
  shown = method_name({'name': method}) if apart else name(method)
  cells = [cell(there, column) for column in columns]
  return Line((shown, num_edits), cells, is_paper=True)


def apart(
  file_name: str,
  table: str,
  about: str,
  heads: Sequence[str],
  columns: Sequence[str],
  lines: Sequence[Line],
) -> Table:
  """A table of the paper's numbers alone, for reports of other models."""
  model = numbers()['model']
  return Table(
    name=file_name,
    title=f"The paper's {table}, of another model: {model}",
    heads=heads,
    columns=columns,
    lines=lines,
    notes=[
      f'Published numbers on {model}: {about}. They are here for the shape of '
      'what happens, not to be compared number by number.'
    ],
  )
