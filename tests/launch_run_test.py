"""Whole runs of the program, on a random model of four layers."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from me_jax import rebuild, trees
from me_jax.checkpoints import Checkpoints
from me_jax.edits.edit import save_edit
from me_jax.workdir import Workdir

_REPO = pathlib.Path(__file__).resolve().parent.parent
_EDITS = 12
_CONFIG = f"""
from me_jax import config


def get_config(arg=None):
  config.parse_arg(arg, size='tiny')
  return config.RunConfig(
    model=config.ModelSource(name='tiny'),
    method=config.RomeConfig(
      layer=2,
      mom2_adjustment=False,
      v_num_grad_steps=3,
      context_template_length_params=((10, 5),),
    ),
    facts=config.FactsConfig(name='zsre'),
    second_moment=config.SecondMomentConfig(),
    num_edits={_EDITS},
    eval_steps=(0, 1, {_EDITS}),
    tasks=('sample_ppl',),
    limit=3,
  )
"""


def _fact(i, **changes):
  """Texts of one length: few shapes, few compilations."""
  record = {
    'src': f'Where is Site {i:02}?',
    'subject': f'Site {i:02}',
    'alt': f'Rome{i:02}',
    'answers': ['Oslo'],
    'rephrase': f'Site {i:02} is in',
    'loc': f'Who was Ann {i:02}?',
    'loc_ans': 'A poet',
  }
  return {**record, **changes}


def _data_root(root, content):
  path = root / 'zsre' / 'zsre_mend_eval_portability_gpt4.json'
  path.parent.mkdir(parents=True)
  text = content if isinstance(content, str) else json.dumps(content)
  path.write_text(text)
  return f'--data_root={root}'


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A function that starts the program; all share compiled functions."""
  root = tmp_path_factory.mktemp('launch')
  (root / 'config.py').write_text(_CONFIG)
  facts = [_fact(i) for i in range(_EDITS)]
  defaults = {
    '--config': f'--config={root / "config.py"}',
    '--data_root': _data_root(root / 'data', facts),
    '--cache_dir': f'--cache_dir={root / "cache"}',
  }
  unset = ('ME_JAX_DATA', 'ME_JAX_CACHE')
  env = {k: v for k, v in os.environ.items() if k not in unset}
  env |= {
    'JAX_PLATFORMS': 'cpu',
    # Compiling takes most of the time here. Both sides of every comparison
    # are compiled alike.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'HF_HUB_OFFLINE': '1',
  }

  def start(workdir, *args):
    given = {arg.partition('=')[0] for arg in args}
    flags = [flag for name, flag in defaults.items() if name not in given]
    command = [sys.executable, '-m', 'launch.run', f'--workdir={workdir}']
    return subprocess.Popen(
      [*command, *flags, *args],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
      cwd=_REPO,
    )

  return start


