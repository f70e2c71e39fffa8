import re

from me_jax.data import facts, sample, sources


def _holds(text: str, words: str) -> bool:
  return bool(re.search(rf'\b{re.escape(words)}\b', text, re.IGNORECASE))


def test_every_fact_is_usable():
  loaded = facts.load_facts('sample', sources.DataSources(allow_hub=False))
  assert len(loaded) == loaded.counts['records'] == 120
  assert loaded.counts['target_already_true'] == 0
  assert loaded.counts['subject_repeated_in_question'] == 0
  assert len(facts.draw(loaded, 120, seed=0).requests) == 120
  assert [r.case_id for r in loaded] == [f'sample-{i}' for i in range(120)]


def test_subjects_stand_once_in_prompt_and_rephrasing():
  loaded = sample.load_sample()
  assert len({r.subject for r in loaded}) == 120
  for r in loaded:
    (rephrase,) = r.rephrase_prompts
    assert r.text.endswith('?') and rephrase.endswith('?')
    assert r.text != rephrase
    assert r.text.count(r.subject) == rephrase.count(r.subject) == 1


def test_targets_are_short_and_false():
  for r in sample.load_sample():
    assert 1 <= len(r.target_new.split()) <= 4
    assert r.ground_truth
    assert r.target_new.lower() != r.ground_truth.lower()
    for answer in (r.target_new, r.ground_truth):
      assert not _holds(r.text, answer), r.case_id
  true = sample.load_sample(target='true')
  assert [r.target_new for r in true] == [r.ground_truth for r in true]


def test_locality_prompts_are_about_something_else():
  loaded = sample.load_sample()
  prompts = [r.locality_prompts[0].prompt for r in loaded]
  assert len(set(prompts)) == 120
  for r in loaded:
    (locality,) = r.locality_prompts
    assert locality.prompt.endswith('?') and locality.answer
    assert not any(_holds(locality.prompt, o.subject) for o in loaded)


def test_many_relations():
  prompts = {r.prompt for r in sample.load_sample()}
  assert len(prompts) >= 20


def test_prose_is_clean_text_of_some_length():
  prose = sample.sample_prose()
  paragraphs = prose.strip().split('\n\n')
  assert 2300 <= len(prose.split()) <= 3000
  assert len(paragraphs) == len(set(paragraphs)) >= 20
  assert all('\n' not in p and p.endswith('.') for p in paragraphs)
  assert prose.isascii()
