import dataclasses
import json
import math

import pytest

from me_jax import results
from me_jax.results import Row


def _row(**changes):
  values = dict(
    run='run',
    method='rome',
    model='tiny',
    edit_step=5,
    num_edits=10,
    task='mmlu',
    metric='acc',
    value=1 / 3,
    n=7,
    ci_low=0.1,
    ci_high=0.5,
  )
  return Row(**{**values, **changes})


def _same(a, b):
  """Equal, NaN equal to NaN."""
  return repr(a) == repr(b)


ROWS = [
  _row(),
  _row(metric='ppl', value=math.inf, ci_low=None, ci_high=None),
  _row(metric='drift', value=math.nan, ci_low=-math.inf, ci_high=math.inf),
  _row(task='tâche', value=0.0, ci_low=None),
]


def test_rows_come_back_as_they_were(tmp_path):
  path = tmp_path / 'results.jsonl'
  assert results.read_rows(path) == []
  results.append_rows(path, ROWS[:1])
  results.append_rows(path, ROWS[1:])
  assert _same(results.read_rows(path), ROWS)
  results.append_rows(path, [])
  assert len(path.read_text().splitlines()) == 4


def test_the_file_is_plain_json(tmp_path):
  path = tmp_path / 'results.jsonl'
  results.append_rows(path, ROWS)

  def refuse(name):
    raise AssertionError(name)

  records = [
    json.loads(line, parse_constant=refuse)
    for line in path.read_text().splitlines()
  ]
  fields = [f.name for f in dataclasses.fields(Row)]
  assert all(list(record) == fields for record in records)
  assert records[1]['value'] == 'inf' and records[1]['ci_low'] is None
  assert records[2]['value'] == 'nan' and records[2]['ci_low'] == '-inf'


def test_integers_and_missing_intervals_are_read(tmp_path):
  path = tmp_path / 'results.jsonl'
  record = {**dataclasses.asdict(_row()), 'value': 3}
  del record['ci_low'], record['ci_high']
  path.write_text(json.dumps(record) + '\n')
  [row] = results.read_rows(path)
  assert row == _row(value=3.0, ci_low=None, ci_high=None)
  assert isinstance(row.value, float)


@pytest.mark.parametrize(
  'changes',
  [
    {'value': None},
    {'value': 'many'},
    {'unknown': 1},
    {'task': ...},
    {'value': ...},
  ],
)
def test_a_malformed_row_is_named(tmp_path, changes):
  path = tmp_path / 'results.jsonl'
  record = {**dataclasses.asdict(_row()), **changes}
  record = {k: v for k, v in record.items() if v is not ...}
  results.append_rows(path, ROWS[:2])
  with path.open('a') as f:
    f.write(json.dumps(record) + '\n')
  with pytest.raises(
    ValueError, match='results.jsonl:3: not a result row'
  ) as e:
    results.read_rows(path)
  assert 'delete it: rows are made again' in str(e.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
  path = tmp_path / 'results.jsonl'
  results.append_rows(path, ROWS[:1])
  path.write_text('{"run": \n' + path.read_text())
  with pytest.raises(ValueError, match='results.jsonl:1: expected one JSON'):
    results.read_rows(path)


def test_a_torn_last_line_is_dropped_and_cut(tmp_path):
  path = tmp_path / 'results.jsonl'
  results.append_rows(path, ROWS[:2])
  path.write_text(path.read_text()[:-20])
  assert _same(results.read_rows(path), ROWS[:1])
  results.append_rows(path, ROWS[1:])
  assert _same(results.read_rows(path), ROWS)


def test_rows_of_a_task_are_replaced(tmp_path):
  path = tmp_path / 'results.jsonl'
  results.replace_rows(path, ROWS[:3])
  assert _same(results.read_rows(path), ROWS[:3])
  other = [_row(edit_step=0, value=9.0), _row(task='bbh', value=8.0)]
  for row in other:
    results.replace_rows(path, [row])
  new = [_row(value=1.0), _row(metric='more', value=2.0)]
  results.replace_rows(path, new)
  found = results.read_rows(path)
  assert len(found) == 4 and all(row in found for row in [*other, *new])
  # The same again changes nothing.
  before = path.read_bytes()
  results.replace_rows(path, new)
  assert path.read_bytes() == before


def test_replaced_rows_stay_where_they_were(tmp_path):
  """Scoring a run again gives its file again, in whatever order."""
  path = tmp_path / 'results.jsonl'
  rows = [
    _row(task=task, edit_step=step, metric=metric, value=float(i))
    for i, (step, task, metric) in enumerate(
      (step, task, metric)
      for step in (0, 5)
      for task in ('mmlu', 'bbh', 'edit')
      for metric in ('a', 'b')
    )
  ]
  results.append_rows(path, rows)
  before = path.read_bytes()
  for task in ('bbh', 'mmlu'):
    for step in (5, 0):
      results.replace_rows(
        path, [r for r in rows if (r.task, r.edit_step) == (task, step)]
      )
  assert path.read_bytes() == before


def test_table():
  rows = [
    _row(num_edits=100, value=25.55, ci_low=20.0, ci_high=30.0),
    _row(num_edits=0, value=46.84, ci_low=None, ci_high=None),
    _row(num_edits=0, task='edit', metric='rel', value=math.inf, ci_low=None),
    _row(num_edits=7, metric='not asked for'),
    # The last row of a cell counts.
    _row(num_edits=1, value=1.0),
    _row(num_edits=1, value=2.0, ci_low=1.04, ci_high=3.06),
  ]
  columns = [('MMLU', 'mmlu', 'acc'), ('seq. rel.', 'edit', 'rel')]
  assert results.table(rows, columns) == (
    '| edits | MMLU | seq. rel. |\n'
    '| --: | --: | --: |\n'
    '| 0 | 46.8 | inf |\n'
    '| 1 | 2.0 (1.0–3.1) |  |\n'
    '| 100 | 25.6 (20.0–30.0) |  |\n'
  )
  assert '| 0 | 47 | inf |' in results.table(rows, columns, digits=0)
  assert results.table([], columns).count('\n') == 2
