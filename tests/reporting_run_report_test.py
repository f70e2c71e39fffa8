import dataclasses
import math

from me_jax.evals.registry import BENCHMARKS, OFFICIAL_ITEMS
from me_jax.reporting import run_report
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
  text = run_report.report(ROWS, 'edit', {})
  assert text.startswith('# my_run: rome on tiny\n')
  table = _sections(text)["General ability (as the paper's Table 1)"]
  assert table == [
    ['edits', 'mmlu (n = 4 of 14,042)', 'ppl (n = 4)', 'Avg.'],
    ['--:', '--:', '--:', '--:'],
    ['0', '46.8 (40.0–50.0)', 'inf', '-'],
    ['5', '25.5', '', '-'],
  ]
  assert '11.1' not in text and '99.9' not in text


def test_facts_stand_beside_the_unedited_floor():
  sections = _sections(run_report.report(ROWS, 'edit', {}))
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
  sections = _sections(run_report.report(ROWS, 'edit', {}))
  head, _, *rows = sections[_TOKENS.replace('Facts', 'Locality')]
  assert head[:3] == ['edits', 'seq. agreement', 'seq. specificity']
  assert rows == [['5', '81.0', '', '', '', '', '82.0']]


def test_a_run_without_tasks_has_no_first_table():
  text = run_report.report(ROWS[:1], 'edit', {})
  assert 'General ability' not in text
  assert 'unedited rel.' in text


def test_nothing_measured():
  assert run_report.report([], 'edit', {}) == 'Nothing was measured yet.\n'


def test_the_number_of_items_stands_in_the_heading():
  rows = [dataclasses.replace(row, n=14_042) for row in ROWS]
  assert '| mmlu (n = 14,042) |' in run_report.report(rows, 'edit', {})


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
    assert title not in run_report.report(ROWS, 'edit', scores)
  edited = {5: {'c3': _scores([0, 0, 1, 1, 1])}}
  table = _sections(run_report.report(ROWS, 'edit', unedited | edited))[title]
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
  assert run_report.benchmarks(rows) == (
    '| task | edits | metric | value | 95 % interval | n |\n'
    '|---|--:|---|--:|---|--:|\n'
    '| mmlu | 0 | mmlu | 46.8 | 40.0 to 50.1 | 4 of 14,042 |\n'
    # What is of a part of the items stands in the rows only.
    '| mmlu | 0 | n_nonfinite | 0.0 |  | 4 of 14,042 |\n'
    '| mmlu | 5 | mmlu | 25.0 | 1.0 to 50.0 | 14,042 |\n'
    '| text | 0 | ppl | inf |  | 4 |\n'
    '| text | 0 | half | 1.0 |  | 4 |\n'
    '| Avg. | 0 | mean | - |  |  |\n'
    '| Avg. | 5 | mean | - |  |  |\n'
    '\n'
    'Avg., the mean of the eight benchmarks, lacks mbpp, math, bbh, tydiqa, '
    'c3, commonsenseqa, axb after 0, 5 edits.\n'
    '\n'
    'Over a part of the official items, for the data at hand hold no more or '
    'a limit was set: mmlu (4 of 14,042).\n'
  )


def _table_1(num_edits, values):
  """Rows of the eight benchmarks, each over all official items."""
  return [
    dataclasses.replace(
      _row(num_edits, name, 'accuracy', value), n=OFFICIAL_ITEMS[name]
    )
    for name, value in zip(BENCHMARKS, values, strict=True)
  ]


def test_the_average_is_the_papers():
  """Of Table 1: ROME after 10 and after 100 edits."""
  rows = [
    *_table_1(10, (46.6, 17.8, 3.3, 38.3, 27.0, 32.6, 50.2, 45.2)),
    *_table_1(100, (25.5, 2.8, 1.0, 28.8, 8.0, 23.2, 19.0, 38.4)),
    _row(10, 'bbh@4096', 'accuracy', 99.0),
    _row(100, 'ppl', 'ppl', math.inf),
    _row(2, 'ppl', 'ppl', 7.0),
  ]
  text = run_report.report(rows, 'edit', {})
  table = _sections(text)["General ability (as the paper's Table 1)"]
  head, _, *lines = table
  assert head[-1] == 'Avg.'
  assert [line[-1] for line in lines] == ['-', '32.6', '18.3']
  assert f'lacks {", ".join(BENCHMARKS)} after 2 edits.' in text
  text = run_report.benchmarks(rows)
  for edits, average in ((2, '-'), (10, '32.6'), (100, '18.3')):
    assert f'| Avg. | {edits} | mean | {average} |  |  |\n' in text


def test_an_average_without_a_member_is_not_printed():
  values = [float(i) for i in range(8)]
  rows = _table_1(0, values) + _table_1(5, values)
  rows = [row for row in rows if (row.num_edits, row.task) != (5, 'c3')]
  for text in (
    run_report.report(rows, 'edit', {}),
    run_report.benchmarks(rows),
  ):
    assert 'benchmarks, lacks c3 after 5 edits.' in text
    assert 'official' not in text
  assert '| Avg. | 0 | mean | 3.5 |' in text
  assert '| Avg. | 5 | mean | - |' in text


def test_a_part_of_the_official_items_is_called_one():
  rows = [
    dataclasses.replace(_row(0, 'math', 'accuracy', 1.0), n=1000),
    dataclasses.replace(_row(0, 'tydiqa_goldp@4096', 'f1', 1.0), n=900),
    dataclasses.replace(_row(0, 'axb', 'accuracy', 1.0), n=1104),
  ]
  for text in (
    run_report.report(rows, 'edit', {}),
    run_report.benchmarks(rows),
  ):
    assert '1,000 of 5,000' in text and '900 of 5,077' in text
    assert text.count('1,104') == 1 and 'of 1,104' not in text
    assert (
      'limit was set: math (1,000 of 5,000), tydiqa_goldp@4096 (900 of 5,077).'
    ) in text


def test_without_a_benchmark_there_is_no_average():
  rows = [_row(0, 'wikitext_ppl', 'ppl', 9.0)]
  for text in (
    run_report.report(rows, 'edit', {}),
    run_report.benchmarks(rows),
  ):
    assert 'Avg.' not in text and 'official' not in text


def test_where_a_method_acts():
  acting = [
    _row(5, 'mmlu', 'trigger_rate', 40.0),
    _row(5, 'mmlu', 'copied', 60.0),
    _row(0, 'edit', 'num_keys', 0.0),
    _row(5, 'edit', 'num_keys', 5.0),
    _row(5, 'edit', 'radius_median', 0.75),
    _row(5, 'edit', 'nearest_distance_locality_q10', 12.5),
    _row(5, 'edit', 'sequential_reliability_trigger_rate', 100.0),
    _row(5, 'edit', 'sequential_locality_trigger_rate', 20.0),
  ]
  table = _sections(run_report.report([*ROWS, *acting], 'edit', {}))
  assert [row for row in table['Where the method acts'] if row[0] != '--:'] == [
    ['edits', 'mmlu, items', 'mmlu, copied'],
    ['5', '40.0', '60.0'],
    ['edits', 'own prompt', 'unrelated'],
    ['5', '100.0', '20.0'],
    ['edits', 'keys', 'median radius', 'unrelated, 10 %'],
    ['0', '0.00', '', ''],
    ['5', '5.00', '0.75', '12.50'],
  ]
  assert 'Where the method acts' not in run_report.report(ROWS, 'edit', {})
