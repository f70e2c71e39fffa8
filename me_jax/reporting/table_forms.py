"""A table as Markdown, LaTeX and HTML."""

import html as html_lib
import re

from me_jax.reporting.table import (
  Cell,
  Table,
  details,
  headings,
  shared_n,
  value_text,
)


def markdown(table: Table) -> str:
  """The table with its title and notes."""
  shares = [n is not None for n in shared_n(table)]

  def text(c: Cell | str | None, shares_n: bool) -> str:
    if not isinstance(c, Cell):
      return markdown_text(c or '')
    more = '; '.join(details(c, shares_n))
    return f'{value_text(c)} ({more})' if more else value_text(c)

  names = [*table.heads, *headings(table)]
  rule = ['---'] * len(table.heads) + ['--:'] * len(table.columns)
  lines = [[markdown_text(name) for name in names], rule]
  for line in table.lines:
    cells = [text(c, s) for c, s in zip(line.cells, shares, strict=True)]
    lines.append([*map(markdown_text, line.heads), *cells])
  body = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
  notes = ''.join(f'\n{markdown_text(note)}\n' for note in table.notes)
  return f'### {markdown_text(table.title)}\n\n{body}\n{notes}'


def markdown_text(text: str) -> str:
  """One line in which nothing is markup."""
  escaped = re.sub(r'([\\`*_\[\]<>|#])', r'\\\1', text)
  return ' '.join(escaped.split())


def rows(table: Table) -> list[dict[str, str | float | int | None]]:
  """A row per number, unrounded; p of the test against the unedited model."""
  return [
    {
      **dict(zip(table.heads, line.heads, strict=True)),
      'column': column,
      'value': c.value if isinstance(c, Cell) else c,
      'ci_low': c.low if isinstance(c, Cell) else None,
      'ci_high': c.high if isinstance(c, Cell) else None,
      'n': c.n if isinstance(c, Cell) else None,
      'p_vs_t0': c.p if isinstance(c, Cell) else None,
      'is_paper': line.is_paper,
    }
    for line in table.lines
    for column, c in zip(table.columns, line.cells, strict=True)
    if c is not None
  ]


def latex(table: Table) -> str:
  """The table as a float; needs the package booktabs."""
  shares = [n is not None for n in shared_n(table)]

  def text(c: Cell | str | None, shares_n: bool) -> str:
    if not isinstance(c, Cell):
      return latex_text(c or '')
    more = latex_text('; '.join(details(c, shares_n)))
    value = latex_text(value_text(c))
    return f'{value} {{\\scriptsize ({more})}}' if more else value

  names = [*table.heads, *headings(table)]
  lines = [' & '.join(map(latex_text, names)) + r' \\', r'\midrule']
  for line in table.lines:
    cells = [text(c, s) for c, s in zip(line.cells, shares, strict=True)]
    lines.append(' & '.join([*map(latex_text, line.heads), *cells]) + r' \\')
  spec = 'l' * len(table.heads) + 'r' * len(table.columns)
  caption = ' '.join([f'{table.title}.', *table.notes])
  return '\n'.join(
    [
      r'% Needs \usepackage{booktabs}.',
      r'\begin{table*}',
      r'\centering',
      f'\\begin{{tabular}}{{{spec}}}',
      r'\toprule',
      *lines,
      r'\bottomrule',
      r'\end{tabular}',
      f'\\caption{{{latex_text(caption)}}}',
      f'\\label{{tab:{table.name}}}',
      r'\end{table*}',
      '',
    ]
  )


_LATEX = {
  '\\': r'\textbackslash{}',
  **{c: f'\\{c}' for c in '&%$#_{}'},
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '<': '$<$',
  '>': '$>$',
  '|': '$|$',
  '–': '--',
  '−': '$-$',
  '↑': r'$\uparrow$',
  '↓': r'$\downarrow$',
  '∞': r'$\infty$',
  'ε': r'$\varepsilon$',
  'λ': r'$\lambda$',
  '×': r'$\times$',
  'ρ': r'$\rho$',
  'σ': r'$\sigma$',
  '₀': '$_0$',
  '₁': '$_1$',
  '‖': r'$\|$',
}


def latex_text(text: str) -> str:
  """One line in which nothing is a command."""
  return ' '.join(''.join(_LATEX.get(c, c) for c in text).split())


def html(table: Table) -> str:
  """The table with a caption, in a box of its own that scrolls."""
  shares = [n is not None for n in shared_n(table)]
  escape = html_lib.escape

  texts = [
    all(isinstance(line.cells[i], str | None) for line in table.lines)
    for i in range(len(table.columns))
  ]

  def text(c: Cell | str | None, shares_n: bool, is_text: bool) -> str:
    if not isinstance(c, Cell):
      kind = ' class="text"' if is_text else ''
      return f'<td{kind}>{escape(c or "")}</td>'
    more = [f'<small>{escape(m)}</small>' for m in details(c, shares_n)]
    return f'<td>{escape(value_text(c))}{"".join(more)}</td>'

  heads = ''.join(f'<th scope="col">{escape(h)}</th>' for h in table.heads)
  heads += ''.join(
    f'<th scope="col" class="{"text" if is_text else "n"}">{escape(name)}'
    f'{f"<small>n = {n:,}</small>" if n is not None else ""}</th>'
    for name, n, is_text in zip(
      table.columns, shared_n(table), texts, strict=True
    )
  )
  lines = []
  for line in table.lines:
    cells = ''.join(f'<th scope="row">{escape(h)}</th>' for h in line.heads)
    cells += ''.join(
      text(*three) for three in zip(line.cells, shares, texts, strict=True)
    )
    kind = ' class="paper"' if line.is_paper else ''
    lines.append(f'<tr{kind}>{cells}</tr>')
  notes = ''.join(f'<p class="note">{escape(n)}</p>' for n in table.notes)
  return (
    f'<section class="table" id="table-{escape(table.name)}">'
    f'<h3>{escape(table.title)}</h3><div class="scroll"><table>'
    f'<thead><tr>{heads}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody>'
    f'</table></div>{notes}</section>'
  )
