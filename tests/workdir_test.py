import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from me_jax import files
from me_jax.workdir import RunFiles, Workdir

IDENTITY = {
  'config': {
    'method': {'name': 'rome', 'layer': 5, 'v_lr': 0.5},
    'eval_steps': (0, 1, 10),
    'tasks': ('mmlu',),
    'analyses': (),
    'saliency': {'limit': 0},
  },
  'weights': 'abc',
  'second_moments': {'5': 'def'},
  'tasks': {'mmlu': 'old'},
}


def _identity(**changes):
  identity = json.loads(json.dumps(IDENTITY))
  for path, value in changes.items():
    *parents, name = path.split('__')
    node = identity
    for parent in parents:
      node = node[parent]
    node[name] = value
  return identity


def test_places_are_below_the_directory(tmp_path):
  workdir = Workdir(tmp_path / 'new' / 'run')
  names = [
    getattr(workdir, place).name
    for place in (
      'config',
      'facts',
      'templates',
      'checkpoints',
      'triangle',
      'results',
      'report',
    )
  ]
  assert len(set(names)) == 7
  assert all(name in RunFiles.__doc__ for name in names)
  assert workdir.samples('mmlu', 10) == (
    tmp_path / 'new' / 'run' / 'samples' / 'mmlu' / '000010.jsonl'
  )
  assert workdir.scores('mmlu@4096', 0) == (
    tmp_path / 'new' / 'run' / 'scores' / 'mmlu@4096' / '000000.jsonl'
  )
  for name in ('samples', 'scores'):
    assert f'`{name}/TASK/' in RunFiles.__doc__


def test_all_scores_by_step_and_task(tmp_path):
  workdir = Workdir(tmp_path)
  assert workdir.all_scores() == {}
  wanted = {}
  for step in (20, 0):
    for task in ('mmlu@4096', 'bbh'):
      records = [{'doc_id': f'{task} {step}'}, {'doc_id': 'b'}]
      files.write_jsonl(workdir.scores(task, step), records)
      wanted.setdefault(step, {})[task] = records
  (workdir.scores('bbh', 0).parent / 'notes.jsonl').write_text('mine')
  assert workdir.all_scores() == wanted
  assert list(workdir.all_scores()[20]) == ['bbh', 'mmlu@4096']


def test_the_same_run_claims_again(tmp_path):
  workdir = Workdir(tmp_path)
  workdir.claim(IDENTITY, {'jax': '1'})
  written = workdir.config.read_text()
  # Notes are kept as they were, and never compared.
  workdir.claim(_identity(), {'jax': '2'})
  assert workdir.config.read_text() == written
  assert json.loads(written)['notes'] == {'jax': '1'}
  assert workdir.identity() == _identity()


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'weights': 'xyz'}, ["weights: 'abc' there, 'xyz' now"]),
    ({'config__method__layer': 6}, ['config.method.layer: 5 there, 6 now']),
    (
      {'tasks__mmlu': 'new'},
      ["tasks.mmlu: 'old' there, 'new' now"],
    ),
    (
      {'config__method__new': 1},
      ["config.method.new: 'absent' there, 1 now"],
    ),
    ({'second_moments': {}}, ["second_moments.5: 'def' there, 'absent' now"]),
    (
      {'weights': 'xyz', 'config__method__v_lr': 0.1},
      ['config.method.v_lr: 0.5 there, 0.1 now', "weights: 'abc' there"],
    ),
  ],
)
def test_another_run_is_refused_by_its_fields(tmp_path, changes, said):
  workdir = Workdir(tmp_path)
  workdir.claim(IDENTITY, {})
  with pytest.raises(ValueError, match='holds another run') as e:
    workdir.claim(_identity(**changes), {})
  assert all(words in str(e.value) for words in said)
  assert str(e.value).count(' there, ') == len(said)
  assert 'Choose another --workdir' in str(e.value)
  assert workdir.identity() == _identity()


