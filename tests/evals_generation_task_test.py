import json
import random

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder, sample_of, task_context

from me_jax.evals import aggregates, letters
from me_jax.evals.generation_task import GenerationTask, Reading
from me_jax.evals.prompts import Turn, bot, human
from me_jax.evals.task import Item
from me_jax.typing import GenerateResult

PROFILES = ('oc-2023-12', 'oc-2024-01')


def _task(*, tokenizer=None, context=None, **changes):
  """Three items, four exemplars; a reading of the first word and one of the
  last."""
  mark = lambda item, word: {'accuracy': word == item.fields['gold']}
  settings = {
    'name': 'words',
    'version': '1',
    'context': task_context(folder(None), tokenizer, **(context or {})),
    'docs': lambda: [
      Item(id=f'{i}', group='ab'[i % 2], fields={'q': f'q{i}', 'gold': 'yes'})
      for i in range(3)
    ],
    'doc_to_turns': lambda item: [human(item.fields['q'])],
    'doc_to_target': lambda item: item.fields['gold'],
    'fewshot': lambda item: [[human(f'e{i}'), bot(f'a{i}')] for i in range(4)],
    'max_gen_toks': 5,
    'readings': (
      Reading(name='oc', filter=lambda i, text: _word(text, 0), mark=mark),
      Reading(name='clean', filter=lambda i, text: _word(text, -1), mark=mark),
    ),
  }
  return GenerationTask(**{**settings, **changes})


def _word(text, place):
  return (text.split() or [''])[place]


def _generated(text, stop_reason='length'):
  return GenerateResult(
    tokens=np.zeros(len(text), np.int32), text=text, stop_reason=stop_reason
  )


def _prompt(task):
  return CharTokenizer().decode(task.request(task.items()[1]).prompt)


def test_exemplars_come_first_turn_by_turn():
  assert _prompt(_task()) == 'e0\na0\ne1\na1\ne2\na2\ne3\na3\nq1'
  assert _prompt(_task(context={'is_chat': True})) == (
    ' [INST] e0 [/INST] a0 [INST] e1 [/INST] a1'
    ' [INST] e2 [/INST] a2 [INST] e3 [/INST] a3 [INST] q1 [/INST] '
  )


def test_plain_text_is_the_same_in_chat():
  for is_chat in (False, True):
    task = _task(
      context={'is_chat': is_chat},
      fewshot=lambda item: (),
      doc_to_turns=lambda item: [Turn('TEXT', f'text\n{item.fields["q"]} ')],
    )
    assert _prompt(task) == 'text\nq1 '


def _with_shots(n):
  return '\n'.join([*(f'e{i}\na{i}' for i in range(n)), 'q1'])


@pytest.mark.parametrize('bos', [0, 1])
@pytest.mark.parametrize('missing', [0, 1, 5])
@pytest.mark.parametrize('fits', [4, 3, 2])
def test_the_last_exemplar_goes_first(fits, missing, bos):
  """The window holds `fits` exemplars but for `missing` tokens. Dropping
  looks at the whole window; then a cut leaves room for the answer."""
  full = bos + len(_with_shots(fits))
  window = full - missing
  tokenizer = CharTokenizer(adds_bos=bool(bos))
  task = _task(tokenizer=tokenizer, context={'window': window})
  request = task.request(task.items()[1])
  text = _with_shots(fits - (missing > 0))
  room = window - 5 - bos
  assert tokenizer.decode(request.prompt) == text[-room:]
  assert (request.prompt[0] == 1) == bool(bos)
  assert len(request.prompt) == min(window - 5, bos + len(text))
  assert request.max_new_tokens == 5


def test_a_window_must_hold_more_than_the_answer():
  task = _task(context={'window': 5})
  with pytest.raises(ValueError, match='words: .* 5 tokens fills the window'):
    task.request(task.items()[0])
  task = _task(context={'window': 6})
  assert task.request(task.items()[0]).prompt == (1,)


def test_what_is_no_exemplar_is_only_cut():
  task = _task(
    context={'window': 25},
    fewshot=lambda item: (),
    doc_to_turns=lambda item: [human('shots ' * 9), human(item.fields['q'])],
  )
  request = task.request(task.items()[1])
  assert request.prompt[0] == 1 and len(request.prompt) == 25 - 5
  assert _prompt(task) == ('shots ' * 9 + '\nq1')[-19:]


def test_readings_have_suffixes_but_for_the_first():
  task = _task()
  sample = sample_of(task, task.items()[0], _generated('yes or no', 'eos'))
  assert sample['resps'] == ['yes or no'] and sample['target'] == 'yes'
  assert (sample['n_tokens'], sample['stop_reason']) == (9, 'eos')
  assert sample['filtered_resps'] == {'oc': 'yes', 'clean': 'no'}
  assert sample['metrics'] == {'accuracy': 1, 'accuracy_clean': 0}
  assert not sample['nonfinite']
  swapped = _task(readings=task.readings[::-1])
  sample = sample_of(swapped, task.items()[0], _generated('yes or no'))
  assert sample['metrics'] == {'accuracy': 0, 'accuracy_oc': 1}


def _samples(task):
  texts = ('yes', 'no yes', '')
  return [
    sample_of(task, item, _generated(text, 'eos' if text else 'nonfinite'))
    for item, text in zip(task.items(), texts, strict=True)
  ]


