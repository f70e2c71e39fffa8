"""What a run's directory holds, as far as the run got."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from me_jax import checkpoints, files, results
from me_jax.config.run import ANALYSES
from me_jax.evals.task import Record
from me_jax.results import EDIT_TASK
from me_jax.workdir import RunFiles

UNEDITED = 'unedited'  # the method of an evaluation of the model as it is


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredRun:
  """One workdir, read; equal to itself only.

  Attributes:
    path: The directory.
    identity: All that the numbers depend on: config and hashes.
    notes: Versions, device.
    rows: The results, in the order in which they were measured.
    triangle: Scores of fact s after edit step t.
    records: Of the edit steps: requests, losses, seconds.
    evaluations: Workdirs of launch.evaluate that asked its edited models; their
      rows are among `rows`.
  """

  path: pathlib.Path
  identity: Mapping[str, Any]
  notes: Mapping[str, Any]
  rows: Sequence[results.Row]
  triangle: Sequence[Record] = ()
  records: Sequence[Record] = ()
  evaluations: Sequence[pathlib.Path] = ()

  @property
  def config(self) -> Mapping[str, Any]:
    return self.identity['config']

  @property
  def method(self) -> Mapping[str, Any]:
    """Settings of the method, its name first of all."""
    return self.config['method']

  @property
  def model(self) -> str:
    return self.config['model']['name']

  @property
  def weights(self) -> str:
    """The hash of the model at step 0."""
    identity = self.identity
    return identity.get('unedited', identity.get('weights', ''))

  @property
  def layers(self) -> tuple[int, ...]:
    """Which layers the method edits; none if it does not say."""
    method = self.method
    layers = method.get('layers', method.get('layer', ()))
    return (layers,) if isinstance(layers, int) else tuple(layers)

  @property
  def num_edits(self) -> int:
    """Facts that the run is to write."""
    return self.config.get('num_edits', 0)

  @property
  def edits_made(self) -> int:
    """Facts that are written by now."""
    written = sum(len(r.get('requests', ())) for r in self.records)
    return max([written, *(row.num_edits for row in self.rows)])

  @property
  def is_finished(self) -> bool:
    """Whether every edit was made, and all tasks were asked of the last state
    that is to be measured."""
    last = max(self.config.get('eval_steps', ()), default=self.num_edits)
    # Not analyses: of experiments that share a run each has its own states.
    wanted = {*self.config.get('tasks', self.identity.get('tasks', ()))}
    measured = {row.task for row in self.rows if row.num_edits == last}
    return (
      bool(measured)
      and wanted <= measured
      and self.edits_made >= self.num_edits
    )

  @functools.cached_property
  def _by_name(self) -> dict[tuple[str, str, int], results.Row]:
    return {(r.task, r.metric, r.num_edits): r for r in self.rows}

  def row(self, task: str, metric: str, num_edits: int) -> results.Row | None:
    """One number, None if it was not measured."""
    return self._by_name.get((task, metric, num_edits))

  def edits(self, task: str = '', metric: str = '') -> list[int]:
    """Numbers of edits at which the task, or anything, was measured."""
    return sorted(
      {
        row.num_edits
        for row in self.rows
        if task in ('', row.task) and metric in ('', row.metric)
      }
    )

  def metrics(self, task: str) -> list[str]:
    """The names of a task's metrics, the headline first."""
    return list(dict.fromkeys(r.metric for r in self.rows if r.task == task))

  @functools.cached_property
  def headlines(self) -> dict[str, str]:
    """The first metric of each measure of general ability, by task."""
    found: dict[str, str] = {}
    for row in self.rows:
      if row.task not in (EDIT_TASK, *ANALYSES):
        found.setdefault(row.task, row.metric)
    return found

  def letters(self, task: str, num_edits: int) -> dict[str, float]:
    """How often each letter was answered, in per cent, and 'empty'; none of a
    task in free text or whose items have options of their own (BBH)."""
    prefix = 'predicted_'
    found = {
      metric.removeprefix(prefix): row.value
      for metric in self.metrics(task)
      if metric.startswith(prefix)
      and (row := self.row(task, metric, num_edits))
    }
    # Free text is only empty or not.
    return {} if len(found) < 3 or 'no_option' in found else found

  def step(self, num_edits: int) -> int:
    """The edit step after which so many facts were written."""
    return next(r.edit_step for r in self.rows if r.num_edits == num_edits)

  def scores(self, task: str, num_edits: int) -> list[Record]:
    """The score records of a task; none if there are none."""
    step = self.step(num_edits)
    places = [
      RunFiles(path).scores(task, step)
      for path in (self.path, *self.evaluations)
    ]
    return next(filter(None, map(files.read_jsonl, places)), [])


def read_run(path: files.PathLike) -> MeasuredRun:
  """What a workdir of `launch.run` or `launch.evaluate` holds; a process may be
  at work there.

  Raises:
    FileNotFoundError: It is no such directory.
    ValueError: A file in it is damaged.
  """
  place = RunFiles(path)
  if not place.path.is_dir():
    raise FileNotFoundError(f'{path} is not a directory.')
  if not place.config.is_file():
    raise FileNotFoundError(
      f'{path} is not the workdir of a run: it has no {place.config.name}. '
      'Name directories that launch.run or launch.evaluate wrote.'
    )
  identity = place.identity()
  config = identity.get('config')
  try:
    named = (config['method']['name'], config['model']['name'])
  except (KeyError, TypeError) as e:
    raise ValueError(
      f'{place.config} names no model and no method. Restore it, or leave '
      f'{path} out.'
    ) from e
  if not all(isinstance(name, str) for name in named):
    raise ValueError(f'{place.config}: names of a model and a method are texts')
  return MeasuredRun(
    path=place.path,
    identity=identity,
    notes=json.loads(place.config.read_text()).get('notes') or {},
    rows=results.read_rows(place.results),
    triangle=checked(
      files.read_jsonl(place.triangle),
      ('edit_step', 'fact', 'scores'),
      place.triangle,
    ),
    records=checked(
      checkpoints.read_records(place.checkpoints),
      ('edit_step', 'requests'),
      place.checkpoints,
    ),
  )


def checked(
  records: list[Record], fields: Sequence[str], path: pathlib.Path
) -> list[Record]:
  """The records, which have these fields."""
  for number, record in enumerate(records, start=1):
    if missing := [name for name in fields if name not in record]:
      raise ValueError(
        f'{path}: record {number} lacks {", ".join(missing)}. Restore it, or '
        'delete it to have the run make it again.'
      )
  return records
