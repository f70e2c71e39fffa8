"""From the rows of runs to curves."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from me_jax.evals.chance import chance
from me_jax.reporting import labels
from me_jax.reporting.figure import Curve, Level
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study
from me_jax.results import Row

EDITS = 'number of edits'
_MOST_TOGETHER = 6  # runs in a figure
INTERVALS = 'Shaded or barred: 95 % intervals.'


def curve(
  panel: str, label: str, rows: Iterable[Row | None], variant: str = ''
) -> Curve | None:
  """The rows over the number of edits; None without any."""
  found = [row for row in rows if row is not None]
  if not found:
    return None
  return Curve(
    panel=panel,
    label=label,
    x=[row.num_edits for row in found],
    y=[row.value for row in found],
    low=[row.ci_low for row in found],
    high=[row.ci_high for row in found],
    n=[row.n for row in found],
    variant=variant,
  )


def of_metric(
  run: MeasuredRun,
  task: str,
  metric: str,
  *,
  panel: str,
  label: str,
  variant: str = '',
) -> list[Curve]:
  """One metric of a run, as one curve or none."""
  rows = [run.row(task, metric, n) for n in run.edits(task, metric)]
  found = curve(panel, label, rows, variant)
  return [found] if found else []


def of_scores(
  study: Study,
  runs: Sequence[MeasuredRun],
  task: str,
  *,
  panel: str,
  names: Sequence[str] = (),
) -> tuple[list[Curve], list[Level]]:
  """A task's headline by number of edits, and what it is seen against: the
  unedited model, where it is everybody's, and chance.

  Args:
    study: The runs' study.
    runs: Whose curves.
    task: A measure of general ability.
    panel: Of the figure.
    names: Of the curves; the runs' labels if empty.
  """
  names = names or [study.labels[run] for run in runs]
  curves = []
  for run, name in zip(runs, names, strict=True):
    edits = sorted({0, *run.edits(task)})
    rows = [study.score(run, task, n) for n in edits]
    found = curve(panel, name, rows)
    # A model as it is, alone, is no curve.
    if found and found.x != [0]:
      curves.append(found)
  shown = {c.label for c in curves}
  before = {
    name: row.value
    for run, name in zip(runs, names, strict=True)
    if name in shown and (row := study.unedited(run, task))
  }
  if len(set(before.values())) == 1:
    before = {'': next(iter(before.values()))}
  levels = [
    Level(panel=panel, kind='unedited', y=y, label=n) for n, y in before.items()
  ]
  if curves and (guess := chance(task)) and guess.level:
    levels.append(Level(panel=panel, kind='chance', y=guess.level))
  return curves, levels


class Group(NamedTuple):
  """Runs that are drawn together.

  Attributes:
    runs: Which.
    suffix: Of the names of their files, empty if these are all runs.
    about: Of their titles.
  """

  runs: Sequence[MeasuredRun]
  suffix: str = ''
  about: str = ''


def groups(study: Study) -> list[Group]:
  """All runs, or if they are many those of each method and model."""
  if len(study.runs) <= _MOST_TOGETHER:
    return [Group(study.runs)]
  found: dict[tuple[str, str], list[MeasuredRun]] = {}
  for run in study.runs:
    found.setdefault((run.method['name'], run.model), []).append(run)
  return [
    Group(
      runs,
      f'_{plain(method)}_{plain(model)}',
      f': {labels.method_name({"name": method})} on {model}',
    )
    for (method, model), runs in found.items()
  ]


def plain(text: str) -> str:
  """The text as a part of a file's name: all but ASCII letters, digits and '-'
  is '_'."""
  return re.sub('[^A-Za-z0-9-]', '_', text)
