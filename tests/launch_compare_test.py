"""The program on stores made by hand."""

import os
import pathlib
import subprocess
import sys

import pytest

from me_jax import files

_REPO = pathlib.Path(__file__).resolve().parent.parent


def _store(workdir, task, step, answers, **changes):
  """Scores of questions whose right answer is A, and of losses."""
  records = []
  for i, answer in enumerate(answers):
    is_loss = not isinstance(answer, str) or answer in ('inf', 'nan')
    records.append(
      {
        'doc_id': f'dev/{i}',
        'group': 'dev',
        'prompt_hash': f'{task} {i}',
        'state_fingerprint': f'{workdir.name} {step}',
        'nonfinite': answer == 'inf',
        'target': None if is_loss else 'A',
        'filtered_resps': {} if is_loss else {'oc': answer},
        'metrics': {'nll_per_token': answer}
        if is_loss
        else {'accuracy': float(answer == 'A'), 'accuracy_clean': 0.0},
        **changes,
      }
    )
  files.append_jsonl(workdir / 'scores' / task / f'{step:06d}.jsonl', records)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Two runs: one measured at steps 0, 1 and 20, one at 0 and 5."""
  root = tmp_path_factory.mktemp('compare')
  one, two = root / 'one', root / 'two@x'
  _store(one, 'mmlu', 0, ['A'] * 8 + ['B', 'C'])
  _store(one, 'mmlu', 1, ['A'] * 8 + ['A', 'C'])
  _store(one, 'mmlu', 20, ['D'] * 7 + ['\x1b[31m\n' + 'long' * 50, 'A', 'C'])
  _store(one, 'wikitext_ppl', 0, [2.0, 3.0, 2.5, 4.0])
  _store(one, 'wikitext_ppl', 20, [2.5, 'inf', 3.5, 4.5])
  _store(two, 'mmlu', 0, ['A'] * 8 + ['B', 'C'])
  _store(two, 'mmlu', 5, ['A'] * 4)
  _store(two, 'c3', 5, ['A'] * 4)
  changed = root / 'changed'
  _store(changed, 'mmlu', 0, ['A'] * 10, prompt_hash='another')
  (root / 'empty').mkdir()
  return root


def _start(root, *args):
  return subprocess.run(
    [sys.executable, '-m', 'launch.compare', *args],
    capture_output=True,
    text=True,
    cwd=root,
    env={**os.environ, 'PYTHONPATH': _path(), 'JAX_PLATFORMS': 'cpu'},
  )


def _path():
  return os.pathsep.join(
    filter(None, [str(_REPO), os.environ.get('PYTHONPATH')])
  )


def _compare(root, *args):
  done = _start(root, *args)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  return done.stdout


def _tables(out):
  """Cells by task, by title."""
  tables = {}
  for line in out.splitlines():
    if line.startswith('## '):
      title = line[3:]
      tables[title] = {}
    elif line.startswith('| ') and not line.startswith(('| task', '| ---')):
      task, *cells = [cell.strip() for cell in line.strip('|').split('|')]
      tables[title][task] = cells
  return tables


def test_one_run_against_its_step_0(root):
  out = _compare(root, 'one')
  tables = _tables(out)
  assert list(tables) == ['one@0 -> one@1', 'one@0 -> one@20']
  first, last = tables.values()
  assert list(first) == ['mmlu']
  assert first['mmlu'][5:] == ['0', '1', '1.000', '1.000']
  assert 'Only one of them has: wikitext_ppl.' in out
  metric, n, before, after, difference, *rest = last['mmlu']
  assert (metric, n, before, after) == ('accuracy', '10', '80.0', '10.0')
  assert difference.startswith('-70.0 (-')
  assert rest == ['8', '1', '0.039', '0.078']
  assert last['wikitext_ppl'][2:] == [
    *('2.875', 'inf', '+inf', '', '', '0.125', '0.125')
  ]
  assert '0 before, 1 after' in out
  assert 'dev/0' not in out


def test_two_runs_at_their_last_step_and_the_flipped_items(root):
  out = _compare(root, 'one', 'two@x', '--items')
  [(title, table)] = _tables(out).items()
  assert title == 'one@20 -> two@x@5'
  assert table['mmlu'][1] == '4' and table['mmlu'][5:7] == ['0', '4']
  assert 'mmlu: items left out: 6 only before, 0 only after.' in out
  assert 'Only one of them has: c3, wikitext_ppl.' in out
  assert 'mmlu, wrong to right (4):' in out
  assert "- dev/3: 'D' -> 'A', right is 'A'" in out
  assert 'right to wrong (' not in out


def test_named_steps_and_tasks(root):
  out = _compare(root, 'two@x@0', 'one@20', '--tasks=mmlu', '--items')
  # What a model wrote stays on its line, and is not sent to the terminal.
  assert "- dev/7: 'A' -> '\\x1b[31m\\nlong" in out
  assert max(map(len, out.splitlines())) < 200
  assert list(_tables(out)) == ['two@x@0 -> one@20']
  assert list(_tables(out)['two@x@0 -> one@20']) == ['mmlu']
  assert 'Only one' not in out
  assert 'mmlu, right to wrong (8):' in out
  assert "- dev/8: 'B' -> 'A', right is 'A'" in out


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'expected one or two of DIRECTORY or DIRECTORY@STEP, got []'),
    (['one', '--task=x'], "Unknown command line flag 'task'"),
    (['empty', 'one'], 'empty has no scores (scores/TASK/STEP.jsonl)'),
    (
      ['one@7'],
      'one has no scores after edit step 7. Measured steps: 0, 1, 20',
    ),
    (['one', 'two@x', '--tasks=c3,mmlu'], 'no scores of c3 in common'),
    (['one@0', 'changed'], "mmlu: item 'dev/0' is not the same question"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(root, args, message):
  done = _start(root, *args)
  assert done.returncode == 1
  assert done.stderr.startswith('Error: ') and done.stderr.count('\n') == 1
  assert message in done.stderr
