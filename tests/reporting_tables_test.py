"""Numbers in tables are those of rows; marks; the paper's numbers."""

import dataclasses
import json
import shutil

import pytest
from reporting_workdirs import Made, evaluation, make, read, rome

from me_jax import files, results
from me_jax.evals import comparison
from me_jax.reporting import paper, significance, table_forms, tables
from me_jax.reporting.table import Cell

ALL = ('weight_drift', 'saliency', 'adjusted_ppl')


def _tables(*paths):
  study = read(*paths)
  found = tables.tables(study, significance.changes(study))
  return {table.name: table for table in found}


def _lines(table):
  """Cells by the texts that a line begins with."""
  return {
    tuple(line.heads): dict(zip(table.columns, line.cells, strict=True))
    for line in table.lines
  }


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  place = tmp_path_factory.mktemp('runs') / 'rome'
  return make(place, Made(method=rome(), analyses=ALL))


@pytest.fixture(scope='module')
def found(run):
  return _tables(run)


def test_table_1_holds_the_rows(found, run):
  rows = results.read_rows(run / 'results.jsonl')
  lines = _lines(found['table1'])
  assert list(lines) == [
    ('unedited tiny', '0'),
    ('ROME', '1'),
    ('ROME', '4'),
    ('ROME', '10'),
  ]
  for (_, edits), cells in lines.items():
    for name, task in (
      ('CommonsenseQA', 'commonsenseqa'),
      ('WikiText-2 perplexity', 'wikitext_ppl'),
    ):
      [row] = [
        r
        for r in rows
        if (r.task, str(r.num_edits)) == (task, edits)
        and r.metric in ('accuracy', 'ppl')
      ]
      cell = cells[name]
      assert (cell.value, cell.low, cell.high, cell.n) == (
        row.value,
        row.ci_low,
        row.ci_high,
        row.n,
      )
  assert 'not measured: MMLU, MBPP' in found['table1'].notes[-1]


def test_marks_are_those_of_the_paired_tests(found, run):
  marks = {
    edits: (cells['CommonsenseQA'].mark, cells['WikiText-2 perplexity'].mark)
    for (_, edits), cells in _lines(found['table1']).items()
  }
  assert marks == {
    '0': ('', ''),
    # Not one answer has changed; every loss has risen.
    '1': ('', '↑'),
    '4': ('', '↑'),
    '10': ('↓', '↑'),
  }
  read_scores = lambda n: files.read_jsonl(
    run / 'scores' / 'commonsenseqa' / f'{n:06d}.jsonl'
  )
  compared = comparison.compare(
    read_scores(0), read_scores(10), 'commonsenseqa'
  )
  cell = _lines(found['differences'])['ROME', '10']['CommonsenseQA']
  assert (cell.value, cell.n) == (pytest.approx(-55.0), 20)
  assert (cell.low, cell.high) == (compared.low, compared.high)
  assert compared.p < 0.05 / 2
  # Of two tests.
  assert compared.p <= cell.p <= 2 * compared.p
  assert _lines(found['table1'])['ROME', '10']['CommonsenseQA'].p == cell.p
  infinite = _lines(found['differences'])['ROME', '10']
  assert infinite['WikiText-2 perplexity, nats'].value == float('inf')


def test_table_2_holds_the_rows_and_marks_what_is_not_free(found):
  lines = _lines(found['table2'])
  assert list(lines) == [('ROME', '1'), ('ROME', '4'), ('ROME', '10')]
  last = lines['ROME', '10']
  assert last['sequential reliability'][:5] == (75.0, 65.0, 85.0, 10, '↑')
  assert last['individual generalization'].value == 49.5
  assert last['unedited reliability'].mark == ''
  # One fact alone proves nothing.
  assert lines['ROME', '1']['sequential reliability'].mark == ''


def test_table_3_has_a_slash_where_no_answer_qualifies(found):
  [cells] = _lines(found['table3']).values()
  assert cells['4 edits'][:4] == (19.5, 18.5, 21.5, 18)
  assert str(cells['10 edits'].value) == 'nan'
  assert cells['10 edits'].n == 0
  parts = _lines(found['adjusted_perplexity'])['ROME', '4']
  assert parts['median'].value == 19.5 and parts['left out'].value == 2.0
  assert 'Judged by a model not named' in found['table3'].notes[0]


def test_drift_and_saliency_are_told_in_numbers(found):
  drift = _lines(found['weight_drift'])
  cells = drift['ROME', 'layers/5/mlp/down_proj/kernel', '10']
  assert cells['Pearson R'].value == 0.99 and cells['Pearson R'].n == 4096
  saliency = _lines(found['saliency'])
  assert saliency['ROME', '0']['crossover layer'].value == 4.0
  assert saliency['ROME', '10']['crossover layer'] is None


