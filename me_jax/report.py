"""A run's tables in the paper's layout, on the screen and in a file."""

from collections.abc import Sequence

from me_jax import results

_PREFIXES = (
  ('sequential', 'seq.'),
  ('individual', 'ind.'),
  ('unedited', 'unedited'),
)


def report(rows: Sequence[results.Row], edit_task: str) -> str:
  """Markdown: general ability, then the facts, per number of edits.

  The first metric of a task is its headline; the others are in the rows.
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
    columns = [(task, task, metric) for task, metric in headlines.items()]
    parts += [
      "## General ability (as the paper's Table 1)\n",
      'Accuracies in per cent; `_ppl` is a perplexity, lower is better. In '
      'brackets the 95 % interval.\n',
      results.table(rows, columns),
    ]
  for title, scores in (
    ("Facts, token accuracy (as the paper's Table 2)", ('', '')),
    ('Facts, all target tokens right', ('_exact', '_exact')),
    ('Facts, greedy text', ('_generated', '_generated')),
  ):
    columns = [
      (f'{head} {short}', edit_task, f'{prefix}_{name}{suffix}')
      for prefix, head in _PREFIXES
      for (name, short), suffix in zip(
        (('reliability', 'rel.'), ('generalization', 'gen.')),
        scores,
        strict=True,
      )
    ]
    parts += [f'## {title}\n', results.table(rows, columns)]
  columns = [
    (f'{head} {name}', edit_task, f'{prefix}_locality_{name}')
    for prefix, head in _PREFIXES
    for name in ('agreement', 'specificity')
  ]
  parts += [
    '## Locality\n',
    'Agreement: answer tokens that are still those of the unedited model. '
    'Specificity: answer tokens that are the true ones.\n',
    results.table(rows, columns),
    '`seq.`: facts so far, after the last edit. `ind.`: each fact right after '
    'its own edit. `unedited`: the same prompts before any edit, which is '
    'what comes for free.\n',
  ]
  return '\n'.join(parts)
