import dataclasses
import functools
import hashlib
import json

import pytest

from me_jax import files
from me_jax.data import facts, pool, sources
from me_jax.data.request import EditRequest


def _mend(**fields):
  return {
    'subject': 'Peru',
    'src': 'Where is Peru?',
    'alt': 'Asia',
    'answers': ['South America', 'America'],
    'rephrase': 'Peru is where?',
    'loc': 'nq question: two plus two',
    'loc_ans': 'four',
    **fields,
  }


def _rome(**fields):
  return {
    'case_id': 12,
    'requested_rewrite': {
      'prompt': '{} is in',
      'subject': 'Peru',
      'target_new': {'str': 'Asia', 'id': 'Q48'},
      'target_true': {'str': 'America', 'id': 'Q49'},
      **fields,
    },
    'paraphrase_prompts': ['Peru lies in', 'Where is Peru? In'],
    'neighborhood_prompts': ['Chile is in', 'Cuba is in'],
  }


def _load(tmp_path, name, path, records, target='alt'):
  full = tmp_path / path
  full.parent.mkdir(exist_ok=True)
  full.write_text(json.dumps(records))
  return facts.load_facts(name, sources.DataSources(data_root=tmp_path), target)


def _zsre(tmp_path, *records, target='alt'):
  path = 'zsre/zsre_mend_eval_portability_gpt4.json'
  return _load(tmp_path, 'zsre', path, list(records), target)


@pytest.fixture(scope='module')
def real(data_root):
  """A function from name and target to the facts, each file read once."""
  root = sources.DataSources(data_root=data_root, allow_hub=False)

  @functools.cache
  def load(name, target='alt'):
    return facts.load_facts(name, root, target)

  return load


@pytest.mark.data
@pytest.mark.parametrize(
  'name, records, subjects',
  [
    ('zsre', 1037, 743),
    ('zsre_extra', 183, 177),
    ('zsre_knowedit', 1301, 1068),
    ('zsre_train', 1631, 1232),
    ('counterfact', 9700, 9287),
    ('counterfact_train', 10_000, 9630),
    ('counterfact_val', 1919, 1898),
    ('counterfact_rome', 1031, 1030),
  ],
)
def test_every_record_of_the_real_files_is_used(real, name, records, subjects):
  loaded = real(name)
  assert len(loaded) == loaded.counts['records'] == records
  assert len({r.subject for r in loaded}) == subjects
  assert len({r.case_id for r in loaded}) == records
  assert loaded.counts['dropped_subject_not_in_question'] == 0
  assert loaded.counts['dropped_empty_target'] == 0
  for r in loaded:
    assert r.text == r.prefix + r.subject + r.suffix
    assert r.target_new == r.target_new.strip() != ''
    assert r.rephrase_prompts and r.locality_prompts


@pytest.mark.data
def test_zsre_has_the_published_properties(real, data_root):
  loaded = real('zsre')
  raw = sources.read_json(
    data_root / 'zsre/zsre_mend_eval_portability_gpt4.json'
  )
  assert loaded.counts['subject_repeated_in_question'] == 0
  assert sum(r.text.endswith('?') for r in loaded) == 1037
  assert sum(r.suffix == '?' for r in loaded) == 360
  assert len({r.text for r in loaded}) == 1037
  assert not any(c in r.text for r in loaded for c in '{}')
  changed = [
    r
    for r, x in zip(loaded, raw, strict=True)
    if (r.text, r.target_new) != (x['src'], x['alt'])
  ]
  assert len(changed) == 15  # blanks at an end
  # 28 of the raw answers are true ones; a 29th is once its blank is gone.
  assert sum(x['alt'] in x['answers'] for x in raw) == 28
  assert loaded.counts['target_already_true'] == 29
  by_subject = {}
  for r in loaded:
    by_subject.setdefault(r.subject, []).append(r)
  sizes = [len(rs) for rs in by_subject.values()]
  assert (sum(s > 1 for s in sizes), max(sizes)) == (170, 13)


