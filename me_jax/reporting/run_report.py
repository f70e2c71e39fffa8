"""A run's tables in the paper's layout, on the screen and in a file."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from me_jax import results
from me_jax.evals import comparison, registry
from me_jax.evals.task import Record

_PREFIXES = (
  ('sequential', 'seq.'),
  ('individual', 'ind.'),
  ('unedited', 'unedited'),
)
# Analyses whose numbers are not of a model's ability.
_NO_ABILITY = ('weight_drift', 'saliency')
_SECTIONS = {
  'Facts': (('reliability', 'rel.'), ('generalization', 'gen.')),
  'Locality': (
    ('locality_agreement', 'agreement'),
    ('locality_specificity', 'specificity'),
  ),
}
_ON_FACTS = tuple(
  (head, f'sequential_{name}_trigger_rate')
  for head, name in (
    ('own prompt', 'reliability'),
    ('other words', 'generalization'),
    ('unrelated', 'locality'),
  )
)
_KEPT = (
  ('keys', 'num_keys'),
  ('least radius', 'radius_min'),
  ('median radius', 'radius_median'),
  *(
    (f'{head}, {q} %', f'nearest_distance_{kind}_q{q}')
    for head, kind in (('other words', 'rephrase'), ('unrelated', 'locality'))
    for q in (10, 50, 90)
  ),
)
_SCORES = {
  'token accuracy, teacher forcing': '',
  'all tokens right': '_exact',
  'tokens right in greedy text': '_generated',
}


def report(
  rows: Sequence[results.Row],
  edit_task: str,
  scores: Mapping[int, Mapping[str, Sequence[Record]]],
) -> str:
  """Markdown: general ability, then the facts, per number of edits.

  The first metric of a task is its headline; the others are in the rows.

  Args:
    rows: Of one run.
    edit_task: The task that is about the facts.
    scores: Score records by edit step and task.
  """
  if not rows:
    return 'Nothing was measured yet.\n'
  first = rows[0]
  headlines: dict[str, str] = {}
  for row in rows:
    if row.task not in (edit_task, *_NO_ABILITY):
      headlines.setdefault(row.task, row.metric)
  parts = [f'# {first.run}: {first.method} on {first.model}\n']
  if headlines:
    counts = {(row.task, row.metric): row.n for row in rows}
    columns = [
      (f'{task} (n = {items(task, counts[task, metric])})', task, metric)
      for task, metric in headlines.items()
    ]
    found = [row for row in rows if headlines.get(row.task) == row.metric]
    averages = _averages(found)
    table = results.table(rows, columns)
    parts += [
      "## General ability (as the paper's Table 1)\n",
      'Accuracies in per cent; `_ppl` is a perplexity, lower is better. In '
      'brackets the 95 % interval.\n',
      _with_averages(table, averages) if averages else table,
      *_notes(found),
    ]
  if acting := _acting(rows, edit_task):
    parts += ['## Where the method acts\n', acting]
  if against := comparison.against_unedited(scores):
    parts += ['## Change against the unedited model, same items\n', against]
  for title, names in _SECTIONS.items():
    for caption, suffix in _SCORES.items():
      columns = [
        (f'{head} {short}', edit_task, f'{prefix}_{name}{suffix}')
        for prefix, head in _PREFIXES
        for name, short in names
      ]
      parts += [f'## {title}: {caption}\n', results.table(rows, columns)]
  parts += [
    '`seq.`: facts so far, after the last edit. `ind.`: each fact right after '
    'its own edit. `unedited`: the same prompts before any edit, which is '
    'what comes for free. Agreement: what is still said as the unedited model '
    'says it. Specificity: what is said that is true.\n',
  ]
  return '\n'.join(parts)


def _acting(rows: Sequence[results.Row], edit_task: str) -> str:
  """Of a method that acts in the forward pass, where it does."""
  tasks = dict.fromkeys(r.task for r in rows if r.metric == 'trigger_rate')
  on_tasks = [
    (f'{task}, {head}', task, metric)
    for task in tasks
    for head, metric in (('items', 'trigger_rate'), ('copied', 'copied'))
  ]
  there = {row.metric for row in rows if row.task == edit_task}
  of_facts = lambda columns: [
    (head, edit_task, metric) for head, metric in columns if metric in there
  ]
  tables = (
    (
      'Items in which it acts on the prompt or on what the unedited model went '
      "on with, and items that got the unedited model's answer, in per cent.",
      on_tasks,
      1,
    ),
    (
      'Prompts of the facts so far on which it acts, in per cent.',
      of_facts(_ON_FACTS),
      1,
    ),
    (
      'What it keeps, and how far from there the prompts of the facts so far '
      'are, the nearest 10, 50 and 90 % of them.',
      of_facts(_KEPT),
      2,
    ),
  )
  return '\n'.join(
    f'{caption}\n\n{results.table(rows, columns, digits)}'
    for caption, columns, digits in tables
    if columns
  )


def benchmarks(rows: Sequence[results.Row]) -> str:
  """Markdown: one line per metric of each task and edit step, then the mean of
  the benchmarks' headlines.

  Metrics of a part of the items, such as one subject, are in the rows only.
  """
  lines = [
    '| task | edits | metric | value | 95 % interval | n |',
    '|---|--:|---|--:|---|--:|',
  ]
  headlines: dict[tuple[str, int], results.Row] = {}
  for row in rows:
    headline = headlines.setdefault((row.task, row.num_edits), row)
    if row.n < headline.n:
      continue
    interval = ''
    if row.ci_low is not None and row.ci_high is not None:
      interval = f'{row.ci_low:.1f} to {row.ci_high:.1f}'
    lines.append(
      f'| {row.task} | {row.num_edits} | {row.metric} | {row.value:.1f} | '
      f'{interval} | {items(row.task, row.n)} |'
    )
  found = list(headlines.values())
  lines += [
    f'| Avg. | {num_edits} | mean | {average} |  |  |'
    for num_edits, average in _averages(found).items()
  ]
  return '\n'.join(['\n'.join(lines) + '\n', *_notes(found)])


def items(task: str, n: int) -> str:
  """How many items a score is over, '1,000 of 5,000' if not all official."""
  official = registry.OFFICIAL_ITEMS.get(registry.base_name(task), n)
  return f'{n:,} of {official:,}' if n < official else f'{n:,}'


def _averages(headlines: Sequence[results.Row]) -> dict[int, str]:
  """The mean of the paper's eight benchmarks by number of edits, '-' where one
  is missing; empty if none of them was measured."""
  return {
    num_edits: '-' if missing else f'{np.mean(values):.1f}'
    for num_edits, (values, missing) in _members(headlines).items()
  }


def _members(
  headlines: Sequence[results.Row],
) -> dict[int, tuple[list[float], list[str]]]:
  """By number of edits the scores of the benchmarks, and who has none."""
  if not any(row.task in registry.BENCHMARKS for row in headlines):
    return {}
  scores: dict[int, dict[str, float]] = {}
  for row in headlines:
    found = scores.setdefault(row.num_edits, {})
    # A mean over a part of its groups is no member.
    if '_of_' not in row.metric:
      found[row.task] = row.value
  return {
    num_edits: (
      [found[name] for name in registry.BENCHMARKS if name in found],
      [name for name in registry.BENCHMARKS if name not in found],
    )
    for num_edits, found in sorted(scores.items())
  }


def _with_averages(table: str, averages: Mapping[int, str]) -> str:
  """The table, whose lines begin with a number of edits, with a last column."""
  head, rule, *body = table.splitlines()
  lines = [f'{head} Avg. |', f'{rule} --: |']
  lines += [f'{line} {averages[int(line.split("|")[1])]} |' for line in body]
  return '\n'.join(lines) + '\n'


def _notes(headlines: Sequence[results.Row]) -> list[str]:
  """What must be known of the numbers above: means that lack a member, and
  scores over a part of the official items."""
  notes = []
  members = _members(headlines).items()
  by_missing = lambda member: member[1][1]
  for missing, group in itertools.groupby(members, by_missing):
    if missing:
      edits = ', '.join(str(num_edits) for num_edits, _ in group)
      notes.append(
        f'Avg., the mean of the eight benchmarks, lacks {", ".join(missing)} '
        f'after {edits} edits.\n'
      )
  parts = {
    row.task: count
    for row in headlines
    if ' of ' in (count := items(row.task, row.n))
  }
  if parts:
    listed = ', '.join(f'{task} ({count})' for task, count in parts.items())
    notes.append(
      'Over a part of the official items, for the data at hand hold no more or '
      f'a limit was set: {listed}.\n'
    )
  return notes
