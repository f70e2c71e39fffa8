import numpy as np
import pytest

from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.evals import edit_scores, statistics
from me_jax.typing import GenerateResult, ModelState, ScoreResult

# Ids of a text are its characters: every score is a share of characters.
STATE = ModelState(params={})


class Characters:
  eos_id = 0
  special_ids = frozenset((0,))

  def encode(self, text):
    return [ord(c) for c in text]

  def encode_with_offsets(self, text):
    return self.encode(text), [(i, i + 1) for i in range(len(text))]

  def decode(self, ids):
    return ''.join(map(chr, ids))


class Answers:
  """Says what it was told to, by prompt; results come in reverse order.

  `forced` is the arg-max at each target position (blank first), `free` the
  greedy text.
  """

  def __init__(self, forced, free, nonfinite=()):
    self.forced, self.free = forced, free
    self.nonfinite = nonfinite
    self.asked = []

  def score(self, state, requests):
    for index in reversed(range(len(requests))):
      request = requests[index]
      prompt = ''.join(map(chr, request.context))
      [target] = request.continuations
      self.asked.append((prompt, ''.join(map(chr, target))))
      greedy = np.array([ord(c) for c in self.forced[prompt]], np.int32)
      assert len(greedy) == len(target)
      logprobs = np.full(len(target), -1.0, np.float32)
      if prompt in self.nonfinite:
        logprobs[:2] = np.nan, -np.inf
      yield (
        index,
        ScoreResult(
          logprobs=(logprobs,),
          greedy=(greedy,),
          context_logprobs=None,
          context_length=len(request.context),
        ),
      )

  def generate(self, state, requests, *, skip=()):
    assert not skip
    for index in reversed(range(len(requests))):
      prompt = ''.join(map(chr, requests[index].prompt))
      text = self.free[prompt][: requests[index].max_new_tokens]
      tokens = np.array([ord(c) for c in text], np.int32)
      yield (
        index,
        GenerateResult(tokens=tokens, text=text, stop_reason='length'),
      )


PLAIN = EditRequest(
  case_id='a',
  subject='S',
  prompt='{} is',
  target_new='abc',
  rephrase_prompts=('what is S', 'S equals'),
  locality_prompts=(
    LocalityPrompt(prompt='T is', answer='xyz'),
    LocalityPrompt(prompt='U is', answer='u'),
  ),
)
BARE = EditRequest(case_id='b', subject='V', prompt='{} is', target_new='no')

FORCED = {
  'S is': ' abX',  # 3 of 4
  'what is S': ' abc',  # all
  'S equals': 'XXbc',  # 2 of 4
  'T is': ' xyQ',  # 3 of 4 true
  'U is': 'Qu',  # 1 of 2
  'V is': ' no',  # all
}
FREE = {
  'S is': ' abc and more',  # all; what follows is not asked for
  'what is S': ' a',  # stopped early: 2 of 4
  'S equals': 'abc ',  # shifted by one: none
  'V is': '',
  'T is': ' xyQ',  # 3 of 4
  'U is': '',  # ended at once
}


def _score(requests, before=None, forced=FORCED, **kwargs):
  predictor = Answers(forced, FREE, **kwargs)
  found = edit_scores.score_facts(
    Characters(), predictor, STATE, requests, before
  )
  return found, predictor


def test_scores_of_a_fact():
  [found], predictor = _score([PLAIN])
  assert found.scores == {
    'rewrite_token': 0.75,
    'rewrite_exact': 0.0,
    'rewrite_generated': 1.0,
    'rephrase_token': 0.75,  # mean of 1 and 0.5
    'rephrase_exact': 0.5,
    'rephrase_generated': 0.25,  # mean of 0.5 and 0
    'agreement_token': 1.0,
    'agreement_exact': 1.0,
    'agreement_generated': 1.0,
    'specificity_token': 0.625,  # mean of 0.75 and 0.5
    'specificity_exact': 0.0,
    'specificity_generated': 0.375,  # mean of 0.75 and 0
  }
  forced = [ord(c) for c in ' xyQ']
  assert found.locality == [
    {'forced': forced, 'free': forced},
    {'forced': [81, ord('u')], 'free': []},
  ]
  assert found.nonfinite == 0
  # The target is asked after a blank, of each prompt once.
  assert sorted(predictor.asked) == [
    ('S equals', ' abc'),
    ('S is', ' abc'),
    ('T is', ' xyz'),
    ('U is', ' u'),
    ('what is S', ' abc'),
  ]


def test_a_fact_without_other_prompts():
  [found], _ = _score([BARE])
  assert found.scores == {
    'rewrite_token': 1.0,
    'rewrite_exact': 1.0,
    'rewrite_generated': 0.0,
  }
  assert found.locality == []


def test_agreement_is_with_the_unedited_model_not_with_the_truth():
  [before], _ = _score([PLAIN])
  forced = {**FORCED, 'T is': ' xyz', 'U is': ' u'}
  [after], _ = _score([PLAIN], [before.locality], forced)
  # 3 of 4 and 1 of 2 as before, though all are true now.
  assert after.scores['agreement_token'] == 0.625
  assert after.scores['agreement_exact'] == 0.0
  assert after.scores['agreement_generated'] == 1.0
  assert after.scores['specificity_token'] == 1.0
  [same], _ = _score([PLAIN], [before.locality])
  assert same.scores['agreement_token'] == 1.0


def test_facts_keep_their_order_and_their_own_reference():
  (b1, p, b2), _ = _score([BARE, PLAIN, BARE])
  assert b1.scores == b2.scores != p.scores
  other = [{'forced': [0] * n, 'free': [0]} for n in (4, 2)]
  references = [[], other, []]
  (_, p, _), _ = _score([BARE, PLAIN, BARE], references)
  assert p.scores['agreement_token'] == 0.0