@pytest.mark.data
def test_first_records_are_read_in_full(real):
  zsre = real('zsre')[0]
  assert zsre.case_id == 'zsre-0'
  assert zsre.prompt == 'When was the inception of {}?'
  assert zsre.subject == 'IAAF Combined Events Challenge'
  assert (zsre.target_new, zsre.ground_truth) == ('2006', '1998')
  assert zsre.locality_prompts[0].answer == 'The String'
  knowedit = real('zsre_knowedit')[0]
  assert knowedit.target_new == 'Noctuidae'
  assert [p.answer for p in knowedit.locality_prompts] == ['genus', 'genus']
  easyedit = real('counterfact')[0]
  assert easyedit.prompt == 'The mother tongue of {} is'
  assert (easyedit.target_new, easyedit.ground_truth) == ('English', 'French')
  rome = real('counterfact_rome')[0]
  assert rome.case_id == 'counterfact_rome-4482'
  assert rome.prompt == '{} originates from'
  assert len(rome.rephrase_prompts) == 2
  assert len(rome.locality_prompts) == 10
  assert rome.locality_prompts[0].answer == rome.ground_truth == 'London'


@pytest.mark.data
def test_true_targets_of_the_real_files(real):
  loaded = real('zsre_extra', 'true')
  assert loaded.counts['dropped_no_true_answer'] == 162
  assert len(loaded) == 21
  assert all(r.target_new == r.ground_truth for r in loaded)
  train = real('zsre_train')
  assert train[0].target_new == "Colt's Manufacturing Company"
  assert sum(len(r.rephrase_prompts) > 1 for r in train) > 300
  assert train.counts['target_already_true'] == 1251 + 17


@pytest.mark.data
def test_draw_of_the_real_file(real):
  loaded = real('zsre')
  drawn = facts.draw(loaded, 100, seed=0)
  assert len({r.subject for r in drawn.requests}) == 100
  assert drawn.counts['dropped_repeated_subject'] == 1037 - 743
  assert drawn.counts['available'] == 743
  with pytest.raises(ValueError, match="1000.*743.*subjects='any'"):
    facts.draw(loaded, 1000, seed=0)
  assert len(facts.draw(loaded, 1000, seed=0, subjects='any').requests) == 1000


def test_unusable_records_are_dropped_and_counted(tmp_path):
  loaded = _zsre(
    tmp_path,
    _mend(),
    _mend(subject='Chile'),
    _mend(alt=' '),
    _mend(alt=' America '),
    _mend(src='Is Peru in Peru?'),
  )
  assert [r.case_id for r in loaded] == ['zsre-0', 'zsre-3', 'zsre-4']
  assert loaded.counts == {
    'records': 5,
    'dropped_subject_not_in_question': 1,
    'dropped_empty_target': 1,
    'dropped_no_true_answer': 0,
    'target_already_true': 1,
    'subject_repeated_in_question': 1,
  }
  assert loaded[2].prompt == 'Is Peru in {}?'
  drawn = facts.draw(loaded, 1, seed=0)
  assert drawn.counts['dropped_subject_not_in_question'] == 1
  assert drawn.counts['dropped_repeated_subject'] == 2
  assert drawn.case_ids == ('zsre-0',)


def test_true_target(tmp_path):
  loaded = _zsre(tmp_path, _mend(), _mend(answers=[]), target='true')
  assert [r.target_new for r in loaded] == ['South America']
  assert loaded.counts['dropped_no_true_answer'] == 1
  assert _zsre(tmp_path, _mend(answers=[]))[0].ground_truth == ''


def test_rome_slot_is_where_the_file_has_it(tmp_path):
  path = 'counterfact/counterfact_portability_gpt4.json'
  record = _rome(prompt='{} and Peru {x}')
  (request,) = _load(tmp_path, 'counterfact_rome', path, [record])
  assert request.prefix == ''
  assert request.suffix == ' and Peru {x}'
  assert request.subject_occurrences == 2
  with pytest.raises(ValueError, match='record 0: prompt must hold exactly'):
    _load(tmp_path, 'counterfact_rome', path, [_rome(prompt='Peru is in')])