def test_a_run_from_before_there_were_dtypes(tmp_path):
  workdir = Workdir(tmp_path)
  workdir.claim(IDENTITY, {})
  with pytest.raises(
    ValueError, match="dtype: 'float32' there, 'bfloat16' now"
  ):
    workdir.claim(_identity(config__dtype='bfloat16'), {})
  workdir.claim(_identity(config__dtype='float32'), {})
  assert workdir.identity()['config']['dtype'] == 'float32'


def test_what_is_measured_may_grow(tmp_path):
  workdir = Workdir(tmp_path)
  workdir.claim(IDENTITY, {'jax': '1'})
  workdir.claim(
    _identity(
      config__tasks=['bbh'],
      config__eval_steps=[5],
      config__analyses=['saliency'],
      config__saliency__limit=7,
      tasks={'bbh': 'other'},
    ),
    {},
  )
  grown = _identity(
    config__tasks=['mmlu', 'bbh'],
    config__eval_steps=[0, 1, 5, 10],
    config__analyses=['saliency'],
    config__saliency__limit=7,
    tasks={'mmlu': 'old', 'bbh': 'other'},
  )
  assert workdir.identity() == grown
  # Less changes nothing, whatever the settings of what is left out.
  workdir.claim(_identity(), {})
  assert workdir.identity() == grown
  with pytest.raises(ValueError, match='config.saliency.limit: 7 there, 0 now'):
    workdir.claim(_identity(config__analyses=['saliency']), {})


@pytest.mark.parametrize('content', ['{"identity": {', '[]', '{}', '7', ''])
def test_a_damaged_config_is_refused(tmp_path, content):
  workdir = Workdir(tmp_path)
  workdir.config.write_text(content)
  with pytest.raises(ValueError, match='config.json is damaged.*Restore it'):
    workdir.claim(IDENTITY, {})
  assert workdir.config.read_text() == content


def test_identity_of_an_unclaimed_directory(tmp_path):
  with pytest.raises(FileNotFoundError):
    Workdir(tmp_path).identity()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
  hold = (
    'import fcntl, sys\n'
    'lock = open(sys.argv[1], "w")\n'
    'fcntl.flock(lock, fcntl.LOCK_EX)\n'
    'print("held", flush=True)\n'
    'sys.stdin.read()\n'
  )
  other = subprocess.Popen(
    [sys.executable, '-c', hold, str(tmp_path / '.lock')],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  try:
    assert other.stdout.readline() == b'held\n'
    with pytest.raises(OSError, match='Another process is running in') as e:
      Workdir(tmp_path)
    assert str(tmp_path) in str(e.value) and '--workdir' in str(e.value)
  finally:
    other.kill()
    other.communicate()
  Workdir(tmp_path)


def test_the_lock_is_held_as_long_as_the_workdir(tmp_path):
  workdir = Workdir(tmp_path)
  with open(workdir.path / '.lock', 'w') as other:
    with pytest.raises(BlockingIOError):
      fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    del workdir
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
  'number, said',
  [
    (errno.EACCES, 'no permission to write there. Choose another directory'),
    (errno.ENOSPC, 'the disk is full'),
  ],
)
def test_a_directory_that_cannot_be_written(
  tmp_path, monkeypatch, number, said
):
  def fail(*args, **kwargs):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr('pathlib.Path.mkdir', fail)
  with pytest.raises(OSError, match=said):
    Workdir(tmp_path / 'run')


def test_a_file_in_its_place(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(OSError, match='Could not write .*run'):
    Workdir(tmp_path / 'run')


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
  (tmp_path / 'samples').mkdir()
  leftover = tmp_path / 'samples' / '.report.md.123.partial'
  leftover.write_text('half')
  kept = tmp_path / 'results.jsonl'
  kept.write_text('')
  Workdir(tmp_path)
  assert kept.exists() and not leftover.exists()


def test_reading_neither_locks_nor_writes(tmp_path):
  Workdir(tmp_path / 'run').claim(IDENTITY, {})
  there = sorted((tmp_path / 'run').iterdir())
  other = RunFiles(tmp_path / 'run')  # locked by `workdir`
  assert other.identity()['weights'] == 'abc'
  RunFiles(tmp_path / 'nowhere')
  assert sorted(tmp_path.rglob('*')) == [tmp_path / 'run', *there]
