"""Runs of several processes on this machine; a random model of one layer."""

import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import small_training
from small_model import small_model

from launch import hosts
from me_jax import files, results
from me_jax.checkpoints import read_records
from me_jax.edits import mend_loop, tensor_file
from me_jax.models import convert, load
from me_jax.workdir import RunFiles

_REPO = pathlib.Path(__file__).resolve().parent.parent
_SECONDS = 600  # for what takes some ten on an idle machine
_ONE_IS_GONE = (
  'another may have ended, and said why|another task died|leader task'
)
_TASKS = ('sample_ppl', 'commonsenseqa@256')


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny):
  """A directory with a model and questions."""
  root = tmp_path_factory.mktemp('hosts')
  convert.write_hf(root / 'model', small_model(tiny, 1))
  load.save_orbax(root / 'orbax', tiny)
  for split, count in (('train', 8), ('dev', 2)):
    path = root / 'commonsenseqa' / f'{split}_rand_split.jsonl'
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(_question(split, i)) + '\n' for i in range(count)]
    path.write_text(''.join(lines))
  return root


def _question(split, i):
  choices = [{'label': x, 'text': f'{x}{i}'} for x in 'ABCDE']
  return {
    'id': f'{split}{i}',
    'answerKey': 'ABCDE'[i % 5],
    'question': {'stem': f'Q{i}?', 'choices': choices},
  }


_ROME = (
  '--config.method.layer=0',
  '--config.method.mom2_adjustment=False',
  '--config.method.v_num_grad_steps=2',
  "--config.method.context_templates=('{}', 'So it goes. {}')",
  '--config.num_edits=2',
  '--config.eval_steps=(0,2)',
  '--config.limit=2',
  '--config.evals.exemplars=fixed',
  f'--config.tasks={",".join(_TASKS)}',
)
# Two facts with all that a method needs: second moments for MEMIT, too. A model
# is read from a checkpoint by parts.
_OTHERS = """
from me_jax import config

_METHODS = {
  'memit': config.MemitConfig(layers=(1, 2), v_num_grad_steps=2),
  'grace': config.GraceConfig(layer=2, n_iter=4),
}


def get_config(arg):
  is_memit = arg == 'memit'
  return config.RunConfig(
    model=config.ModelSource(name='MODEL'),
    method=_METHODS[arg],
    facts=config.FactsConfig(name='sample'),
    second_moment=config.SecondMomentConfig(
      corpus='generated', n_samples=0, min_tokens=200, max_length=32
    ),
    num_edits=2,
    edit_batch_size=2 if is_memit else 1,
    eval_steps=(0, 2),
    tasks=('sample_ppl',),
    analyses=('weight_drift',) if is_memit else (),
  )
"""


@pytest.fixture
def start(root):
  """A function that starts a program on so many devices, in so many
  processes."""
  started = []

  def start(count, workdir, flags, devices=4, module='launch.run'):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    env = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices // count),
      # Compiling takes most of the time here.
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'JAX_COMPILATION_CACHE_DIR': str(root / 'xla'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      # Not one for all: the unedited model would be asked once for all runs.
      'ME_JAX_CACHE': str(workdir) + '_cache',
    }
    for i in range(count):
      others = [
        f'--coordinator_address=127.0.0.1:{port}',
        f'--num_processes={count}',
        f'--process_id={i}',
        '--process_timeout=20',
      ]
      started.append(
        subprocess.Popen(
          [
            *(sys.executable, '-m', module),
            f'--data_root={root}',
            *flags,
            f'--workdir={workdir}',
            *(others if count > 1 else ()),
          ],
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
          env=env,
          cwd=_REPO,
        )
      )
    return started[-count:]

  yield start
  for process in started:
    process.kill()
    process.communicate()


def _await(path, processes):
  """Returns when there is something in a file that the processes write."""
  end = time.monotonic() + _SECONDS
  while not path.is_file() or not path.stat().st_size:
    ended = [p for p in processes if p.poll() is not None]
    assert not ended, ended[0].communicate()[1]
    assert time.monotonic() < end
    time.sleep(0.05)


def _ends(processes):
  """Exit codes and what was said on stdout and stderr."""
  said = [process.communicate(timeout=_SECONDS) for process in processes]
  return [process.returncode for process in processes], *zip(*said, strict=True)


def _content(path):
  """All that a run left, in numbers and texts; and what is no number."""
  place = RunFiles(path)
  records = [json.loads(r) for r in place.triangle.read_text().splitlines()]
  edits = [r['info'] for r in read_records(place.checkpoints)]
  rows = [{**vars(row), 'run': ''} for row in results.read_rows(place.results)]
  answers = [
    json.loads(line)
    for task in _TASKS
    for step in (0, 2)
    for line in place.samples(task, step).read_text().splitlines()
  ]
  return {'edits': edits, 'rows': rows, 'facts': records, 'answers': answers}


