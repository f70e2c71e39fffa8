import dataclasses
import fcntl
import math

import pytest
from reporting_workdirs import Made, evaluation, make, rome

from me_jax import results
from me_jax.reporting.measured_run import read_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  place = tmp_path_factory.mktemp('runs') / 'rome'
  return read_run(make(place, Made(method=rome())))


def test_a_run_is_read(run):
  assert (run.model, run.weights) == ('tiny', 'tiny weights')
  assert run.method['name'] == 'rome' and run.layers == (5,)
  assert run.edits() == [0, 1, 4, 10]
  assert run.edits('edit', 'sequential_reliability') == [1, 4, 10]
  assert run.headlines == {'commonsenseqa': 'accuracy', 'wikitext_ppl': 'ppl'}
  assert run.row('commonsenseqa', 'accuracy', 4).value == 45.0
  assert run.row('commonsenseqa', 'accuracy', 5) is None
  assert math.isinf(run.row('wikitext_ppl', 'ppl', 10).value)
  assert len(run.records) == 10 and len(run.scores('commonsenseqa', 4)) == 20
  assert run.scores('mmlu', 4) == []
  assert run.is_finished and run.edits_made == 10


def test_letters_are_those_of_all_items(run):
  found = run.letters('commonsenseqa', 4)
  assert {'A', 'empty'} <= found.keys()
  assert run.letters('wikitext_ppl', 4) == {}
  assert run.letters('commonsenseqa', 5) == {}
  # Options that differ from item to item make no bars.
  one = run.row('commonsenseqa', 'predicted_A', 4)
  own = dataclasses.replace(one, metric='predicted_no_option')
  other = dataclasses.replace(run, rows=[*run.rows, own])
  assert other.letters('commonsenseqa', 4) == {}


def test_a_run_that_goes_on_is_neither_locked_nor_written_to(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome(), edits=(0, 1, 4)))
  # Cut short while it was written.
  with open(path / 'results.jsonl', 'a') as f:
    f.write('{"run": "run", "meth')
  (path / 'checkpoints' / '5.orbax-checkpoint-tmp').mkdir()
  before = {p: p.stat().st_mtime_ns for p in path.rglob('*')}
  with open(path / '.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    run = read_run(path)
  assert not run.is_finished
  assert (run.edits_made, run.num_edits) == (4, 10)
  (path / '.lock').unlink()
  after = {p: p.stat().st_mtime_ns for p in path.rglob('*')}
  assert after == before


def test_an_evaluation_is_read(tmp_path):
  run = read_run(evaluation(tmp_path / 'eval'))
  assert run.method['name'] == 'unedited'
  assert run.edits() == [0] and run.records == [] and run.triangle == []
  assert run.is_finished and run.edits_made == 0


def test_the_last_state_must_be_measured_in_full(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  rows = results.read_rows(path / 'results.jsonl')
  (path / 'results.jsonl').unlink()
  last = lambda row: (row.num_edits, row.task) == (10, 'wikitext_ppl')
  results.append_rows(
    path / 'results.jsonl', [row for row in rows if not last(row)]
  )
  assert not read_run(path).is_finished


def test_a_run_may_end_with_edits_that_are_not_measured(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome(), edits=(0, 1)))
  assert not read_run(path).is_finished
  run = read_run(make(tmp_path / 'whole', Made(method=rome())))
  config = {**run.config, 'eval_steps': [0]}
  whole = dataclasses.replace(run, identity={**run.identity, 'config': config})
  assert whole.is_finished


def test_a_run_that_has_only_begun(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  (path / 'results.jsonl').unlink()
  run = read_run(path)
  assert run.rows == [] and run.edits() == [] and not run.is_finished


def test_what_is_no_workdir_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere is not a directory'):
    read_run(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='no config.json. Name dir'):
    read_run(tmp_path)
  for content, message in (
    ('{', 'is damaged'),
    ('{"identity": {}}', 'names no model and no method'),
    (
      '{"identity": {"config": {"model": {"name": 1}, "method": {"name": 2}}}}',
      'are texts',
    ),
  ):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=message):
      read_run(tmp_path)


def test_a_record_that_lacks_a_field_is_named(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome(), edits=(0, 1)))
  with open(path / 'triangle.jsonl', 'a') as f:
    f.write('{"edit_step": 2, "fact": 1}\n')
  with pytest.raises(
    ValueError, match='triangle.jsonl: record .* lacks scores'
  ):
    read_run(path)