def test_numbers_that_are_none_are_counted():
  [found], _ = _score([PLAIN], nonfinite=('S is', 'U is'))
  assert found.nonfinite == 4


# Scores of facts 0, 1 and 2, written two at a time: steps 1, 1, 2.
STEP_OF_FACT = [1, 1, 2]
TRIANGLE = {
  (0, 0): {'rewrite_token': 0.0, 'rephrase_exact': 0.1},
  (0, 1): {'rewrite_token': 0.3},
  (0, 2): {'rewrite_token': 0.6, 'rephrase_exact': 0.2},
  (1, 0): {'rewrite_token': 1.0, 'rephrase_exact': 0.8},
  (1, 1): {'rewrite_token': 0.9},
  (2, 0): {'rewrite_token': 0.5, 'rephrase_exact': 0.3},
  (2, 1): {'rewrite_token': 0.1},
  (2, 2): {'rewrite_token': 0.8, 'rephrase_exact': 0.5},
}


def _values(step, facts):
  found = edit_scores.metrics(step, facts, TRIANGLE, STEP_OF_FACT)
  return {m.name: (pytest.approx(m.value, abs=1e-9), m.n) for m in found}


def test_individual_sequential_and_unedited():
  assert _values(2, range(3)) == {
    'sequential_reliability': ((50 + 10 + 80) / 3, 3),
    'sequential_generalization_exact': ((30 + 50) / 2, 2),
    'individual_reliability': ((100 + 90 + 80) / 3, 3),
    'individual_generalization_exact': ((80 + 50) / 2, 2),
    'unedited_reliability': (30, 3),
    'unedited_generalization_exact': (15, 2),
  }


def test_only_the_facts_so_far_count():
  assert _values(1, range(2)) == {
    'sequential_reliability': (95, 2),
    'sequential_generalization_exact': (80, 1),
    'individual_reliability': (95, 2),
    'individual_generalization_exact': (80, 1),
    'unedited_reliability': (15, 2),
    'unedited_generalization_exact': (10, 1),
  }


def test_before_any_edit_there_is_only_the_floor():
  assert _values(0, range(3)) == {
    'unedited_reliability': (30, 3),
    'unedited_generalization_exact': (15, 2),
  }


def _interval(*scores):
  cells = {(0, i): {'rewrite_token': score} for i, score in enumerate(scores)}
  [found] = edit_scores.metrics(0, range(len(scores)), cells, [1] * len(scores))
  return found.ci_low, found.ci_high


def test_intervals():
  low, high = statistics.wilson(2, 3)
  assert _interval(1.0, 0.0, 1.0) == (100 * low, 100 * high)
  assert _interval(1.0)[1] == 100 and 20 < _interval(1.0)[0] < 21
  # Nothing to resample.
  assert _interval(0.5) == (None, None)
  low, high = _interval(*[0.5, 0.6] * 200)
  # 1.96 standard errors: 5 / sqrt(400).
  assert low == pytest.approx(55 - 0.49, abs=0.1)
  assert high == pytest.approx(55 + 0.49, abs=0.1)


def test_a_missing_cell_is_an_error():
  with pytest.raises(KeyError):
    edit_scores.metrics(1, range(3), TRIANGLE, STEP_OF_FACT)


@pytest.mark.parametrize(
  'key, name',
  [
    ('rewrite_token', 'reliability'),
    ('rewrite_exact', 'reliability_exact'),
    ('rephrase_token', 'generalization'),
    ('rephrase_generated', 'generalization_generated'),
    ('agreement_token', 'locality_agreement'),
    ('specificity_exact', 'locality_specificity_exact'),
  ],
)
def test_metric_name(key, name):
  assert edit_scores.metric_name(key) == name


def test_distances():
  """Over all prompts of a kind; some have nothing near or far."""
  at = lambda *values: [{'triggered': False, 'distance': d} for d in values]
  facts = [
    {'rewrite': at(0.0), 'rephrase': at(1.0, 2.0), 'locality': at(None)},
    {'rewrite': at(None), 'rephrase': at(3.0), 'locality': at(None)},
    {},
  ]
  found = {m.name: m for m in edit_scores.distances(facts)}
  assert {name.rpartition('_')[0] for name in found} == {
    'nearest_distance_rewrite',
    'nearest_distance_rephrase',
  }
  quantiles = [found[f'nearest_distance_rephrase_q{q}'] for q in (10, 50, 90)]
  assert [m.value for m in quantiles] == pytest.approx([1.2, 2.0, 2.8])
  assert [m.n for m in quantiles] == [3] * 3
  assert edit_scores.distances([{}, {}]) == []


def test_what_the_editor_says_is_kept():
  asked = []

  def lookups(state, texts):
    asked.extend(''.join(map(chr, t.context)) for t in texts)
    return [{'triggered': i < 2, 'distance': float(i)} for i in range(5)]

  [found] = edit_scores.score_facts(
    Characters(), Answers(FORCED, FREE), STATE, [PLAIN], None, lookups
  )
  assert asked == list(FORCED)[:5]
  assert {
    kind: [r['distance'] for r in records]
    for kind, records in found.lookups.items()
  } == {'rewrite': [0], 'rephrase': [1, 2], 'locality': [3, 4]}
  assert found.scores['rewrite_trigger_rate'] == 1
  assert found.scores['rephrase_trigger_rate'] == 0.5
  [found], _ = _score([PLAIN])
  assert found.lookups == {}