def _assert_same(found, expected, where=''):
  """Equal but for rounding, and what follows from it: names of states."""
  if isinstance(expected, dict):
    assert found.keys() == expected.keys(), where
    for key, value in expected.items():
      if not key.startswith(('state', 'copied')):
        _assert_same(found[key], value, f'{where}/{key}')
  elif isinstance(expected, list):
    assert len(found) == len(expected), where
    for i, value in enumerate(expected):
      _assert_same(found[i], value, f'{where}/{i}')
  elif isinstance(expected, float):
    np.testing.assert_allclose(found, expected, 1e-4, 1e-6, err_msg=where)
  else:
    assert found == expected, where


def test_processes_die_are_stopped_and_become_more_and_fewer(start, root):
  """The same comes out as of one process that nothing happens to."""
  run, whole = root / 'run', root / 'whole'
  config = f'--config=experiments/quickstart.py:model={root / "model"}'
  flags = ('--mesh=2x2', config, *_ROME)
  place = RunFiles(run)
  # One dies: of two the other, of four that which all are in touch with.
  for count, dies, awaited in (
    (2, 1, place.samples(_TASKS[0], 0)),
    (4, 0, place.samples(_TASKS[1], 0)),
  ):
    others = start(count, run, flags)
    _await(awaited, others)
    others.pop(dies).kill()
    codes, _, said = _ends(others)
    assert not {0, None} & set(codes)
    assert all(re.search(_ONE_IS_GONE, text) for text in said), said
  # One of two is told to stop, which both do after the edit they are at.
  assert not (place.checkpoints / '1').exists()
  two = start(2, run, flags)
  _await(place.checkpoints / '1' / 'record' / 'metadata', two)
  two[1].terminate()
  codes, _, said = _ends(two)
  assert codes == [128 + signal.SIGTERM] * 2, said
  assert 'Stopped by SIGTERM. The same command resumes.' in said[0]
  assert 1 <= len(read_records(place.checkpoints)) <= 2
  # Four end what two have begun.
  codes, said, errors = _ends(start(4, run, flags))
  assert codes == [0] * 4, errors
  assert 'on 4 x cpu as 2x2 in 4 processes' in said[0]
  assert 'Model: ' not in said[1]

  [code], _, errors = _ends(start(1, whole, flags))
  assert code == 0, errors
  _assert_same(_content(run), _content(whole))


@pytest.mark.slow
@pytest.mark.parametrize('method', ['memit', 'grace'])
def test_other_methods_in_two_processes(start, root, method):
  """As in one, and what is asked of the edited model afterwards, too."""
  config = root / 'others.py'
  config.write_text(_OTHERS.replace('MODEL', str(root / 'orbax')))
  found = {}
  for count in (1, 2):
    run, asked = root / f'{method}{count}', root / f'{method}{count}_asked'
    flags = ('--mesh=2x1', f'--config={config}:{method}')
    codes, _, errors = _ends(start(count, run, flags, devices=2))
    assert codes == [0] * count, errors
    flags = ('--mesh=2x1', f'--run={run}', '--limit=2', f'--tasks={_TASKS[1]}')
    program = {'module': 'launch.evaluate', 'devices': 2}
    codes, _, errors = _ends(start(count, asked, flags, **program))
    assert codes == [0] * count, errors
    found[count] = [
      {**vars(row), 'run': ''}
      for path in (run, asked)
      for row in results.read_rows(path / 'results.jsonl')
    ]
  assert {row['task'] for row in found[1]} >= {'edit', *_TASKS}
  _assert_same(found[2], found[1])


@pytest.mark.slow
def test_a_training_is_stopped_in_two_processes_and_ended_by_four(
  start, tmp_path
):
  """As one that nothing happens to. It is saved after each of its steps."""
  small_training.write(tmp_path)
  run, whole = tmp_path / 'run', tmp_path / 'whole'
  flags = (
    '--mesh=2x2',
    f'--config={tmp_path / "config.py"}',
    '--config.method.val_interval=2',
    f'--data_root={tmp_path}',
  )
  train = functools.partial(start, flags=flags, module='launch.train_mend')
  two = train(2, run)
  _await(run / mend_loop.CURVE, two)
  two[1].terminate()
  codes, _, said = _ends(two)
  assert codes == [128 + signal.SIGTERM] * 2, said
  assert 'Stopped by SIGTERM' in said[0] and 'After 2' not in said[1]
  assert len(files.read_jsonl(run / mend_loop.CURVE)) < 2 * 20
  for count, workdir in ((4, run), (1, whole)):
    codes, _, errors = _ends(train(count, workdir))
    assert codes == [0] * count, errors
  _assert_same(
    *[files.read_jsonl(place / mend_loop.CURVE) for place in (run, whole)]
  )
  networks = [tensor_file.read(p / mend_loop.NETWORK)[0] for p in (run, whole)]
  for name, expected in networks[1].items():
    np.testing.assert_allclose(networks[0][name], expected, 1e-4, 1e-6)


def test_who_is_told_half_is_told_what_is_missing(monkeypatch):
  given = {'_COORDINATOR': 'node0:1', '_NUM_PROCESSES': None, '_PROCESS_ID': 0}
  for name, value in given.items():
    monkeypatch.setattr(hosts, name, types.SimpleNamespace(value=value))
  with pytest.raises(ValueError, match='there is no --num_processes'):
    hosts.start()
