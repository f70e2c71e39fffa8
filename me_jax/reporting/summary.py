"""What happened to the model, in sentences made from the numbers."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from me_jax.evals.chance import chance
from me_jax.reporting import labels, other_tables, overview, text_tables
from me_jax.reporting.measured_run import EDIT_TASK, MeasuredRun
from me_jax.reporting.significance import Changes
from me_jax.reporting.study import Study
from me_jax.reporting.table import number
from me_jax.results import Row

_ONE_LETTER = 80.0  # per cent of the answers from which it is said
_FREE = 5.0  # points that are called close


class Paragraph(NamedTuple):
  """What is said of one run.

  Attributes:
    title: Which.
    sentences: What.
  """

  title: str
  sentences: Sequence[str]


def summary(study: Study, changes: Changes) -> list[Paragraph]:
  """What runs have in common and what tells them apart, then a paragraph per
  run and one per evaluation of a model as it is."""
  together = list(overview.overview(study, changes))
  found = [Paragraph('In short', together)] if together else []
  found += [
    Paragraph(study.labels[run], list(_run(study, changes, run)))
    for run in study.runs
  ]
  return found + [
    Paragraph(
      f'{run.model}, unedited ({run.path.name})', list(_evaluation(study, run))
    )
    for run in study.evaluations
  ]


def _run(study: Study, changes: Changes, run: MeasuredRun) -> Iterator[str]:
  name = labels.method_name(run.method)
  measured = [n for n in run.edits() if n]
  last = measured[-1] if measured else 0
  at_once = run.config.get('edit_batch_size', 1)
  how = 'one after another' if at_once == 1 else f'{at_once} at a time'
  yield (
    f'{name} was to write {_facts(run.num_edits)} into {run.model}, {how}.'
    if not run.is_finished
    else f'{name} wrote {_facts(run.num_edits)} into {run.model}, {how}.'
  )
  if not run.is_finished:
    or_ended = (
      ', or ended because the model had collapsed'
      if run.config.get('stop_on_collapse')
      else ''
    )
    yield (
      f'The run is not finished{or_ended}: {run.edits_made} of '
      f'{run.num_edits} edits are made and the last state measured is that '
      f'after {last}.'
    )
  if not last:
    return
  yield from _of_facts(run, last)
  yield from _of_abilities(study, changes, run, last)
  yield from _of_text(study, run, last)
  yield from _of_letters(study, run, last)
  yield from _of_weights(run)
  yield from _of_codebook(run, last)
  yield from _warnings(run)


def _of_facts(run: MeasuredRun, last: int) -> Iterator[str]:
  row = lambda when, what: run.row(EDIT_TASK, f'{when}_{what}', last)
  individual, sequential, before = (
    row(when, 'reliability')
    for when in ('individual', 'sequential', 'unedited')
  )
  if sequential and individual:
    lost = individual.value - sequential.value
    fate = (
      f'so {number(lost)} points were lost to later edits'
      if lost > _FREE
      else 'so later edits took little of it back'
    )
    floor = (
      f'; the unedited model says {_value(before)} of them anyway'
      if before
      else ''
    )
    if last <= run.config.get('edit_batch_size', 1):
      yield (
        f'Asked as it was written, a fact comes out {_value(sequential)} right '
        f'after the one step{floor}.'
      )
    else:
      yield (
        f'Asked as it was written, a fact came out {_value(individual)} right '
        f'just after its own edit and {_value(sequential)} right after all '
        f'{last} edits, {fate}{floor}.'
      )
  general, free = (
    row('sequential', 'generalization'),
    row('unedited', 'generalization'),
  )
  if general and free:
    gain = general.value - free.value
    verdict = (
      'about what it says without any edit: the facts do not generalize'
      if abs(gain) <= _FREE
      else f'against {_value(free)} without any edit'
    )
    yield f'Asked in other words, {_value(general)}, {verdict}.'
  kept = row('sequential', 'locality_agreement')
  if kept:
    yield (
      'On prompts that have nothing to do with the facts it still says '
      f'{_value(kept)} of what the unedited model says.'
    )


def _of_abilities(
  study: Study, changes: Changes, run: MeasuredRun, last: int
) -> Iterator[str]:
  compared = changes.tasks.get((run, last), {})
  # On the items that both answered; without a comparison on those of the rows.
  values = {
    task: (before.value, after.value)
    for task in study.tasks
    if (before := study.unedited(run, task))
    and (after := study.score(run, task, last))
  } | {task: (c.before, c.after) for task, c in compared.items()}
  tasks = [
    t for t in study.tasks if t in values and not labels.is_perplexity(t)
  ]
  if not tasks:
    return
  fell, rose, same = [], [], []
  for task in tasks:
    before, after = map(number, values[task])
    text = f'{labels.task_name(task)} from {before} to {after}'
    if task not in compared:
      same.append((text, False))
    elif not changes.mark(run, last, task):
      same.append((text, True))
    else:
      (fell if compared[task].difference < 0 else rose).append(text)
  count = (
    f'Of {len(tasks)} benchmarks' if len(tasks) > 1 else 'Of one benchmark'
  )
  if fell:
    yield (
      f'{count}, after {last} edits {len(fell)} fell by more than chance '
      f'explains: {"; ".join(fell)}.'
    )
  if rose:
    yield f'More than chance explains rose: {"; ".join(rose)}.'
  tested = [text for text, was_tested in same if was_tested]
  if tested:
    yield (
      'No difference from the unedited model can be told from chance at this '
      f'number of items: {"; ".join(tested)}.'
    )
  untested = [text for text, was_tested in same if not was_tested]
  if untested:
    yield (
      f'Not tested, for the answers to the same items are not stored: '
      f'{"; ".join(untested)}.'
    )
  guessing = [
    labels.task_name(t) for t in tasks if _at_chance(study.unedited(run, t), t)
  ]
  if guessing:
    yield (
      'The unedited model is no better than guessing at '
      f'{", ".join(guessing)}: there a loss of knowledge cannot show.'
    )


def _of_text(study: Study, run: MeasuredRun, last: int) -> Iterator[str]:
  for task in filter(labels.is_perplexity, study.tasks):
    before, after = study.unedited(run, task), study.score(run, task, last)
    if not before or not after:
      continue
    name = labels.task_name(task)
    if not math.isfinite(after.value):
      yield f'{name}: no longer finite; the model is beyond use.'
      continue
    ratio = after.value / before.value
    yield (
      f'{name}: {number(before.value, 2)} before, {number(after.value, 2)} '
      f'after {last} edits'
      + (
        f', {number(ratio, 2)} times as much.' if ratio != 1 else ', the same.'
      )
    )
  edits = run.edits('adjusted_ppl', 'adj_mean')
  if edits:
    row = run.row('adjusted_ppl', 'adj_mean', edits[-1])
    after = f'after {edits[-1]} {"edit" if edits[-1] == 1 else "edits"}'
    if row.n and math.isfinite(row.value):
      yield (
        f'Its answers {after} have an adjusted perplexity of '
        f'{number(row.value, 2)}, judged by {text_tables.scorer(run)} '
        f'(n = {row.n}).'
      )
    else:
      yield f'None of its answers {after} is long enough to be judged as text.'


def _of_letters(study: Study, run: MeasuredRun, last: int) -> Iterator[str]:
  for task in run.headlines:
    shares = run.letters(task, last)
    if not shares:
      continue
    letter, share = max(shares.items(), key=lambda item: item[1])
    if share >= _ONE_LETTER:
      what = 'no letter at all' if letter == 'empty' else f'“{letter}”'
      yield (
        f'{labels.task_name(task)}: {number(share)} % of its answers are '
        f'{what}, so its accuracy says little.'
      )


def _of_weights(run: MeasuredRun) -> Iterator[str]:
  edits = run.edits('weight_drift')
  if not edits or run.method['name'] == 'grace':
    return
  found = [
    (run.row('weight_drift', f'pearson_r/{p}', edits[-1]), p)
    for p in other_tables.matrices(run)
  ]
  found = [(row.value, path) for row, path in found if row]
  if found:
    lowest, path = min(found)
    yield (
      f'After {edits[-1]} edits the weights {path} correlate with the unedited '
      f'ones with R = {number(lowest, 4)}.'
    )


def _of_codebook(run: MeasuredRun, last: int) -> Iterator[str]:
  keys = run.row(EDIT_TASK, 'num_keys', last)
  acts = [
    (run.row(EDIT_TASK, f'sequential_{kind}_trigger_rate', last), about)
    for kind, about in (
      ('reliability', 'the facts as they were written'),
      ('generalization', 'the facts in other words'),
      ('locality', 'unrelated prompts'),
    )
  ]
  told = [f'{number(row.value)} % of {about}' for row, about in acts if row]
  if keys:
    told.append(f'keeping {number(keys.value, 0)} keys')
  if told:
    yield f'It leaves the weights alone and acts on {", ".join(told)}.'


def _warnings(run: MeasuredRun) -> Iterator[str]:
  warned = sum(
    any(info.get('warnings') for info in record.get('info') or ())
    for record in run.records
  )
  if warned:
    yield (
      f'The method warned of {warned} of its {len(run.records)} edit steps, '
      'most often of a change out of proportion.'
    )


def _evaluation(study: Study, run: MeasuredRun) -> Iterator[str]:
  told = [
    f'{labels.task_name(t)} {number(row.value, labels.task_digits(t))}'
    for t in study.tasks
    if t in run.headlines and (row := run.row(t, run.headlines[t], 0))
  ]
  yield f'Measured as it is: {"; ".join(told) or "nothing yet"}.'
  guessing = [
    labels.task_name(t)
    for t in study.tasks
    if t in run.headlines and _at_chance(run.row(t, run.headlines[t], 0), t)
  ]
  if guessing:
    yield f'No better than guessing at {", ".join(guessing)}.'


def _at_chance(row: Row | None, task: str) -> bool:
  """Whether the interval does not lie above what guessing scores."""
  guess = chance(task)
  if row is None or row.ci_low is None or not guess or not guess.level:
    return False
  return row.ci_low <= guess.level


def _value(row: Row) -> str:
  """'72.2 % (64.0–80.1)'."""
  if row.ci_low is None or row.ci_high is None:
    return f'{number(row.value)} %'
  return f'{number(row.value)} % ({number(row.ci_low)}–{number(row.ci_high)})'


def _facts(count: int) -> str:
  return '1 fact' if count == 1 else f'{count:,} facts'
