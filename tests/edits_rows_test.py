import numpy as np
import pytest

from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits.rows import build_rows

TEMPLATES = ('{}', 'So it goes. {}', 'I. {}')
REQUEST = EditRequest(
  case_id='7',
  subject='Ada Löwe',
  prompt='Where does {} live?',
  target_new='Ürzig',
)


def _build(tiny, request=REQUEST, templates=TEMPLATES):
  return build_rows(tiny.tokenizer, request, templates)


def _row(rows, i):
  return rows.ids[i, : rows.lengths[i]]


def test_each_row_is_the_joint_text_but_its_last_token(tiny):
  rows, notes = _build(tiny)
  assert len(rows.ids) == len(TEMPLATES) + 1
  for i, template in enumerate(TEMPLATES):
    prompt = template.replace('{}', 'Where does Ada Löwe live?')
    joint = token_ids.joint_ids(tiny.tokenizer, prompt, 'Ürzig')
    assert tuple(_row(rows, i)) == joint.full[:-1]
    assert not rows.ids[i, rows.lengths[i] :].any()
    assert notes.target == joint.target


def test_lookup_is_the_end_of_the_subject(tiny):
  rows, notes = _build(tiny)
  for i in range(len(rows.ids)):
    text = tiny.tokenizer.decode(rows.ids[i, : rows.lookups[i] + 1].tolist())
    assert text.endswith('Ada Löwe')
  assert notes.lookup_disagrees == notes.boundary_merged == 0


def test_the_last_row_ends_with_the_subject(tiny):
  """What stands behind it ('is a') cannot reach the logits read there."""
  rows, _ = _build(tiny)
  assert tiny.tokenizer.decode(_row(rows, -1).tolist()) == 'Ada Löwe'
  assert rows.lookups[-1] == rows.lengths[-1] - 1


def test_slots_predict_the_targets(tiny):
  rows, notes = _build(tiny)
  count = len(notes.target)
  for i in range(len(TEMPLATES)):
    np.testing.assert_array_equal(rows.targets[i, :count], notes.target)
    positions = rows.lookups[i] + rows.target_slots[i, :count]
    # The next token is the target; the last one is not fed.
    assert positions[-1] == rows.lengths[i] - 1
    np.testing.assert_array_equal(
      rows.ids[i, positions[:-1] + 1], notes.target[:-1]
    )
    np.testing.assert_array_equal(np.diff(positions), 1)


def test_target_tokens_weigh_the_same_and_padding_nothing(tiny):
  rows, notes = _build(tiny)
  count = len(notes.target)
  np.testing.assert_array_equal(
    rows.target_weights[:, :count], np.float32(1 / count)
  )
  assert not rows.target_weights[:, count:].any()
  np.testing.assert_allclose(rows.target_weights.sum(axis=1), 1, rtol=1e-6)


def test_the_tail_holds_all_that_is_read(tiny):
  rows, notes = _build(tiny)
  width = len(rows.tail_slots)
  np.testing.assert_array_equal(rows.tail_slots, np.arange(width))
  assert (rows.target_slots < width).all()
  assert (rows.lengths - rows.lookups <= width).all()


def test_subject_at_the_end(tiny):
  request = EditRequest(
    case_id='1', subject='Ada', prompt='Who knows {}', target_new='no'
  )
  rows, _ = _build(tiny, request)
  # The first target is predicted where the subject ends.
  np.testing.assert_array_equal(rows.target_slots[:, 0], 0)


def test_subject_at_the_start_and_twice(tiny):
  request = EditRequest(
    case_id='1', subject='Ada', prompt='{} knows Ada', target_new='no'
  )
  rows, _ = _build(tiny, request)
  assert tiny.tokenizer.decode(rows.ids[0, : rows.lookups[0] + 1].tolist()) == (
    'Ada'
  )
  # A blank before the text shifts nothing.
  spaced, _ = _build(tiny, request, ('{}', ' x. {}'))
  text = tiny.tokenizer.decode(spaced.ids[1, : spaced.lookups[1] + 1].tolist())
  assert text == 'x. Ada'


def test_braces_in_the_text_are_text(tiny):
  request = EditRequest.from_question(
    'What is {} or {0} in Ada?', 'Ada', case_id='1', target_new='no'
  )
  rows, _ = _build(tiny, request)
  text = tiny.tokenizer.decode(rows.ids[1, : rows.lookups[1] + 1].tolist())
  assert text == 'So it goes. What is {} or {0} in Ada'


@pytest.mark.parametrize(
  'change', ['Ada Lowe', 'Ida Löwe', 'Ada Löwi'], ids=str
)
def test_requests_of_like_length_share_shapes(tiny, change):
  other = EditRequest(
    case_id='8',
    subject=change,
    prompt='Where does {} work?',
    target_new='Ulm',
  )
  shapes = lambda rows: [array.shape for array in rows]
  assert shapes(_build(tiny)[0])[:2] == shapes(_build(tiny, other)[0])[:2]


@pytest.mark.parametrize(
  'templates', [(), ('So. {}',), ('So. {}', '{}'), ('{} ',)], ids=str
)
def test_the_bare_template_comes_first(tiny, templates):
  with pytest.raises(ValueError, match="first context template must be '{}'"):
    _build(tiny, templates=templates)


def test_template_without_a_slot(tiny):
  with pytest.raises(ValueError, match='exactly one {}'):
    _build(tiny, templates=('{}', 'So.'))


def test_special_target(tiny):
  request = EditRequest(
    case_id='1', subject='Ada', prompt='Who is {}?', target_new='<eos>'
  )
  with pytest.raises(ValueError, match='special tokens'):
    _build(tiny, request)
