"""Several runs that are looked at together."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from me_jax.reporting import labels as labels_lib
from me_jax.reporting.measured_run import UNEDITED, MeasuredRun
from me_jax.results import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """The runs of a report.

  Attributes:
    runs: Those that edit, in the order in which they were named.
    evaluations: Of models as they are, which a run of the same weights may be
      compared with.
    labels: A name for each run.
  """

  runs: Sequence[MeasuredRun]
  evaluations: Sequence[MeasuredRun]
  labels: Mapping[MeasuredRun, str]

  @property
  def all_runs(self) -> list[MeasuredRun]:
    return [*self.runs, *self.evaluations]

  @property
  def models(self) -> list[str]:
    return list(dict.fromkeys(run.model for run in self.all_runs))

  @functools.cached_property
  def tasks(self) -> list[str]:
    """The measures of general ability of any run, in the paper's order."""
    return labels_lib.task_order(
      [task for run in self.all_runs for task in run.headlines]
    )

  def source(self, run: MeasuredRun, task: str) -> MeasuredRun | None:
    """Who measured a task on the unedited model of a run: the run itself, or
    else another of the same weights that asks in the same way."""
    others = [
      r
      for r in self.all_runs
      if r.weights and r.weights == run.weights and _asks_alike(r, run)
    ]
    return next(
      (
        r
        for r in [run, *others]
        if task in r.headlines and r.row(task, r.headlines[task], 0)
      ),
      None,
    )

  def unedited(self, run: MeasuredRun, task: str) -> Row | None:
    """The headline of a task on the unedited model of a run; None where that
    was only measured on more or fewer items than the run has."""
    source = self.source(run, task)
    if source is None:
      return None
    row = source.row(task, source.headlines[task], 0)
    metric = run.headlines.get(task)
    own = {run.row(task, metric, n).n for n in run.edits(task, metric or '')}
    return row if not own or row.n in own else None

  def score(self, run: MeasuredRun, task: str, num_edits: int) -> Row | None:
    """The headline of a task after so many edits."""
    if num_edits == 0:
      return self.unedited(run, task)
    metric = run.headlines.get(task)
    return run.row(task, metric, num_edits) if metric else None


def _asks_alike(one: MeasuredRun, other: MeasuredRun) -> bool:
  """Whether both put a benchmark to a model in the same words."""
  settings = [run.config.get('evals') or {} for run in (one, other)]
  return all(
    settings[0][name] == settings[1][name]
    for name in ('profile', 'prompts', 'exemplars')
    if name in settings[0] and name in settings[1]
  )


def study(runs: Sequence[MeasuredRun]) -> Study:
  """The runs together, each with its name.

  What was asked of a run's edited models afterwards is taken into the run,
  where the run did not ask it itself.
  """
  runs = _joined(runs)
  is_evaluation = lambda run: run.method['name'] == UNEDITED
  return Study(
    runs=[run for run in runs if not is_evaluation(run)],
    evaluations=[run for run in runs if is_evaluation(run)],
    labels=dict(zip(runs, labels_lib.run_labels(runs), strict=True)),
  )


def _joined(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
  """Each with the evaluations of its edited models, which are left out unless
  all that they hold was measured before."""
  joined, taken = [], set()
  for run in runs:
    rows, places = list(run.rows), []
    for other in runs:
      there = {(row.task, row.num_edits) for row in rows}
      more = [r for r in other.rows if (r.task, r.num_edits) not in there]
      if more and _is_of(other, run):
        taken.add(other)
        places.append(other.path)
        rows += more
    joined.append(
      dataclasses.replace(run, rows=rows, evaluations=places) if places else run
    )
  return [
    new for run, new in zip(runs, joined, strict=True) if run not in taken
  ]


def _is_of(evaluation: MeasuredRun, run: MeasuredRun) -> bool:
  """Whether it is one, by launch.evaluate, of an edited model of the run."""
  state = (evaluation.num_edits, evaluation.identity.get('run_state'))
  return (
    all(state)
    and 'run_state' not in run.identity  # Not an evaluation itself.
    and _asks_alike(evaluation, run)
    and any((row.num_edits, row.state) == state for row in run.rows)
  )
