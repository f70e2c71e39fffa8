import json

import pytest

from me_jax.data.request import EditRequest, LocalityPrompt, slotted


def _request(question='What is the capital of Peru?', subject='Peru', **fields):
  return EditRequest.from_question(
    question, subject, **{'case_id': 'c-7', 'target_new': 'Oslo', **fields}
  )


def test_question_is_split_at_the_subject():
  request = _request()
  assert request.prompt == 'What is the capital of {}?'
  assert request.prefix == 'What is the capital of '
  assert request.suffix == '?'
  assert request.text == 'What is the capital of Peru?'
  assert request.subject_occurrences == 1


def test_last_occurrence_is_the_slot():
  request = _request('Is Peru, the old Peru, in Asia?')
  assert request.prompt == 'Is Peru, the old {}, in Asia?'
  assert request.text == 'Is Peru, the old Peru, in Asia?'
  assert request.subject_occurrences == 2


@pytest.mark.parametrize(
  'question',
  [
    'What does {} mean to Peru?',
    'To Peru, what does {} mean?',
    r'Does {\} or {\\} or {} suit Peru, or {\}?',
    'Is {Peru} a set?',
    'Is {Peru a brace? }',
    'Is }Peru{ or {0} or {name!r:>{width}} or %s a field?',
    '{{Peru}}',
    '{{}} {}{} Peru {}}',
    r'{\Peru\}',
  ],
)
def test_braces_of_the_text_are_kept(question):
  request = _request(question)
  assert request.text == question
  assert request.prompt.count('{}') == 1
  assert request.prefix == question.partition('Peru')[0]
  assert request.suffix == question.partition('Peru')[2]
  assert EditRequest.from_json(request.to_json()) == request


def test_single_braces_stand_unchanged_in_the_public_form():
  assert _request('Is {Peru} {x}?').prompt == 'Is {{}} {x}?'
  assert slotted('a {} b ', ' c') == r'a {\} b {} c'


def test_subject_may_hold_braces():
  request = _request('Who wrote {} and {}?', '{} and {}')
  assert request.text == 'Who wrote {} and {}?'
  assert request.prefix == 'Who wrote '


def test_blanks_at_the_ends_go():
  request = _request(
    ' Where is Peru ? ',
    ' Peru ',
    target_new=' New York\n',
    ground_truth=' Lima',
    rephrase_prompts=[' Peru? '],
    locality_prompts=[LocalityPrompt(prompt=' a? ', answer=' b ')],
  )
  assert request.text == 'Where is Peru ?'
  assert request.subject == 'Peru'
  assert request.target_new == 'New York'
  assert request.ground_truth == 'Lima'
  assert request.rephrase_prompts == ('Peru?',)
  assert request.locality_prompts == (LocalityPrompt(prompt='a?', answer='b'),)


def test_missing_subject_names_both():
  with pytest.raises(ValueError, match="c-7.*'Chile'.*'What is the capital"):
    _request(subject='Chile')


@pytest.mark.parametrize(
  'fields, named',
  [
    ({'target_new': ' '}, 'target_new'),
    ({'subject': ''}, 'subject'),
    ({'prompt': 'no slot'}, 'prompt'),
    ({'prompt': '{} or {}'}, 'prompt'),
  ],
)
def test_invalid_field_is_named_with_its_case(fields, named):
  good = {
    'case_id': 'c-7',
    'subject': 'Peru',
    'prompt': 'Where is {}?',
    'target_new': 'Asia',
  }
  assert EditRequest(**good).text == 'Where is Peru?'
  with pytest.raises(ValueError, match=f"Case 'c-7': {named}"):
    EditRequest(**{**good, **fields})


def test_json_round_trip():
  request = _request(
    ground_truth='Lima',
    rephrase_prompts=('Which city is the capital of Peru?',),
    locality_prompts=(LocalityPrompt(prompt='Two plus two?', answer='four'),),
  )
  record = json.loads(json.dumps(request.to_json()))
  assert record == request.to_json()
  assert record['locality_prompts'] == [
    {'prompt': 'Two plus two?', 'answer': 'four'}
  ]
  assert EditRequest.from_json(record) == request


@pytest.mark.parametrize('change', [{'subject': None}, {'extra': 1}])
def test_json_of_other_fields_is_refused(change):
  record = _request().to_json()
  if 'extra' in change:
    record.update(change)
  else:
    del record['subject']
  with pytest.raises(ValueError, match="Case 'c-7': expected the fields"):
    EditRequest.from_json(record)
