import dataclasses
import math

import numpy as np
import pytest

from me_jax.evals import comparison, paired


def _record(doc_id, value, **changes):
  return {
    'doc_id': doc_id,
    'group': 'dev',
    'prompt_hash': f'hash of {doc_id}',
    'state_fingerprint': 'state',
    'nonfinite': False,
    'target': 'A',
    'filtered_resps': {'oc': 'A' if value == 1 else 'B', 'clean': ''},
    'metrics': {'accuracy': value, 'accuracy_clean': 0.0},
    **changes,
  }


def _records(values, **changes):
  return [_record(str(i), v, **changes) for i, v in enumerate(values)]


def _losses(values):
  return [
    _record(
      str(i), 0, target=None, filtered_resps={}, metrics={'nll_per_token': v}
    )
    for i, v in enumerate(values)
  ]


def _rows(text):
  return [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('|')
  ]


def test_right_and_wrong():
  before = _records([1, 1, 1, 1, 1, 1, 0, 0, 0, 1.0])
  after = _records([0, 0, 0, 0, 0, 1, 1, 0, 0, 1.0])
  found = comparison.compare(before, after, 'commonsenseqa')
  assert (found.task, found.metric, found.n) == (
    'commonsenseqa',
    'accuracy',
    10,
  )
  assert (found.before, found.after) == pytest.approx((70.0, 30.0))
  assert found.difference == pytest.approx(-40.0)
  assert (found.broken, found.repaired) == (5, 1)
  assert found.p == paired.mcnemar(5, 1) and found.p_holm is None
  assert -100 <= found.low < -40 < found.high <= 40
  assert found.difference == pytest.approx(
    100 * (found.repaired - found.broken) / found.n
  )


def test_pairs_by_id_and_not_by_place():
  before, after = _records([1, 1, 0, 0, 1]), _records([0, 1, 1, 0, 0])
  found = comparison.compare(before, after, 't')
  assert (found.broken, found.repaired) == (2, 1)
  assert comparison.compare(before, after[::-1], 't') == found


def test_counts_what_only_one_side_has():
  before = _records([1, 0, 1, 1])
  found = comparison.compare(before[1:], _records([0, 0, 0, 1, 1, 1]), 't')
  assert (found.n, found.only_before, found.only_after) == (3, 0, 3)
  assert (found.broken, found.before) == (1, pytest.approx(200 / 3))
  text = comparison.table([found])
  assert 't: items left out: 0 only before, 3 only after.' in text


def test_parts_of_a_point_are_bootstrapped():
  before = [0.0, 0.5, 1.0, 0.25, 0.8, 0.9, 0.7]
  after = [0.0, 0.4, 0.5, 0.0, 0.7, 0.8, 0.2]
  found = comparison.compare(_records(before), _records(after), 'squad')
  assert found.broken is None and found.repaired is None
  expected = paired.bootstrap([np.subtract(after, before)], seed=0)
  assert found.difference == pytest.approx(100 * expected.value)
  assert (found.low, found.high) == pytest.approx(
    (100 * expected.low, 100 * expected.high)
  )
  assert found.p == expected.p
  assert comparison.flips(_records(before), _records(after), 'squad') == (
    [],
    [],
  )


@pytest.mark.parametrize(
  ('task', 'macro'),
  [
    ('mmlu', True),
    ('mmlu_cloze', True),
    ('bbh@4096', True),
    ('tydiqa', True),
    ('math', False),
    ('mmluplus', False),
  ],
)
def test_groups_count_the_same_where_the_headline_says_so(task, macro):
  def state(small, large):
    return [
      *(_record(f's{i}', v, group='small') for i, v in enumerate(small)),
      *(_record(f'l{i}', v, group='large') for i, v in enumerate(large)),
    ]

  before = state([1, 1], [1, 1, 1, 1, 0, 0, 0, 0])
  after = state([0, 1], [1, 1, 1, 1, 1, 0, 0, 0])
  found = comparison.compare(before, after, task)
  assert found.before == pytest.approx(75.0 if macro else 60.0)
  assert found.difference == pytest.approx(
    100 * (-1 / 2 + 1 / 8) / 2 if macro else 0
  )
  assert (found.broken, found.repaired, found.p) == (1, 1, 1.0)


def test_a_loss_is_in_nats_and_never_right_or_wrong():
  found = comparison.compare(_losses([0, 1, 1]), _losses([1, 1, 1]), 'ppl')
  assert found.difference == pytest.approx(1 / 3) and found.broken is None
  [_, _, row] = _rows(comparison.table([found]))
  assert row[1:5] == ['nll_per_token, lower is better', '3', '0.667', '1.000']
  assert row[5].startswith('+0.333 (') and row[6:8] == ['', '']


@pytest.mark.parametrize(
  ('before', 'after', 'difference', 'p'),
  [
    ([1.0] * 8, [2.0] * 6 + ['inf', 'nan'], math.inf, 2 / 256),
    (['inf'] + [1.0] * 5, [1.0] * 6, -math.inf, 1.0),
    (['nan', 1.0, 1.0], ['inf', 2.0, 3.0], None, 0.5),
  ],
)
def test_an_infinite_loss_leaves_the_sign_test(before, after, difference, p):
  found = comparison.compare(_losses(before), _losses(after), 'wikitext_ppl')
  assert found.difference == difference
  assert found.low is None and found.high is None
  assert found.p == p
  values = [v for v in dataclasses.astuple(found) if isinstance(v, float)]
  assert not any(map(math.isnan, values))
  [_, _, row] = _rows(comparison.table([found]))
  assert row[5] == {math.inf: '+inf', -math.inf: '-inf'}.get(
    difference, 'undefined'
  )


