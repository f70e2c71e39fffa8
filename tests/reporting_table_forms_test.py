import html.parser
import math

from me_jax.reporting import table_forms
from me_jax.reporting.table import Cell, Line, Table, number

EVIL = '<script>alert(1)</script> a|b_c & 50 % $x$ \\input{y} `z`\nnew'
TABLE = Table(
  name='evil',
  title='A *title* & more',
  heads=('run', 'edits'),
  columns=['MMLU', 'MBPP', 'why'],
  lines=[
    Line(
      ('ROME', '1'),
      [Cell(46.84, 40.0, 50.06, 50, '↓', 0.01), Cell(1.5, n=9), 'x'],
    ),
    Line((EVIL, '10'), [Cell(math.nan, n=50), Cell(math.inf, n=8), EVIL]),
    Line(('paper', '10'), [Cell(47.0, digits=0), None, ''], is_paper=True),
  ],
  notes=['One <b> note.'],
)


class _Parser(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.text = [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text.append(data)


def test_markdown():
  lines = table_forms.markdown(TABLE).splitlines()
  assert lines[0] == r'### A \*title\* & more'
  assert lines[2] == '| run | edits | MMLU (n = 50) | MBPP | why |'
  assert lines[3] == '| --- | --- | --: | --: | --: |'
  assert lines[4] == '| ROME | 1 | 46.8↓ (40.0–50.1) | 1.5 (n = 9) | x |'
  assert lines[5].count(' | ') == 4 and '| / | ∞ (n = 8) |' in lines[5]
  assert r'\<script\>alert(1)\</script\> a\|b\_c' in lines[5]
  assert lines[6] == '| paper | 10 | 47 |  |  |'
  assert lines[-1] == r'One \<b\> note.'


def test_rows():
  found = table_forms.rows(TABLE)
  assert len(found) == 8  # of nine cells one is empty
  assert found[0] == {
    'run': 'ROME',
    'edits': '1',
    'column': 'MMLU',
    'value': 46.84,
    'ci_low': 40.0,
    'ci_high': 50.06,
    'n': 50,
    'p_vs_t0': 0.01,
    'is_paper': False,
  }
  assert found[-1]['value'] == '' and found[-1]['is_paper']


def test_latex():
  text = table_forms.latex(TABLE)
  assert r'\begin{tabular}{llrrr}' in text
  assert r'run & edits & MMLU (n = 50) & MBPP & why \\' in text
  assert (
    r'ROME & 1 & 46.8$\downarrow$ {\scriptsize (40.0--50.1)} & '
    r'1.5 {\scriptsize (n = 9)} & x \\'
  ) in text
  assert r'$<$script$>$alert(1)' in text
  assert r'a$|$b\_c \& 50 \% \$x\$ \textbackslash{}input\{y\} `z` new' in text
  assert r'\input{' not in text and r'$\infty$' in text
  assert r'\caption{A *title* \& more. One $<$b$>$ note.}' in text
  # Every line has all columns.
  body = text.split(r'\midrule')[1].split(r'\bottomrule')[0]
  rows = body.strip().splitlines()
  assert [len(row.replace(r'\&', '').split('&')) for row in rows] == [5, 5, 5]


def test_html():
  text = table_forms.html(TABLE)
  parser = _Parser()
  parser.feed(text)
  names = [tag for tag, _ in parser.tags]
  assert 'script' not in names and 'b' not in names
  assert EVIL in parser.text
  assert ('tr', {'class': 'paper'}) in parser.tags
  assert '<td>46.8↓<small>40.0–50.1</small></td>' in text
  assert '<th scope="col" class="n">MMLU<small>n = 50</small></th>' in text
  assert '<th scope="col" class="text">why</th>' in text
  assert '<div class="scroll"><table>' in text


def test_numbers_are_written_as_they_are_read():
  assert number(29634.93, 2) == '29,634.93'
  assert number(-1e-12) == '0.0' and number(-3.06) == '−3.1'
  assert number(12345678.9) == '1.2e+07' and number(0.00012, 3) == '0.00012'
  assert (number(math.inf), number(-math.inf)) == ('∞', '−∞')
  assert number(math.nan) == '/'


def test_a_difference_has_its_sign():
  made = lambda value: Table(
    name='d',
    title='d',
    heads=('run',),
    columns=['c'],
    lines=[Line(('r',), [Cell(value, -2.0, 9.5, is_change=True)])],
  )
  assert '+4.0 (−2.0 to 9.5)' in table_forms.markdown(made(4.0))
  assert '| 0.0 (' in table_forms.markdown(made(0.0))
  assert '−1.0 (' in table_forms.markdown(made(-1.0))
