import pytest
from evals_fakes import folder, task_context

from me_jax.evals import comparison
from me_jax.evals.mmlu_subjects import SUBJECTS
from me_jax.evals.registry import (
  BENCHMARKS,
  OFFICIAL_ITEMS,
  RUNS_CODE,
  TASKS,
  base_name,
  make_task,
)
from me_jax.evals.task import Item, Task

# Of these the headline is a loss.
_TEXTS = ('sample_ppl', 'wikitext_ppl')


def _task(name, **settings):
  return make_task(name, task_context(folder(None), **settings))


@pytest.mark.parametrize('profile', ['oc-2023-12', 'oc-2024-01'])
@pytest.mark.parametrize('name', TASKS)
def test_registered_names_are_the_tasks_own(name, profile):
  task = _task(name, profile=profile)
  assert isinstance(task, Task)
  assert task.name == name and task.mode in ('ppl', 'gen')
  assert task.version and TASKS[name].__doc__
  if task.mode == 'ppl':
    item = Item(id='0', group='all', fields={})
    assert not task.is_cut_short(item, {'resps': [1.0]})


def test_the_papers_benchmarks_come_first():
  assert list(TASKS)[: len(BENCHMARKS)] == list(BENCHMARKS)
  assert len(BENCHMARKS) == 8
  assert OFFICIAL_ITEMS.keys() == TASKS.keys() - set(_TEXTS)
  assert RUNS_CODE <= TASKS.keys()


@pytest.mark.parametrize('name', ['bbh', 'mmlu', 'mmlu_cloze'])
def test_another_window_is_part_of_the_name(name):
  task, other = _task(name), _task(f'{name}@4096')
  assert (task.context.window, other.context.window) == (2048, 4096)
  assert (task.name, other.name) == (name, f'{name}@4096')
  assert type(other) is type(task) and other.version == task.version
  assert base_name(other.name) == name and base_name(name) == name


@pytest.mark.parametrize('name', _TEXTS)
def test_texts_have_windows_of_their_own(name):
  with pytest.raises(ValueError, match='windows of 512 tokens'):
    _task(f'{name}@4096')


@pytest.mark.parametrize(
  ('name', 'near'),
  [
    ('comonsenseqa', 'commonsenseqa, commonsenseqa_'),
    ('mmul', 'mmlu'),
    ('MBPP', 'axb, bbh'),
    ('tydi', 'tydiqa'),
    ('bbh@', 'bbh'),
    ('bbh@long', 'bbh'),
    ('bbh@-1', 'bbh'),
    ('hbb@4096', 'bbh'),
  ],
)
def test_unknown_names_suggest_near_ones(name, near):
  with pytest.raises(ValueError, match=f'{name!r}. Did you mean .*{near}'):
    _task(name)


def test_names_that_are_near_nothing_list_all():
  with pytest.raises(ValueError, match=', '.join(sorted(TASKS))):
    _task('zzz')


_METRICS = ('', '_clean', '_per_char', '_per_token', '_sum')


def _samples(groups, metrics):
  """All 1 in a group of one item, all 0 in one of nine."""
  return [
    {
      'doc_id': f'{group}/{i}',
      'group': group,
      'prompt_hash': f'{group} {i}',
      'state_fingerprint': 'theta0',
      'target': 'A',
      'filtered_resps': dict.fromkeys(
        ('oc', 'clean', 'per_char', 'per_token', 'sum'), 'A'
      ),
      'metrics': dict.fromkeys(metrics, float(group == groups[0])),
      'nonfinite': False,
      'near_tie': False,
    }
    for group, n in zip(groups, (1, 9), strict=True)
    for i in range(n)
  ]


@pytest.mark.parametrize('name', OFFICIAL_ITEMS)
@pytest.mark.parametrize('window', ['', '@4096'])
def test_two_states_are_compared_as_each_is_scored(name, window):
  """The mean over groups where that is the headline, else over items."""
  task = _task(name + window)
  macro_over = SUBJECTS if name == 'mmlu' else task.macro_over
  groups = (macro_over or ('a', 'b'))[:2]
  samples = _samples(groups, [f'accuracy{m}' for m in _METRICS])
  headline = task.aggregate(samples, complete=False)[0]
  assert headline.value == pytest.approx(50 if macro_over else 10)
  found = comparison.compare(samples, samples, task.name)
  assert found.before == pytest.approx(headline.value)


@pytest.mark.parametrize('name', _TEXTS)
def test_a_text_is_one_group(name):
  losses = _samples(('a', 'b'), ['nll_per_token'])
  found = comparison.compare(losses, losses, name)
  assert found.before == pytest.approx(0.1)