def test_non_finite_answers_are_counted():
  before = _records([1, 1, 1])
  after = _records([0, 1, 1], nonfinite=True)
  found = comparison.compare(before, after, 'mmlu')
  assert (found.nonfinite_before, found.nonfinite_after) == (0, 3)
  assert '0 before, 3 after' in comparison.table([found])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'prompt_hash': 'other'}, r"t: item '1' is not the same.*prompt_hash"),
    ({'target': 'C'}, r"t: item '1' is not the same.*target is 'A' before"),
    ({'state_fingerprint': 'x'}, 't: expected the scores of one state'),
    ({'doc_id': '0'}, r"t: item '0' is scored twice"),
    ({'metrics': {}}, r"t: the score of item '1' lacks metrics"),
    ({'group': None}, r"t: the score of item '1' lacks group"),
    ({'metrics': {'f1': 1.0}}, r"headline of item '1' is 'f1'.*'accuracy'"),
    (
      {'metrics': {'accuracy': 'nan'}},
      r"the accuracy of 1 of 3 items is not finite, '1'",
    ),
  ],
)
def test_what_cannot_be_compared_is_named(change, message):
  before, after = _records([1, 0, 1]), _records([1, 0, 1])
  after[1] |= change
  for compare in (comparison.compare, comparison.flips):
    with pytest.raises(ValueError, match=message):
      compare(before, after, 't')


def test_states_without_a_common_item_are_refused():
  before, after = _records([1, 0]), [_record('7', 1)]
  with pytest.raises(ValueError, match=r't: .* share no item \(2 and 1 '):
    comparison.compare(before, after, 't')
  with pytest.raises(ValueError, match=r'share no item \(0 and 1 '):
    comparison.compare([], after, 't')


def test_flips_have_both_predictions():
  broken, repaired = comparison.flips(
    _records([1, 0, 1]), _records([0, 1, 1]), 't'
  )
  assert broken == [
    comparison.Flip(doc_id='0', target='A', before='A', after='B')
  ]
  assert [(f.doc_id, f.before, f.after) for f in repaired] == [('1', 'B', 'A')]


def _two_tasks(broken_in_first):
  n = 12
  return [
    comparison.compare(
      _records([1] * n), _records([0] * broken + [1] * (n - broken)), task
    )
    for task, broken in (('a', broken_in_first), ('b', 1))
  ]


def test_holm_is_over_the_row():
  found = comparison.holm(_two_tasks(6))
  assert [c.p for c in found] == [2 / 64, 1.0]
  assert [c.p_holm for c in found] == [4 / 64, 1.0]


def test_table():
  text = comparison.table(comparison.holm(_two_tasks(12)))
  head, rule, first, second = _rows(text)
  assert head[:3] == ['task', 'metric', 'n']
  assert len(rule) == len(first) == len(second) == len(head) == 10
  assert first == [
    *('a', 'accuracy', '12', '100.0', '0.0', '-100.0 (-100.0 to -100.0)'),
    *('12', '0', '<0.001', '<0.001'),
  ]
  assert second[5].startswith('-8.3 (-') and second[6:] == [
    *('1', '0', '1.000', '1.000')
  ]
  assert comparison.table(_two_tasks(12)).count('<0.001') == 1


def test_no_difference_has_no_sign():
  found = comparison.compare(_records([1, 0]), _records([1, 0]), 't')
  assert '| 0.0 (0.0 to 0.0) |' in comparison.table([found])


def test_against_unedited():
  n = 20
  fine, lost = _records([1] * n), _records([0] * n)
  text = comparison.against_unedited(
    {
      20: {'mmlu': lost, 'c3': fine, 'new': fine},
      0: {'mmlu': fine, 'c3': fine, 'dropped': fine},
      1: {'mmlu': fine, 'c3': fine[:5]},
      2: {'new': fine},
    }
  )
  head, _, *rows = _rows(text)
  assert head == ['edit step', 'mmlu', 'c3']
  assert rows == [
    ['1', '0.0 (1.000)', '0.0 (1.000)'],
    ['2', '', ''],
    ['20', '-100.0 (<0.001)*', '0.0 (1.000)'],
  ]
  assert 'Step 1, c3: items left out: 15 only before, 0 only after.' in text


def test_the_star_is_for_the_adjusted_p():
  n = 12
  steps = {
    0: {task: _records([1] * n) for task in 'ab'},
    1: {'a': _records([0] * 6 + [1] * 6), 'b': _records([1] * n)},
    2: {'a': _records([0] * 6 + [1] * 6)},
  }
  *_, both, alone = _rows(comparison.against_unedited(steps))
  assert both[1] == '-50.0 (0.062)' and alone[1] == '-50.0 (0.031)*'


@pytest.mark.parametrize(
  'scores',
  [{}, {0: {'a': []}}, {1: {'a': []}}, {0: {'a': []}, 1: {'b': []}}],
)
def test_nothing_to_hold_against_the_unedited(scores):
  assert comparison.against_unedited(scores) == ''