def test_another_models_numbers_stand_apart(found):
  for name in ('table1', 'table2', 'table3'):
    assert not any(line.is_paper for line in found[name].lines)
    apart = found[f'{name}_paper']
    assert 'of another model: LLaMA-2-7B' in apart.title
    assert all(line.is_paper for line in apart.lines)
  cells = _lines(found['table1_paper'])['MEMIT', '100']
  assert cells['CommonsenseQA'] == Cell(0.49, digits=2)
  assert _lines(found['table3_paper'])['layer 10',]['75 edits'] == '/'


def test_the_papers_model_has_its_numbers_beside_it(tmp_path):
  made = Made(method=rome(), model='llama2_7b', analyses=ALL)
  other = Made(method=rome(layer=20), model='llama2_7b')
  found = _tables(make(tmp_path / 'a', made), make(tmp_path / 'b', other))
  lines = found['table1'].lines
  assert [line.heads[0] for line in lines if line.is_paper] == [
    'paper (LLaMA-2-7B): unedited',
    'paper (LLaMA-2-7B): ROME',
    'paper (LLaMA-2-7B): ROME',
  ]
  paper_lines = _lines(found['table1'])
  ten = paper_lines['paper (LLaMA-2-7B): ROME', '10']
  assert ten['CommonsenseQA'].value == 50.2
  # Right below the run's own, and not below that at another layer.
  at = [tuple(line.heads) for line in lines]
  assert at.index(('ROME, layer 5', '10')) + 1 == at.index(
    ('paper (LLaMA-2-7B): ROME', '10')
  )
  assert at[-1] == ('ROME, layer 20', '10')
  table_3 = _lines(found['table3'])['paper (LLaMA-2-7B): ROME, layer 5',]
  assert table_3['10 edits'].value == 7.65 and table_3['4 edits'] is None
  assert not any(name.endswith('_paper') for name in found)


def test_grace_is_told_by_radius_and_layer(tmp_path):
  grace = {'name': 'grace', 'query': 'last_prompt', 'task_query': ''}
  paths = [
    make(
      tmp_path / f'{layer}_{eps}',
      Made(method={**grace, 'layer': layer, 'eps': eps}),
    )
    for layer, eps in ((30, 10.0), (20, 10.0), (20, 1.0))
  ]
  found = _tables(*paths)
  heads = lambda name: [tuple(line.heads[1:]) for line in found[name].lines]
  assert heads('table6') == [
    ('20', '1', '10'),
    ('20', '10', '10'),
    ('30', '10', '10'),
  ]
  assert heads('table7') == [
    ('20', '1', '10'),
    ('20', '10', '10'),
    ('30', '10', '10'),
  ]
  cells = _lines(found['table6'])['GRACE, layer 20, ε = 1', '20', '1', '10']
  assert cells['reliability'].value == 75.0
  assert cells['keys'].value == 10.0 and cells['median radius'].value == 0.5
  assert cells['acts in CommonsenseQA'].value == 30.0
  assert 'last_prompt, in benchmarks last_prompt (' in found['table6'].notes[0]
  apart = _lines(found['table6_paper'])['ε = 20',]
  assert apart['MBPP'] == Cell(0.0, digits=0)
  assert set(_tables(paths[0])) >= {'table6', 'table7_paper'}
  assert 'table7' not in _tables(paths[0])


