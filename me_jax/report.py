"""A run's tables in the paper's layout, on the screen and in a file."""

from collections.abc import Mapping, Sequence

from me_jax import results
from me_jax.evals import comparison
from me_jax.evals.task import Record

_PREFIXES = (
  ('sequential', 'seq.'),
  ('individual', 'ind.'),
  ('unedited', 'unedited'),
)
_SECTIONS = {
  'Facts': (('reliability', 'rel.'), ('generalization', 'gen.')),
  'Locality': (
    ('locality_agreement', 'agreement'),
    ('locality_specificity', 'specificity'),
  ),
}
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
    if row.task != edit_task:
      headlines.setdefault(row.task, row.metric)
  parts = [f'# {first.run}: {first.method} on {first.model}\n']
  if headlines:
    counts = {(row.task, row.metric): row.n for row in rows}
    columns = [
      (f'{task} (n = {counts[task, metric]:,})', task, metric)
      for task, metric in headlines.items()
    ]
    parts += [
      "## General ability (as the paper's Table 1)\n",
      'Accuracies in per cent; `_ppl` is a perplexity, lower is better. In '
      'brackets the 95 % interval.\n',
      results.table(rows, columns),
    ]
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


def benchmarks(rows: Sequence[results.Row]) -> str:
  """Markdown: one line per metric of each task and edit step.

  Metrics of a part of the items, such as one subject, are in the rows only.
  """
  lines = [
    '| task | edits | metric | value | 95 % interval | n |',
    '|---|--:|---|--:|---|--:|',
  ]
  largest: dict[tuple[str, int], int] = {}
  for row in rows:
    largest.setdefault((row.task, row.num_edits), row.n)
    if row.n < largest[row.task, row.num_edits]:
      continue
    interval = ''
    if row.ci_low is not None and row.ci_high is not None:
      interval = f'{row.ci_low:.1f} to {row.ci_high:.1f}'
    lines.append(
      f'| {row.task} | {row.num_edits} | {row.metric} | {row.value:.1f} | '
      f'{interval} | {row.n:,} |'
    )
  return '\n'.join(lines) + '\n'
