import pytest

from me_jax.data import facts, sources, training_facts
from me_jax.data.request import EditRequest, LocalityPrompt


def _unrelated(prompt):
  return LocalityPrompt(prompt=prompt, answer='b')


def _fact(pool, i, subject=None, **changes):
  subject = subject or f'{pool}{i}'
  fields = {
    'case_id': f'{pool}-{i}',
    'subject': subject,
    'prompt': 'Who is {}?',
    'target_new': 'x',
    'rephrase_prompts': (f'Who, {pool}{i}?',),
    'locality_prompts': (_unrelated(f'And {pool}{i}?'),),
  }
  return EditRequest(**{**fields, **changes})


A = [_fact('a', i) for i in range(10)]
B = [_fact('b', i) for i in range(6)]


def _split(pools, **changes):
  settings = {'facts_per_pool': 0, 'val_facts': 4, 'seed': 0, **changes}
  return training_facts.split(pools, **settings)


def test_all_facts_are_in_one_part():
  split = _split([A, B])
  assert sorted(f.case_id for f in (*split.training, *split.validation)) == (
    sorted(f.case_id for f in (*A, *B))
  )
  assert split.counts == {
    'dropped_incomplete': 0,
    'dropped_prompt_in_evaluation': 0,
    'dropped_subject_in_evaluation': 0,
    'dropped_prompt_in_validation': 0,
    'dropped_subject_in_validation': 0,
    'training': 12,
    'validation': 4,
  }


@pytest.mark.parametrize('val_facts, of_a', [(4, 2), (5, 2), (1, 0)])
def test_validation_has_as_many_of_each_pool(val_facts, of_a):
  validation = _split([A, B], val_facts=val_facts).validation
  assert len(validation) == val_facts
  assert sum(f.case_id.startswith('a') for f in validation) == of_a


def test_no_subject_is_in_both_parts():
  pool = [
    _fact('a', i, subject=f's{i % 4}', prompt=f'{i}: {{}}?') for i in range(20)
  ]
  split = _split([pool], val_facts=2)
  judged = {f.subject for f in split.validation}
  assert judged.isdisjoint(f.subject for f in split.training)
  assert split.counts['dropped_subject_in_validation'] > 0
  assert split.counts['training'] == len(split.training) < 18


@pytest.mark.parametrize(
  'changes, why',
  [
    ({'subject': 'a3', 'prompt': 'What of {}?'}, 'subject'),
    ({'subject': 'a3'}, 'prompt'),
    ({'rephrase_prompts': ('Well?', 'Who is a3?')}, 'prompt'),
    ({'rephrase_prompts': ('Who, a3?',)}, 'prompt'),
    ({'locality_prompts': (_unrelated('1'), _unrelated('And a3?'))}, 'prompt'),
  ],
)
def test_what_the_editor_is_judged_by_is_in_no_part(changes, why):
  judged = [_fact('e', 0), _fact('e', 1, **changes)]
  split = _split([A, B], evaluation=judged)
  assert split.counts[f'dropped_{why}_in_evaluation'] == 1
  parts = {f.case_id for f in (*split.training, *split.validation)}
  assert parts == {f.case_id for f in (*A, *B)} - {'a-3'}


def test_no_prompt_is_in_both_parts():
  pool = [
    _fact('a', i, locality_prompts=(_unrelated(f'And {i % 4}?'),))
    for i in range(20)
  ]
  split = _split([pool], val_facts=2)
  asked = {f.locality_prompts for f in split.validation}
  assert asked.isdisjoint(f.locality_prompts for f in split.training)
  dropped = split.counts['dropped_prompt_in_validation']
  assert dropped == 18 - len(split.training) > 0


def test_facts_that_cannot_be_learned_from_are_dropped():
  bad = [
    _fact('c', 0, rephrase_prompts=()),
    _fact('c', 1, locality_prompts=()),
  ]
  split = _split([[*A, *bad]])
  assert split.counts['dropped_incomplete'] == 2
  assert not {f.case_id for f in split.training} & {'c-0', 'c-1'}


def test_draw():
  split = _split([A, B], facts_per_pool=5)
  assert len(split.training) + len(split.validation) == 10
  assert split == _split([A, B], facts_per_pool=5)
  other = _split([A, B], facts_per_pool=5, seed=1)
  assert other.sha256 != split.sha256
  assert {f.case_id for f in other.validation} != {
    f.case_id for f in split.validation
  }


@pytest.mark.parametrize(
  'pools, val_facts', [([A], 10), ([A], 11), ([A[:1], B], 4), ([[]], 1)]
)
def test_too_few(pools, val_facts):
  with pytest.raises(ValueError, match='Ask for fewer, or give more'):
    _split(pools, val_facts=val_facts)


@pytest.mark.data
def test_of_the_real_files(data_root):
  data = sources.DataSources(data_root=data_root, allow_hub=False)
  names = ('zsre_train', 'counterfact_train')
  pools = [facts.load_facts(name, data) for name in names]
  evaluation = facts.load_facts('zsre', data)
  split = _split(pools, val_facts=200, evaluation=evaluation)
  assert split.counts['dropped_incomplete'] == 0
  # Of their unrelated questions 161 are in zsre_train.
  assert split.counts['dropped_prompt_in_evaluation'] == 171
  assert split.counts['dropped_subject_in_evaluation'] == 2
  assert len(split.training) > 11_000
  kept = (*split.training, *split.validation)
  assert {f.subject for f in evaluation}.isdisjoint(f.subject for f in kept)
  asked = {p.prompt for f in evaluation for p in f.locality_prompts}
  assert asked.isdisjoint(p.prompt for f in kept for p in f.locality_prompts)
