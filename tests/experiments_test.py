"""The paper's tables and figures: every grid, and a run of each to its end."""

import collections
import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from me_jax import config as config_lib
from me_jax.config import checked
from me_jax.workdir import Workdir

_REPO = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = [
  *(f'table{i}' for i in range(1, 8)),
  *(f'figure{i}' for i in range(3, 9)),
]
RUNNABLE = [*EXPERIMENTS, 'study']
MODELS = ('llama2_7b', 'smollm2_135m', 'tiny')


def _module(name):
  return importlib.import_module(f'experiments.{name}')


@pytest.mark.parametrize('name', RUNNABLE)
def test_each_says_its_command_and_what_the_paper_found(name):
  text = _module(name).__doc__
  assert f'--config=experiments/{name}.py' in text
  assert 'The paper' in text


@pytest.mark.parametrize('model', MODELS)
def test_cells_of_one_name_are_one_run(model, tmp_path):
  """Nothing but what they measure differs, so that edits are made once."""
  experiments = collections.defaultdict(list)
  for name in EXPERIMENTS:
    module = _module(name)
    for cell in module.sweep(f'model={model}'):
      if cell.module != 'launch.run':
        continue
      run = checked(module.get_config(cell.arg))
      assert run.model.name == model
      identity = {'config': dataclasses.asdict(run)}
      Workdir(tmp_path / cell.name).claim(identity, {})
      experiments[cell.name].append(name)
  default = [name for name in experiments if '_rome_' in name][0]
  shared = {'table1', 'table3', 'figure3', 'figure4', 'figure6', 'figure8'}
  assert shared <= set(experiments[default])
  # All the measures of all of them.
  stored = Workdir(tmp_path / default).identity()['config']
  assert set(stored['analyses']) == set(config_lib.run.ANALYSES)
  assert stored['eval_steps'] == [0, 1, 10, 14, 20, 30, 50, 75, 100]


@pytest.mark.parametrize(
  ('arg', 'said'),
  [
    ('method=grace,layer=10', 'layer is for rome only'),
    ('method=memit,eps=5', 'eps is for grace only'),
  ],
)
def test_the_study_takes_no_setting_of_another_method(arg, said):
  with pytest.raises(ValueError, match=said):
    _module('study').get_config(f'{arg},model=tiny')


def test_the_study_changes_one_thing_at_a_time():
  study = _module('study')
  runs = {c.name: c for c in study.sweep() if c.module == 'launch.run'}
  methods = {n: study.get_config(c.arg) for n, c in runs.items()}
  assert len(methods) == len(runs) == 12
  name = 'smollm2_135m_rome_l5'
  for other, change in (
    ('smollm2_135m_rome_l15', {'layer': 15}),
    ('smollm2_135m_rome_without_c', {'mom2_adjustment': False}),
  ):
    expected = dataclasses.replace(methods[name].method, **change)
    assert methods[other].method == expected
  assert methods['smollm2_135m_grace_l25_eps5'].method.eps == 5
  assert methods['smollm2_135m_memit_l4-8_b10'].edit_batch_size == 10
  assert methods['smollm2_135m_memit_l4-8_b50'].eval_steps == (0, 50)
  assert all(run.facts.name == 'zsre' for run in methods.values())


def test_the_papers_grids():
  names = lambda experiment: [
    cell.name for cell in _module(experiment).sweep('model=llama2_7b')
  ]
  assert [n.rpartition('_l')[2] for n in names('table3')] == [
    '5',
    '10',
    '15',
    '20',
    '25',
    '30',
  ]
  assert names('figure4')[6:] == [
    f'llama2_7b_memit_l{window}'
    for window in ('4-8', '9-13', '14-18', '19-23', '25-29')
  ]
  figure5 = _module('figure5')
  for cell, size in zip(figure5.sweep(), (1, 10, 100, 1000), strict=True):
    run = figure5.get_config(cell.arg)
    assert run.edit_batch_size == size and run.num_edits == 1000
    assert all(n % size == 0 for n in run.eval_steps)
  table6, table7 = _module('table6'), _module('table7')
  assert [table6.get_config(c.arg).method.eps for c in table6.sweep()] == [
    1,
    5,
    10,
    20,
  ]
  runs = [table7.get_config(c.arg) for c in table7.sweep()]
  assert [(r.method.layer, r.method.eps) for r in runs] == [
    (10, 10),
    (20, 10),
    (30, 10),
  ]
  assert len(_module('figure7').sweep()) == 4
  without = _module('figure7').get_config('method=rome_without_c')
  assert not without.method.mom2_adjustment


# One cell of each, of so little that it takes seconds. Most are of one name and
# only add what they measure.
_SMALL = {
  'num_edits': '2',
  'eval_steps': '(0,2)',
  'limit': '2',
  'saliency.limit': '2',
  'second_moment.n_samples': '20',
}
_CHANGES = {
  'figure5': {'edit_batch_size': '2'},
  'table4': {'eval_steps': '(1,)'},
  'table5': {'eval_steps': '(0,)', 'num_edits': '1', 'limit': '1'},
}
_ROWS = {
  'table1': {'mmlu', 'commonsenseqa', 'wikitext_ppl'},
  'table2': {'wikitext_ppl'},
  'table3': {'commonsenseqa_whole', 'adjusted_ppl'},
  'table4': {'weight_drift'},
  'table5': {'mmlu', 'mbpp', 'math', 'bbh', 'tydiqa_goldp', 'c3', 'axb'},
  'table6': {'mmlu', 'commonsenseqa', 'wikitext_ppl'},
  'table7': {'mmlu', 'commonsenseqa', 'wikitext_ppl'},
  'figure3': {'mmlu', 'commonsenseqa'},
  'figure4': {'commonsenseqa'},
  'figure5': {'commonsenseqa'},
  'figure6': {'weight_drift'},
  'figure7': {'mmlu', 'commonsenseqa', 'weight_drift'},
  'figure8': {'saliency'},
  'study': {'wikitext_ppl', 'weight_drift', 'saliency', 'adjusted_ppl'},
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Workdirs and caches of all of them."""
  return tmp_path_factory.mktemp('experiments')


# What these measure is most of what the others do.
_FIRST = ('table1', 'table4')


@pytest.mark.data
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in _FIRST else pytest.mark.slow)
    for name in RUNNABLE
  ],
)
def test_a_run_of_each_on_a_small_model(name, root, data_root):
  cell = _module(name).sweep('model=tiny')[-1 if name == 'figure7' else 0]
  command = [
    sys.executable,
    '-m',
    'launch.run',
    f'--config=experiments/{name}.py:{cell.arg}',
    f'--workdir={root / cell.name}',
    f'--cache_dir={root / "cache"}',
    f'--data_root={data_root}',
    '--allow_code_execution',
    *(
      f'--config.{setting}={value}'
      for setting, value in {**_SMALL, **_CHANGES.get(name, {})}.items()
    ),
  ]
  found = subprocess.run(
    command,
    cwd=_REPO,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    },
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stderr
  lines = (root / cell.name / 'results.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert _ROWS[name] | {'edit'} <= {row['task'] for row in rows}
