import math

from me_jax import report
from me_jax.results import Row


def _row(num_edits, task, metric, value, interval=(None, None)):
  return Row(
    run='my_run',
    method='rome',
    model='tiny',
    edit_step=num_edits,
    num_edits=num_edits,
    task=task,
    metric=metric,
    value=value,
    n=4,
    ci_low=interval[0],
    ci_high=interval[1],
  )


ROWS = [
  _row(0, 'edit', 'unedited_reliability', 10.0),
  _row(0, 'mmlu', 'acc', 46.8, (40.0, 50.0)),
  _row(0, 'mmlu', 'acc_stem', 11.1),
  _row(0, 'ppl', 'ppl', math.inf),
  _row(5, 'edit', 'sequential_reliability', 52.3),
  _row(5, 'edit', 'individual_reliability', 93.3),
  _row(5, 'edit', 'unedited_reliability', 12.0),
  _row(5, 'edit', 'sequential_generalization_exact', 61.0),
  _row(5, 'edit', 'individual_reliability_generated', 71.0),
  _row(5, 'edit', 'sequential_locality_agreement', 81.0),
  _row(5, 'edit', 'unedited_locality_specificity', 82.0),
  _row(5, 'mmlu', 'acc', 25.5),
  _row(5, 'mmlu', 'nonfinite', 99.9),
]


_TOKENS = 'Facts: token accuracy, teacher forcing'


def _sections(text):
  """Tables by the title above, as lists of rows of cells."""
  sections = {}
  for line in text.splitlines():
    if line.startswith('#'):
      rows = sections[line.lstrip('# ')] = []
    elif line.startswith('|'):
      rows.append([cell.strip() for cell in line.strip('|').split('|')])
  return sections


def test_headlines_make_the_first_table():
  text = report.report(ROWS, 'edit')
  assert text.startswith('# my_run: rome on tiny\n')
  table = _sections(text)["General ability (as the paper's Table 1)"]
  assert table == [
    ['edits', 'mmlu', 'ppl'],
    ['--:', '--:', '--:'],
    ['0', '46.8 (40.0–50.0)', 'inf'],
    ['5', '25.5', ''],
  ]
  assert '11.1' not in text and '99.9' not in text


def test_facts_stand_beside_the_unedited_floor():
  sections = _sections(report.report(ROWS, 'edit'))
  head, _, *rows = sections[_TOKENS]
  assert head == [
    'edits',
    'seq. rel.',
    'seq. gen.',
    'ind. rel.',
    'ind. gen.',
    'unedited rel.',
    'unedited gen.',
  ]
  assert rows == [
    ['0', '', '', '', '', '10.0', ''],
    ['5', '52.3', '', '93.3', '', '12.0', ''],
  ]
  exact = sections['Facts: all tokens right']
  assert exact[0] == head
  assert exact[2:] == [['5', '', '61.0', '', '', '', '']]
  generated = sections['Facts: tokens right in greedy text']
  assert generated[2:] == [['5', '', '', '71.0', '', '', '']]


def test_locality_has_agreement_and_specificity():
  sections = _sections(report.report(ROWS, 'edit'))
  head, _, *rows = sections[_TOKENS.replace('Facts', 'Locality')]
  assert head[:3] == ['edits', 'seq. agreement', 'seq. specificity']
  assert rows == [['5', '81.0', '', '', '', '', '82.0']]


def test_a_run_without_tasks_has_no_first_table():
  text = report.report(ROWS[:1], 'edit')
  assert 'General ability' not in text
  assert 'unedited rel.' in text


def test_nothing_measured():
  assert report.report([], 'edit') == 'Nothing was measured yet.\n'
