"""One page that explains itself: no network, no script."""

import base64
import importlib.resources
from collections.abc import Sequence
from html import escape

from me_jax.reporting import table_forms
from me_jax.reporting.figure import Bars, Chart, Figure, HeatMap
from me_jax.reporting.missing import Missing
from me_jax.reporting.summary import Paragraph
from me_jax.reporting.table import Table

_LEAD = (
  'Memory editing writes single facts into a trained language model. This '
  'page is about what becomes of the model while more and more facts are '
  'written: whether the new ones are there, whether the earlier ones still '
  'are, and what is left of everything else it could do. All sentences, tables '
  'and figures are made from the numbers that the runs wrote down.'
)
_LONG = 16  # lines
_WORDS = {
  'Reliability': 'How much of a fact the model says when it is asked in the '
  'words of the edit: the share of the target tokens that it puts first, each '
  'given those before it.',
  'Generalization': 'The same, asked in other words.',
  'Individual, sequential': 'Right after the edit that wrote the fact; and '
  'after the last of all edits so far.',
  'Unedited': 'The model before any edit, number of edits 0. What it scores '
  'on the facts comes for free.',
  '95 % interval': 'The small numbers, or the shade or bars around a curve: '
  'other items of the same kind would mostly have given a score in there.',
  'Chance': 'What guessing scores. A benchmark on which the unedited model '
  'guesses cannot show that an edit did harm.',
  'Perplexity': 'How many words, so to say, the model hesitates between in '
  'ordinary text; lower is better.',
}


def page(
  title: str,
  *,
  paragraphs: Sequence[Paragraph],
  tables: Sequence[Table],
  figures: Sequence[tuple[Figure, bytes]],
  provenance: Sequence[Table],
  missing: Sequence[Missing],
) -> str:
  """The page as HTML.

  Args:
    title: What the runs are about.
    paragraphs: What happened.
    tables: The numbers.
    figures: Each with its SVG.
    provenance: What was run.
    missing: What is not there.
  """
  css = importlib.resources.files('me_jax.reporting') / 'page.css'
  is_apart = lambda t: t.name.endswith('_paper')
  sections = [
    ('said', 'What happened', _said(paragraphs)),
    (
      'tables',
      'Tables',
      ''.join(table_forms.html(t) for t in tables if not is_apart(t)),
    ),
    ('figures', 'Figures', ''.join(_figure(f, svg) for f, svg in figures)),
    (
      'paper',
      'The paper’s numbers, of another model',
      ''.join(table_forms.html(t) for t in tables if is_apart(t)),
    ),
    ('words', 'Words', _words()),
    ('run', 'What was run', ''.join(map(_of_provenance, provenance))),
    ('missing', 'What is missing', _missing(missing)),
  ]
  sections = [section for section in sections if section[2]]
  links = ''.join(f'<a href="#{i}">{escape(h)}</a>' for i, h, _ in sections)
  body = '\n'.join(
    f'<h2 id="{name}">{escape(heading)}</h2>\n{content}'
    for name, heading, content in sections
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(title)}</title>\n'
    f'<style>\n{css.read_text(encoding="utf-8")}</style>\n</head>\n<body>\n'
    f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(_LEAD)}</p>\n'
    f'<nav>{links}</nav>\n{body}\n</body>\n</html>\n'
  )


def _said(paragraphs: Sequence[Paragraph]) -> str:
  return '\n'.join(
    f'<div class="said"><h3>{escape(p.title)}</h3><ul>'
    + ''.join(f'<li>{escape(s)}</li>' for s in p.sentences)
    + '</ul></div>'
    for p in paragraphs
  )


def _figure(figure: Figure, svg: bytes) -> str:
  """As an image: what is in its text cannot act on the page."""
  data = base64.b64encode(svg).decode('ascii')
  kind = ' class="wide"' if _num_panels(figure) > 1 else ''
  alt = escape(f'{figure.title}. {figure.caption}')
  files = ', '.join(
    f'<a href="figures/{escape(figure.name)}.{k}">{k.upper()}</a>'
    for k in ('png', 'pdf', 'csv')
  )
  return (
    f'<figure id="figure-{escape(figure.name)}">'
    f'<figcaption><b>{escape(figure.title)}</b></figcaption>'
    f'<div class="scroll"><img{kind} alt="{alt}" '
    f'src="data:image/svg+xml;base64,{data}"></div>'
    f'<figcaption>{escape(figure.caption)} ({files})</figcaption></figure>\n'
  )


def _num_panels(figure: Figure) -> int:
  if isinstance(figure, Chart):
    return len({curve.panel for curve in figure.curves})
  assert isinstance(figure, Bars | HeatMap)
  return len(figure.panels)


def _of_provenance(table: Table) -> str:
  """Long lists are folded away."""
  html = table_forms.html(table)
  if len(table.lines) < _LONG:
    return html
  return f'<details><summary>{escape(table.title)}</summary>{html}</details>'


def _words() -> str:
  items = ''.join(
    f'<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>'
    for word, meaning in _WORDS.items()
  )
  return f'<dl>{items}</dl>'


def _missing(missing: Sequence[Missing]) -> str:
  if not missing:
    return ''
  items = ''.join(
    f'<dt>{escape(m.what)}</dt><dd>Needs {escape(m.needs)}:'
    f'<pre><code>{escape(m.command)}</code></pre></dd>'
    for m in missing
  )
  return (
    '<p>Tables and figures of the paper that these runs do not fill, and what '
    f'makes them.</p><dl>{items}</dl>'
  )