def test_an_evaluation_is_what_a_run_without_step_0_is_compared_with(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  rows = results.read_rows(path / 'results.jsonl')
  (path / 'results.jsonl').unlink()
  kept = [r for r in rows if r.num_edits or r.task == 'edit']
  results.append_rows(path / 'results.jsonl', kept)
  alone = _lines(_tables(path)['table1'])
  assert ('unedited tiny', '0') not in alone
  assert alone['ROME', '10']['CommonsenseQA'].mark == ''
  both = _lines(_tables(path, evaluation(tmp_path / 'eval'))['table1'])
  assert both['unedited tiny', '0']['CommonsenseQA'].value == 60.0
  assert both['ROME', '10']['CommonsenseQA'].mark == '↓'
  other = evaluation(tmp_path / 'other', model='big')
  names = _lines(_tables(path, other)['table1'])
  assert names['ROME on tiny', '10']['CommonsenseQA'].mark == ''


def test_an_evaluation_of_edited_weights_is_compared_with_the_unedited(
  tmp_path,
):
  path = make(tmp_path / 'after', Made(method={'name': 'rome'}, edits=(10,)))
  file = path / 'config.json'
  config = json.loads(file.read_text())
  weights = {'weights': 'edited weights', 'unedited': 'tiny weights'}
  config['identity'] |= weights
  files.write_atomic(file, json.dumps(config))
  lines = _lines(_tables(evaluation(tmp_path / 'eval'), path)['table1'])
  assert lines['ROME', '10']['CommonsenseQA'].mark == '↓'


def test_an_evaluation_of_a_runs_model_is_a_part_of_the_run(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  later = make(tmp_path / 'later', Made(method={'name': 'rome'}, edits=(10,)))
  config = json.loads((later / 'config.json').read_text())
  config['identity'] |= {'unedited': 'tiny weights', 'run_state': '10'}
  files.write_atomic(later / 'config.json', json.dumps(config))
  rows = results.read_rows(later / 'results.jsonl')
  (later / 'results.jsonl').unlink()
  other = 'commonsenseqa_cloze'
  results.append_rows(
    later / 'results.jsonl',
    [
      dataclasses.replace(row, task=other, value=12.5)
      for row in rows
      if row.task == 'commonsenseqa'
    ]
    + [dataclasses.replace(row, value=0.0) for row in rows],
  )
  (later / 'scores' / 'commonsenseqa').rename(later / 'scores' / other)
  study = read(later, path)
  [run] = study.runs
  assert study.labels[run] == 'ROME' and run.evaluations == [later]
  assert run.row(other, 'accuracy', 10).value == 12.5
  assert len(run.scores(other, 10)) == 20
  # What the run measured itself is not replaced.
  assert run.row('commonsenseqa', 'accuracy', 10).value == 5.0
  assert run.row('edit', 'sequential_reliability', 10).value == 75.0
  # Of two evaluations the first counts, and the second stays what it is.
  second = shutil.copytree(later, tmp_path / 'second')
  study = read(path, later, second)
  assert [r.path for r in study.runs] == [path, second]
  assert [r.path for r in read(later, second).runs] == [later, second]
  config['identity']['run_state'] = 'another'
  files.write_atomic(later / 'config.json', json.dumps(config))
  assert len(read(later, path).runs) == 2


def test_other_items_make_another_line(tmp_path):
  a = make(tmp_path / 'a', Made(method=rome()))
  right = {0: 10, 1: 10, 4: 10, 10: 10}
  b = make(tmp_path / 'b', Made(method=rome(layer=9), right=right))
  lines = _lines(_tables(a, b)['table1'])
  assert ('unedited tiny, items of ROME, layer 5', '0') in lines
  assert ('unedited tiny, items of ROME, layer 9', '0') in lines


def test_other_items_are_not_taken_for_step_0(tmp_path):
  """Of fewer items they are no value before; what both share is compared."""
  path = make(tmp_path / 'run', Made(method=rome()))
  rows = results.read_rows(path / 'results.jsonl')
  (path / 'results.jsonl').unlink()
  results.append_rows(
    path / 'results.jsonl',
    [dataclasses.replace(r, n=15) for r in rows if r.num_edits],
  )
  study = read(path, evaluation(tmp_path / 'eval'))
  [run] = study.runs
  assert study.source(run, 'commonsenseqa') is study.evaluations[0]
  assert study.unedited(run, 'commonsenseqa') is None
  assert significance.changes(study).mark(run, 10, 'commonsenseqa') == '↓'


def test_what_cannot_be_compared_is_said(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  place = path / 'scores' / 'commonsenseqa' / '000010.jsonl'
  changed = [{**r, 'prompt_hash': 'new'} for r in files.read_jsonl(place)]
  files.write_jsonl(place, changed)
  found = _tables(path)
  assert _lines(found['table1'])['ROME', '10']['CommonsenseQA'].mark == ''
  [note] = [n for n in found['differences'].notes if 'not compared' in n]
  assert 'ROME, 10 edits' in note and 'is not the same question' in note


def test_the_mean_needs_all_eight(tmp_path):
  path = make(tmp_path / 'run', Made(method=rome()))
  row = json.loads((path / 'results.jsonl').read_text().splitlines()[0])
  rows = [
    results.Row(**{**row, 'task': task, 'value': float(i)})
    for i, task in enumerate(
      ('mmlu', 'mbpp', 'math', 'bbh', 'tydiqa', 'c3', 'axb')
    )
  ]
  results.append_rows(path / 'results.jsonl', rows)
  table = _tables(path)['table1']
  assert table.columns[-1] == 'Avg.'
  lines = _lines(table)
  # Of 0 ... 6 and CommonsenseQA's 60.
  assert lines['unedited tiny', '0']['Avg.'].value == pytest.approx(81 / 8)
  assert lines['ROME', '10']['Avg.'] is None


def test_chance_is_told_with_its_reason(found):
  [line] = found['chance'].lines
  assert line.heads == ('CommonsenseQA',)
  assert line.cells == [Cell(20.0), 'five options']


def test_the_papers_numbers_are_whole():
  numbers = paper.numbers()
  assert numbers['benchmarks']['rome']['100']['mmlu'] == 25.5
  assert numbers['facts']['memit']['100']['sequential_reliability'] == 0.07
  assert numbers['adjusted_perplexity']['15']['75'] == 29634.93
  assert numbers['grace_eps']['eps']['20']['generalization'] == 97.3
  assert numbers['grace_layer']['layers']['30']['tydiqa'] == 23.42
  # The means are printed, not made: they agree as far as they are rounded.
  for by_edits in numbers['benchmarks'].values():
    for line in by_edits.values():
      scores = [v for k, v in line.items() if k != 'avg']
      assert line['avg'] == pytest.approx(sum(scores) / 8, abs=0.3)


def test_latex_knows_every_sign_of_ours(found):
  for table in found.values():
    assert table_forms.latex(table).isascii(), table.name
