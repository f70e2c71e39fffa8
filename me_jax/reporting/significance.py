"""What changed against the unedited model and cannot well be chance."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from me_jax.evals import comparison, paired
from me_jax.evals.comparison import LEVEL, Comparison
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.study import Study

HIGHER, LOWER = '↑', '↓'
LEGEND = (
  f'{HIGHER} higher, {LOWER} lower than the unedited model on the same items: '
  f"p < {LEVEL} of a paired test (McNemar's where answers are right or wrong, "
  'else a bootstrap; the sign test where a loss is infinite), adjusted by Holm '
  'for all tests of its line.'
)
# Columns of the facts' table, and the score of the triangle behind each.
FACT_SCORES = {
  'sequential_reliability': 'rewrite_token',
  'sequential_generalization': 'rephrase_token',
  'individual_reliability': 'rewrite_token',
  'individual_generalization': 'rephrase_token',
}


class Changes(NamedTuple):
  """Measured states against the unedited model.

  Attributes:
    tasks: Comparisons by run and number of edits, then by task.
    facts: The mean difference and its adjusted p, by column of the facts.
    notes: What could not be compared, and why.
  """

  tasks: Mapping[tuple[MeasuredRun, int], Mapping[str, Comparison]]
  facts: Mapping[tuple[MeasuredRun, int], Mapping[str, tuple[float, float]]]
  notes: Sequence[str]

  def mark(self, run: MeasuredRun, num_edits: int, name: str) -> str:
    """The sign behind the number of a task or a column of the facts."""
    if found := self.tasks.get((run, num_edits), {}).get(name):
      # None: both are infinite. A task that fell and rose alike has no sign.
      return _sign(found.difference or 0.0, found.p_holm)
    difference, p = self.facts.get((run, num_edits), {}).get(name, (0.0, 1.0))
    return _sign(difference, p)

  def p(self, run: MeasuredRun, num_edits: int, name: str) -> float | None:
    """Of the same test, adjusted; None where there was none."""
    if found := self.tasks.get((run, num_edits), {}).get(name):
      return found.p_holm
    _, p = self.facts.get((run, num_edits), {}).get(name, (0.0, None))
    return p


def changes(study: Study) -> Changes:
  """Every measured state of every run."""
  tasks, facts, notes = {}, {}, []
  for run in study.runs:
    edits = [n for n in run.edits() if n]
    found: dict[int, list[Comparison]] = {n: [] for n in edits}
    for task in run.headlines:
      source = study.source(run, task)
      before = source.scores(task, 0) if source else []
      for n in edits if before else ():
        after = run.scores(task, n) if study.score(run, task, n) else []
        if not after:
          continue
        try:
          found[n].append(comparison.compare(before, after, task))
        except ValueError as e:
          notes.append(f'{study.labels[run]}, {n} edits, not compared: {e}')
    for n in edits:
      tasks[run, n] = {c.task: c for c in comparison.holm(found[n])}
      facts[run, n] = fact_changes(run, n)
  return Changes(tasks, facts, list(dict.fromkeys(notes)))


def fact_changes(
  run: MeasuredRun, num_edits: int
) -> dict[str, tuple[float, float]]:
  """Differences to what the unedited model scores on the same facts, in per
  cent, each with its p adjusted for all of them."""
  scores = {(r['edit_step'], r['fact']): r['scores'] for r in run.triangle}
  size = run.config.get('edit_batch_size', 1)
  now = run.step(num_edits)
  facts = [s for t, s in scores if t == now and (0, s) in scores]
  differences = {}
  for column, key in FACT_SCORES.items():
    step = lambda s, c=column: now if c[0] == 's' else 1 + s // size
    pairs = [
      (scores[step(s), s].get(key), scores[0, s].get(key))
      for s in facts
      if (step(s), s) in scores
    ]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    if pairs:
      values = 100 * np.array([a - b for a, b in pairs])
      differences[column] = paired.bootstrap([values])
  adjusted = paired.holm([found.p for found in differences.values()])
  return {
    column: (found.value, p)
    for (column, found), p in zip(differences.items(), adjusted, strict=True)
  }


def _sign(difference: float, p: float) -> str:
  if p >= LEVEL or difference == 0:
    return ''
  return HIGHER if difference > 0 else LOWER