def test_aggregate_is_a_mean_over_items():
  task = _task(extra_metrics=lambda s: aggregates.spread(s, 'y', 'oc'))
  found = task.aggregate(_samples(task), complete=True)
  assert [m.name for m in found] == [
    'accuracy',
    'accuracy_clean',
    'predicted_y',
    'predicted_empty',
    'n_nonfinite',
  ]
  values = [m.value for m in found]
  assert values == pytest.approx([100 / 3, 200 / 3, 0, 100 / 3, 1])


def test_aggregate_is_a_mean_over_groups():
  task = _task(macro_over=('a', 'b'))
  samples = _samples(task)  # groups a, b, a: right, wrong, empty
  found = {m.name: m.value for m in task.aggregate(samples, complete=True)}
  assert next(iter(found)) == 'accuracy'
  assert found['accuracy'] == 25 and found['accuracy_clean'] == 75
  assert found['accuracy_a'] == 50 and found['accuracy_b'] == 0
  with pytest.raises(ValueError, match='words: .* 1 of 2 groups: b'):
    task.aggregate(samples[::2], complete=True)
  part = task.aggregate(samples[::2], complete=False)
  assert part[0].name == 'accuracy_of_1_groups'


def _capitals(profile='oc-2023-12', is_chat=True, **settings):
  return _task(
    context={'profile': profile, 'is_chat': is_chat, **settings},
    stop_when=letters.capital_decided('ABCD'),
    readings=letters.capital_readings('ABCD', 'gold'),
  )


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('is_chat', [False, True])
def test_only_chat_in_2024_is_cut_at_the_next_instruction(profile, is_chat):
  task = _capitals(profile, is_chat)
  sample = sample_of(task, task.items()[0], _generated('so b [INST] (C) [INST'))
  is_cut = is_chat and profile == 'oc-2024-01'
  expected = {'oc': '', 'clean': ''} if is_cut else {'oc': 'I', 'clean': 'C'}
  assert sample['filtered_resps'] == expected
  # The stored answer is whole, whatever is read off it.
  assert sample['resps'] == ['so b [INST] (C) [INST']
  [empty] = [
    m
    for m in task.aggregate([sample], complete=True)
    if m.name == 'predicted_empty'
  ]
  assert empty.value == 100 * is_cut


def test_early_stop_is_a_switch():
  for early_stop in (True, False):
    for task in (_capitals(early_stop=early_stop), _task()):
      decided = task.request(task.items()[0]).decided
      wanted = early_stop and task.stop_when is not None
      assert (decided is not None) == wanted


def _one_reading(profile, read, decided):
  reading = Reading(
    name='oc',
    filter=lambda item, text: read(text),
    mark=lambda item, found: {'accuracy': found == ''},
  )
  return _task(
    context={'profile': profile, 'is_chat': True},
    stop_when=lambda item: decided,
    readings=(reading,),
  )


def _first_line(profile):
  return _one_reading(
    profile, lambda text: text.partition('\n')[0], lambda text: '\n' in text
  )


def _first_capital(profile):
  """The I of an instruction is one until the instruction is complete."""
  return _one_reading(
    profile, letters.first_capital, lambda text: any(c.isupper() for c in text)
  )


_PIECES = ('[INST]', '[INST', '[IN', '[', ']', 'I', 'A', 'B', 'x', ' ', '\n')


@pytest.mark.parametrize('make', [_capitals, _first_line, _first_capital])
@pytest.mark.parametrize('profile', PROFILES)
def test_a_decided_text_never_changes_its_answers(make, profile):
  """Whether or not an instruction begins at its end."""
  rng = random.Random(profile)
  task = make(profile)
  item = task.items()[0]
  decided = task.request(item).decided
  read = lambda text: task.score(item, {'resps': [text]})['filtered_resps']
  glue = lambda n: ''.join(rng.choices(_PIECES, k=n))
  fired = by_mark = 0
  for _ in range(3000):
    text = glue(rng.randrange(12))
    looks = [decided(text[:end]) for end in range(len(text) + 1)]
    assert looks == sorted(looks), repr(text)
    if not looks[-1]:
      continue
    fired += 1
    first = text[: looks.index(True)]
    by_mark += first.endswith('[INST]')
    expected = read(first)
    tails = ('', 'INST]', 'NST]', ']', ' C ', text[len(first) :], glue(6))
    for tail in tails:
      assert read(first + tail) == expected, repr((first, tail))
  assert fired > 500
  assert (by_mark > 50) == (profile == 'oc-2024-01')


def test_answers_that_another_profile_cut_short():
  """It is asked of the text: one that any profile would have ended is whole."""
  new, old = _capitals('oc-2024-01'), _capitals('oc-2023-12')
  item = new.items()[0]
  for text, reason, expected in (
    ('so [INST]', 'decided', True),
    ('so (B) ', 'decided', False),
    ('so [INST]', 'length', False),
    ('so [INST]', 'eos', False),
    ('', 'nonfinite', False),
  ):
    answer = new.answer(item, _generated(text, reason))
    assert not new.is_cut_short(item, answer)
    assert old.is_cut_short(item, answer) == expected
    # Even where this run itself would not end any answer early.
    full = _capitals('oc-2023-12', early_stop=False)
    assert full.is_cut_short(item, answer) == expected
    # A task that must read everything.
    assert _task().is_cut_short(item, answer) == (reason == 'decided')


def test_a_score_is_plain_json():
  task = _capitals('oc-2024-01')
  score = task.score(task.items()[0], {'resps': ['A [INST]']})
  assert json.loads(json.dumps(score, allow_nan=False)) == score