def test_full_counterfact_comes_from_the_hub(tmp_path, monkeypatch):
  def load_dataset(*args, **kwargs):
    return [_rome()]

  monkeypatch.setattr('datasets.load_dataset', load_dataset)
  monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path)
  loaded = facts.load_facts('counterfact_full', sources.DataSources())
  assert [r.case_id for r in loaded] == ['counterfact_full-12']
  assert loaded[0].text == 'Peru is in'


@pytest.mark.parametrize(
  'change, reason',
  [
    ({'alt': None}, "record 1: field 'alt' must be str, found None"),
    ({'answers': [1]}, "record 1: field 'answers' must be a list of texts"),
    ({'subject': ' '}, "Case 'zsre-1': subject is empty"),
  ],
)
def test_malformed_record_is_named(tmp_path, change, reason):
  with pytest.raises(ValueError, match=reason):
    _zsre(tmp_path, _mend(), _mend(**change))
  lacking = _mend()
  del lacking['loc']
  with pytest.raises(ValueError, match="record 1: no field 'loc'"):
    _zsre(tmp_path, _mend(), lacking)


def test_unknown_names_are_refused():
  data = sources.DataSources(allow_hub=False)
  with pytest.raises(ValueError, match="'nope'; expected one of sample, zsre"):
    facts.load_facts('nope', data)
  with pytest.raises(ValueError, match=r"target must be one of .*'false'"):
    facts.load_facts('sample', data, 'false')
  with pytest.raises(FileNotFoundError, match='zsre/zsre_mend_eval_port'):
    facts.load_facts('zsre', data)


def _requests(n):
  return [
    EditRequest(
      case_id=str(i), subject=f's{i // 2}', prompt=f'{{}} {i}?', target_new='x'
    )
    for i in range(n)
  ]


@pytest.mark.parametrize(
  'subjects, available', [('distinct', 50), ('any', 100)]
)
def test_draws_are_nested_and_seeded(subjects, available):
  requests = _requests(100)
  small = facts.draw(requests, 10, seed=3, subjects=subjects)
  large = facts.draw(requests, available, seed=3, subjects=subjects)
  assert small.requests == large.requests[:10]
  assert len(set(large.case_ids)) == available
  assert list(large.case_ids) != sorted(large.case_ids, key=int)
  if subjects == 'distinct':
    assert all(int(c) % 2 == 0 for c in large.case_ids)  # the first is kept
  other = facts.draw(requests, 10, seed=4, subjects=subjects)
  assert other.case_ids != small.case_ids
  with pytest.raises(ValueError, match=f'but {available} are available'):
    facts.draw(requests, available + 1, seed=3, subjects=subjects)


def test_any_subjects_begin_with_the_distinct_ones():
  requests = _requests(100)
  distinct = facts.draw(requests, 50, seed=3)
  both = facts.draw(requests, 100, seed=3, subjects='any')
  assert both.requests[:50] == distinct.requests
  again = dataclasses.replace(requests[7], case_id='again', target_new='y')
  drawn = facts.draw([*requests, again], 100, seed=3, subjects='any')
  assert drawn.requests == both.requests
  assert drawn.counts['dropped_repeated_question'] == 1


def test_hash_is_that_of_the_content():
  drawn = facts.draw(_requests(4), 2, seed=0)
  content = files.canonical_json([r.to_json() for r in drawn.requests])
  assert drawn.sha256 == hashlib.sha256(content.encode()).hexdigest()
  assert drawn.case_ids == tuple(r.case_id for r in drawn.requests)
  changed = [
    EditRequest(**{**vars(r), 'target_new': 'y'}) for r in _requests(4)
  ]
  again = facts.draw(changed, 2, seed=0)
  assert again.case_ids == drawn.case_ids
  assert again.sha256 != drawn.sha256


def test_draw_refuses_bad_arguments():
  with pytest.raises(ValueError, match='n must be at least 1'):
    facts.draw(_requests(2), 0, seed=0)
  with pytest.raises(ValueError, match='subjects must be one of'):
    facts.draw(_requests(2), 1, seed=0, subjects='some')
  assert pool.FactPool(_requests(2)).counts == {'records': 2}