def _finish(process):
  out, err = process.communicate()
  assert process.returncode == 0, err
  return out, err


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory):
  """Workdir, stdout and stderr of a run from beginning to end."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  return workdir, *_finish(start(workdir))


def _tables(out):
  """From the title of the report to its last line."""
  return out[out.index('# run: rome on tiny') : out.index('Took ')]


def test_dry_run_prints_the_plan_and_writes_nothing(start, tmp_path):
  out, err = _finish(start(tmp_path / 'run', '--dry_run'))
  assert f'{_EDITS} facts in {_EDITS} edit steps' in out
  assert 'after edit steps 0, 1, 12' in out
  assert 'sample_ppl                  3           1,536' in out
  assert err == '' and not (tmp_path / 'run').exists()


def test_settings_are_overridden(start, tmp_path):
  out, _ = _finish(
    start(
      tmp_path / 'run',
      '--dry_run',
      '--config.num_edits=6',
      '--config.eval_steps=0,2,6',
      '--config.edit_batch_size=2',
      '--config.tasks=sample_ppl,sample_ppl',
      '--config.limit=2',
      '--config.method.context_template_length_params=((5, 10), (10, 5))',
      '--config.method.mom2_adjustment=true',
      '--noconfig.stop_on_collapse',
    )
  )
  assert '6 facts in 3 edit steps' in out and 'after edit steps 0, 1, 3' in out
  assert out.count('sample_ppl                  2           1,024') == 2


def test_a_run_tells_and_keeps_what_it_did(undisturbed):
  workdir, out, err = undisturbed
  assert f'Facts: zsre (records {_EDITS}' in out
  assert 'Model: tiny, weights ' in out
  assert _tables(out).strip() == (workdir / 'report.md').read_text().strip()
  assert 'Change against the unedited model' in out
  table = out[out.index('General ability') :]
  for edits in (0, 1, _EDITS):
    assert f'\n| {edits} | ' in table
  assert 'Took ' in out and str(workdir / 'results.jsonl') in out
  # Progress and our warnings; nothing of what Orbax and JAX have to say.
  kinds = ('edits: ', 'step ', 'Warning: Case zsre-')
  assert all(line.startswith(kinds) for line in err.splitlines())
  assert f'edits: {_EDITS}/{_EDITS} steps (100%)' in err
  assert 'step 12, sample_ppl: 3/3 items (100%)' in err
  assert 'one edit changes the kernel more than a fact should' in err

  kept = {str(path.relative_to(workdir)) for path in workdir.glob('*')}
  assert kept == {
    '.lock',
    'checkpoints',
    'config.json',
    'context_templates.json',
    'facts.jsonl',
    'report.md',
    'results.jsonl',
    'samples',
    'scores',
    'triangle.jsonl',
  }
  assert len(json.loads((workdir / 'context_templates.json').read_text())) == 6
  facts = [
    json.loads(line) for line in (workdir / 'facts.jsonl').open(encoding='utf8')
  ]
  config = json.loads((workdir / 'config.json').read_text())
  assert [f['case_id'] for f in facts] == config['notes']['case_ids']
  assert config['identity']['config']['method']['layer'] == 2
  assert len(config['identity']['facts']) == 64


def test_a_finished_run_prints_its_tables_again(start, undisturbed):
  workdir, out, _ = undisturbed
  # The last task is scored again: its rows may have been cut short.
  remade = {
    workdir / 'report.md',
    workdir / '.lock',
    workdir / 'scores' / 'sample_ppl' / f'{_EDITS:06d}.jsonl',
  }
  paths = [path for path in workdir.rglob('*') if path.is_file()]
  content = {path: path.read_bytes() for path in paths}
  files = {p: p.stat().st_mtime_ns for p in paths if p not in remade}
  again, err = _finish(start(workdir))
  assert _tables(again) == _tables(out)
  assert 'Warning' not in err
  assert {path: path.stat().st_mtime_ns for path in files} == files
  assert {path: path.read_bytes() for path in paths} == content


def _refused(process, *messages):
  """The run ends with exit code 1 and one line that says all of it."""
  _, err = process.communicate()
  assert process.returncode == 1
  assert err.startswith('Error: ') and err.count('\n') == 1, err
  assert all(message in err for message in messages), err


def test_settings_that_are_refused(start, tmp_path):
  """Each with what it must say; started together, they wait for each other."""
  cases = [
    (
      ['--config.method.layr=3'],
      ["no setting 'method.layr'", 'method.layer', 'me_jax/config/'],
    ),
    (['--config.method.variant=memit'], ['rome, r_rome, p_rome', "'memit'"]),
    (['--config.eval_steps=0,13'], ['num_edits = 12', 'got 13']),
    (['--config.model.name=tyny'], ["model 'tyny'", 'presets: tiny']),
    (['--config.tasks=sample_ppl,mmul'], ["'mmul'", 'mean mmlu']),
    (['--config.tasks=mbpp'], ['mbpp: ', 'Add --allow_code_execution']),
    (
      ['--config.evals.profile=oc-2025'],
      ['evals.profile must be one of oc-2023-12', "'oc-2025'"],
    ),
    (
      ['--config.facts.name=counterfact'],
      ['counterfact/counterfact-edit.json', '--data_root', '$ME_JAX_DATA'],
    ),
  ]
  processes = [
    start(tmp_path / str(i), *args) for i, (args, _) in enumerate(cases)
  ]
  for process, (_, messages) in zip(processes, cases, strict=True):
    _refused(process, *messages)


def test_config_files_that_are_refused(start, tmp_path):
  config = _REPO / 'experiments' / 'table1.py'
  missing = f'--config={tmp_path / "none.py"}'
  processes = [
    start(tmp_path / 'a', f'--config={config}:methd=rome'),
    start(tmp_path / 'b', missing, '--config.num_edits=3'),
  ]
  _refused(processes[0], 'method=..., model=...', "'methd=rome'")
  _refused(processes[1], 'none.py')


def test_facts_that_are_refused(start, tmp_path):
  elsewhere = [_fact(i, subject='Nowhere') for i in range(_EDITS)]
  empty = [_fact(i, alt=' ') for i in range(_EDITS)]
  cases = [
    (elsewhere, ['0 are available', 'dropped_subject_not_in_question 12']),
    (empty, ['0 are available', 'dropped_empty_target 12']),
    (json.dumps([_fact(0)])[:-9], ['gpt4.json:1:', 'not valid JSON']),
    ([{'src': 'Who?'}], ['gpt4.json: record 0', "no field 'subject'"]),
  ]
  processes = [
    start(tmp_path / f'run{i}', _data_root(tmp_path / str(i), content))
    for i, (content, _) in enumerate(cases)
  ]
  for process, (_, messages) in zip(processes, cases, strict=True):
    _refused(process, *messages)


def test_another_run_in_the_same_place_is_refused(start, undisturbed, tmp_path):
  workdir, _, _ = undisturbed
  _refused(
    start(workdir, '--config.method.layer=1', '--config.num_edits=11'),
    'eval_steps',
  )
  other = _data_root(tmp_path, [_fact(i, alt='Bonn') for i in range(_EDITS)])
  _refused(
    start(workdir, '--config.method.layer=1', other),
    'config.method.layer: 2 there, 1 now',
    'facts: ',
    'Choose another --workdir',
  )
  held = Workdir(workdir)
  _refused(start(workdir), 'Another process is running in', '--workdir')
  del held


@pytest.mark.slow
def test_in_bfloat16(start, tmp_path):
  """Edited, taken up again, and put together outside of the run."""
  workdir = tmp_path / 'run'
  flags = ('--config.dtype=bfloat16', '--config.tasks=()')
  shorter = ('--config.num_edits=2', '--config.eval_steps=0,1')
  _finish(start(workdir, *flags, *shorter))
  longer = ('--config.num_edits=2', '--config.eval_steps=0,1,2')
  _finish(start(workdir, *flags, *longer))
  _refused(
    start(workdir, '--config.tasks=()', *longer),
    "config.dtype: 'bfloat16' there, 'float32' now",
  )
  model = rebuild.edited_model(workdir)
  assert model.config.dtype == 'bfloat16'
  for path, leaf in trees.flatten(model.params).items():
    is_edited = path == 'layers/2/mlp/down_proj/kernel'
    assert leaf.dtype == ('float32' if is_edited else 'bfloat16')
  rows = [json.loads(line) for line in open(workdir / 'results.jsonl')]
  unedited = rebuild.edited_model(workdir, until=0).fingerprint
  assert {r['state'] for r in rows if r['num_edits'] == 0} == {unedited}


def _progress(workdir):
  """A number that grows with whatever the run writes."""
  triangle = workdir / 'triangle.jsonl'
  lines = triangle.read_bytes().count(b'\n') if triangle.exists() else 0
  # os.walk passes over what was renamed in the meantime.
  return lines + sum(len(d) + len(f) for _, d, f in os.walk(workdir))


def _content(workdir, scratch):
  """All that must not depend on when a run was killed."""
  config = json.loads((workdir / 'config.json').read_text())
  checkpoints = Checkpoints(
    workdir / 'checkpoints', config['identity']['weights']
  )
  steps = list(checkpoints)
  checkpoints.close()
  edits = []
  for step in steps:
    save_edit(scratch, step.edit)
    edits.append((step.record['edit_sha256'], scratch.read_bytes()))
  lines = lambda path: path.read_text().splitlines()
  return {
    'edits': edits,
    'records': [{**step.record, 'seconds': None} for step in steps],
    'identity': config['identity'],
    'rows': [json.loads(line) for line in lines(workdir / 'results.jsonl')],
    'triangle': sorted(lines(workdir / 'triangle.jsonl')),
    'answers': {
      path.relative_to(workdir).as_posix(): path.read_text()
      for kind in ('samples', 'scores')
      for path in workdir.glob(f'{kind}/*/*')
    },
    'report': (workdir / 'report.md').read_text(),
    'templates': (workdir / 'context_templates.json').read_text(),
    'facts': (workdir / 'facts.jsonl').read_text(),
  }


@pytest.mark.parametrize('kills', [3, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_some_moments(start, undisturbed, tmp_path, kills):
  whole, _, _ = undisturbed
  rng = random.Random(0)
  total = _progress(whole)
  # One at the beginning; the others anywhere, mostly while a step is saved.
  moments = sorted([3, *rng.sample(range(4, total - 20), kills - 1)])
  workdir = tmp_path / 'run'
  reached = []
  for moment in moments:
    process = start(workdir)
    while process.poll() is None and _progress(workdir) < moment:
      time.sleep(0.003)
    time.sleep(rng.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    reached.append(_progress(workdir))
  assert len(set(reached)) > kills // 2 and reached[-1] < total
  out, _ = _finish(start(workdir))
  scratch = tmp_path / 'edit.safetensors'
  expected = _content(whole, scratch)
  assert len(expected['edits']) == _EDITS
  assert len(expected['answers']) == 2 * 3
  assert _content(workdir, scratch) == expected
  assert _tables(out).strip() == expected['report'].strip()
