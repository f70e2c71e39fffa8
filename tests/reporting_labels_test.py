import pytest
from reporting_workdirs import Made, make, read, rome

from me_jax.reporting import labels


@pytest.fixture
def labels_of(tmp_path):
  """A function from what runs are made of to their labels."""

  def build(*mades):
    paths = [make(tmp_path / f'r{i}', made) for i, made in enumerate(mades)]
    study = read(*paths)
    return [study.labels[run] for run in study.all_runs]

  return build


def test_a_run_is_called_by_its_method(labels_of):
  memit = {'name': 'memit', 'layers': [4, 5, 6, 7, 8]}
  assert labels_of(Made(method=rome()), Made(method=memit)) == ['ROME', 'MEMIT']


def test_runs_of_one_method_differ_by_their_settings(labels_of):
  assert labels_of(
    Made(method=rome()),
    Made(method=rome(layer=10)),
    Made(method=rome(mom2_adjustment=False)),
  ) == ['ROME, layer 5', 'ROME, layer 10', 'ROME w/o C']
  grace = {'name': 'grace', 'layer': 20}
  assert labels_of(
    Made(method={**grace, 'eps': 1.0}), Made(method={**grace, 'eps': 0.5})
  ) == ['GRACE, ε = 1', 'GRACE, ε = 0.5']
  assert labels_of(
    Made(method=rome()), Made(method=rome(), size=2, edits=(0, 4, 10))
  ) == ['ROME, batch size 1', 'ROME, batch size 2']


def test_models_and_directories_are_named_where_they_must(labels_of):
  assert labels_of(Made(method=rome()), Made(method=rome(), model='big')) == [
    'ROME on tiny',
    'ROME on big',
  ]
  assert labels_of(Made(method=rome()), Made(method=rome())) == [
    'ROME (r0)',
    'ROME (r1)',
  ]


def test_layers_are_written_short():
  assert labels.layers_name([5]) == 'layer 5'
  assert labels.layers_name([4, 5, 6]) == 'layers 4–6'
  assert labels.layers_name([4, 6]) == 'layers 4, 6'


def test_tasks_stand_in_the_papers_order():
  tasks = [
    'wikitext_ppl',
    'axb',
    'commonsenseqa_cloze',
    'mmlu',
    'commonsenseqa',
  ]
  assert labels.task_order([*tasks, 'mmlu@4096', 'mmlu']) == [
    'mmlu',
    'mmlu@4096',
    'commonsenseqa',
    'commonsenseqa_cloze',
    'axb',
    'wikitext_ppl',
  ]
  assert labels.task_name('mmlu@4096') == 'MMLU@4096'
  assert labels.task_name('something') == 'something'
