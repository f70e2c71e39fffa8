import dataclasses
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
  text = report.report(ROWS, 'edit', {})
  assert text.startswith('# my_run: rome on tiny\n')
  table = _sections(text)["General ability (as the paper's Table 1)"]
  assert table == [
    ['edits', 'mmlu (n = 4)', 'ppl (n = 4)'],
    ['--:', '--:', '--:'],
    ['0', '46.8 (40.0–50.0)', 'inf'],
    ['5', '25.5', ''],
  ]
  assert '11.1' not in text and '99.9' not in text


def test_facts_stand_beside_the_unedited_floor():
  sections = _sections(report.report(ROWS, 'edit', {}))
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
  sections = _sections(report.report(ROWS, 'edit', {}))
  head, _, *rows = sections[_TOKENS.replace('Facts', 'Locality')]
  assert head[:3] == ['edits', 'seq. agreement', 'seq. specificity']
  assert rows == [['5', '81.0', '', '', '', '', '82.0']]


def test_a_run_without_tasks_has_no_first_table():
  text = report.report(ROWS[:1], 'edit', {})
  assert 'General ability' not in text
  assert 'unedited rel.' in text


def test_nothing_measured():
  assert report.report([], 'edit', {}) == 'Nothing was measured yet.\n'


def test_the_number_of_items_stands_in_the_heading():
  rows = [dataclasses.replace(row, n=14_042) for row in ROWS]
  assert '| mmlu (n = 14,042) |' in report.report(rows, 'edit', {})


def _scores(corrects):
  return [
    {
      'doc_id': str(i),
      'group': 'dev',
      'prompt_hash': str(i),
      'state_fingerprint': 'one',
      'nonfinite': False,
      'target': 'A',
      'metrics': {'accuracy': float(correct)},
    }
    for i, correct in enumerate(corrects)
  ]


def test_states_are_compared_on_the_same_items():
  title = 'Change against the unedited model, same items'
  unedited = {0: {'c3': _scores([1, 1, 1, 1, 0])}}
  for scores in ({}, unedited):
    assert title not in report.report(ROWS, 'edit', scores)
  edited = {5: {'c3': _scores([0, 0, 1, 1, 1])}}
  table = _sections(report.report(ROWS, 'edit', unedited | edited))[title]
  assert table[0] == ['edit step', 'c3']
  # Two lost, one gained: McNemar's p is 1.
  assert table[2:] == [['5', '-20.0 (1.000)']]


def test_an_evaluation_is_one_line_per_metric():
  rows = [
    _row(0, 'mmlu', 'mmlu', 46.84, (40.04, 50.06)),
    dataclasses.replace(_row(0, 'mmlu', 'mmlu_stem', 11.1), n=3),
    _row(0, 'mmlu', 'n_nonfinite', 0.0),
    dataclasses.replace(_row(5, 'mmlu', 'mmlu', 25.0, (1.0, 50.0)), n=14_042),
    _row(0, 'text', 'ppl', math.inf),
    _row(0, 'text', 'half', 1.0, (0.5, None)),
  ]
  assert report.benchmarks(rows) == (
    '| task | edits | metric | value | 95 % interval | n |\n'
    '|---|--:|---|--:|---|--:|\n'
    '| mmlu | 0 | mmlu | 46.8 | 40.0 to 50.1 | 4 |\n'
    # What is of a part of the items stands in the rows only.
    '| mmlu | 0 | n_nonfinite | 0.0 |  | 4 |\n'
    '| mmlu | 5 | mmlu | 25.0 | 1.0 to 50.0 | 14,042 |\n'
    '| text | 0 | ppl | inf |  | 4 |\n'
    '| text | 0 | half | 1.0 |  | 4 |\n'
  )
