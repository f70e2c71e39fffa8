"""A run's tables in the paper's layout, on the screen and in a file."""

from collections.abc import Sequence

from me_jax import results

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
