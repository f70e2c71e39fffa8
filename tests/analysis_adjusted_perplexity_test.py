import dataclasses
import json
import math

import jax
import numpy as np
import plain_model
import pytest
from evals_fakes import FakePredictor

from me_jax.analysis import adjusted_perplexity as lib
from me_jax.analysis.answers import Answer
from me_jax.config import AdjustedPerplexityConfig
from me_jax.typing import ModelState

CONFIG = AdjustedPerplexityConfig()


@pytest.mark.parametrize(
  'tokens, expected',
  [
    (range(20), (1, 1, 1, 1)),
    ([7] * 20, (2.5857, 2.5789, 2.5714, 2.5630)),
    ([*range(4)] * 5, (2.2255, 2.2022, 2.1766, 2.1484)),
    ([*range(10)] * 2, (1.6487, 1.6059, 1.5596, 1.5095)),
  ],
)
def test_the_factors_of_the_specification(tokens, expected):
  found = [lib.factor(lib.ngram_ratio(list(tokens), n)) for n in (1, 2, 3, 4)]
  np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_ngrams():
  assert lib.ngram_ratio([1, 2, 1, 2, 3], 2) == 3 / 4
  assert lib.ngram_ratio([1, 2, 3, 4], 4) == 1
  assert lib.ngram_ratio([1, 2, 3], 4) is None
  assert lib.ngram_ratio([], 1) is None


def _answers(*lengths, repeat=5):
  return [
    Answer(
      f'id{i}', (1, 50 + i, 9), tuple(range(10, 10 + repeat)) * (n // repeat)
    )
    for i, n in enumerate(lengths)
  ]


def _plain(tiny, answer, m):
  """exp of the mean NLL of the first m tokens, by one plain pass."""
  ids = np.array([*answer.context, *answer.tokens[:m]])
  logits = plain_model.logits(tiny.config, tiny.params, ids)
  logprobs = np.asarray(jax.nn.log_softmax(logits), np.float64)
  first = len(answer.context)
  rows = range(first - 1, len(ids) - 1)
  return math.exp(-np.mean([logprobs[i, ids[i + 1]] for i in rows]))


def test_the_first_tokens_are_scored_and_the_context_is_not(tiny):
  answers = _answers(20, 15, 35)
  judged, total = lib.adjusted_perplexity(tiny, answers, CONFIG)
  assert [j.item_id for j in judged] == ['id0', 'id1', 'id2']
  assert [j.n_tokens for j in judged] == [20, 15, 35]
  assert [j.ppl is None for j in judged] == [False, True, False]
  for i in (0, 2):
    assert judged[i].ppl == pytest.approx(
      _plain(tiny, answers[i], 20), rel=1e-5
    )
    rho = 5 / (len(answers[i].tokens) - 3)
    assert judged[i].rhos[3] == rho
    assert judged[i].adj(4) == pytest.approx(judged[i].ppl * math.exp(1 - rho))
  assert (total.n_used, total.n_excluded) == (2, 1)
  assert total.adj_mean == pytest.approx(
    (judged[0].adj(4) + judged[2].adj(4)) / 2
  )


def test_settings_change_what_they_say(tiny):
  answers = _answers(40)
  found = {}
  for name, changes in {
    'default': {},
    'window': {'ngram_scope': 'window'},
    'n1': {'ngram_n': 1},
    'm30': {'min_tokens': 30},
  }.items():
    config = dataclasses.replace(CONFIG, **changes)
    [judged], total = lib.adjusted_perplexity(tiny, answers, config)
    found[name] = judged, total
  ppl = found['default'][0].ppl
  assert found['m30'][0].ppl == pytest.approx(
    _plain(tiny, answers[0], 30), rel=1e-5
  )
  assert found['m30'][0].ppl != pytest.approx(ppl, rel=1e-3)
  assert found['default'][0].rhos == (5 / 40, 5 / 39, 5 / 38, 5 / 37)
  assert found['window'][0].rhos == (5 / 20, 5 / 19, 5 / 18, 5 / 17)
  by_n = found['default'][1].adj_mean_by_n
  assert found['n1'][1].adj_mean_by_n == by_n
  assert found['n1'][1].adj_mean == by_n[0]
  assert found['default'][1].adj_mean == by_n[3]


def _judged(ppls, rho=1.0):
  return [lib.Judged(str(i), 20, ppl, (rho,) * 4) for i, ppl in enumerate(ppls)]


def test_the_summary():
  total = lib.summarise(_judged([1.0, None, 10.0, 100.0]), CONFIG)
  assert (total.n_used, total.n_excluded) == (3, 1)
  assert total.adj_mean == total.ppl_mean == 37
  assert total.adj_median == 10
  assert total.adj_geomean == pytest.approx(10)
  assert total.rho_mean == 1
  assert 1 <= total.ci_low < 37 < total.ci_high <= 100
  repeated = lib.summarise(_judged([1.0, 10.0, 100.0], rho=0.5), CONFIG)
  assert repeated.adj_mean == pytest.approx(37 * math.exp(0.5))
  assert repeated.ppl_mean == 37 and repeated.rho_mean == 0.5


def test_the_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(60):
    total = lib.summarise(_judged(rng.gamma(4, size=80)), CONFIG, seed=seed)
    hits += total.ci_low <= 4 <= total.ci_high
  assert 51 <= hits < 60


def test_no_answer_is_long_enough(tiny):
  judged, total = lib.adjusted_perplexity(tiny, _answers(5, 10), CONFIG)
  assert (total.n_used, total.n_excluded) == (0, 2)
  assert total.adj_mean is None and total.adj_mean_by_n == (None,) * 4
  assert judged[0].adj(4) is None and judged[0].rhos[0] == 1
  assert lib.summarise([], CONFIG).n_used == 0


def test_records_are_json():
  judged = lib.judge(FakePredictor(), ModelState({}), _answers(20, 0), CONFIG)
  first, second = (
    json.loads(json.dumps(lib.record(j, CONFIG), allow_nan=False))
    for j in judged
  )
  assert list(first) == [
    'item_id',
    'n_tokens',
    'qualified',
    'ppl20',
    'rho_n1',
    'rho_n2',
    'rho_n3',
    'rho_n4',
    'adj',
  ]
  assert first['qualified'] and first['adj'] == judged[0].adj(4)
  assert second == dict.fromkeys(first) | {
    'item_id': 'id1',
    'n_tokens': 0,
    'qualified': False,
  }


def test_a_broken_scorer_is_named(tiny):
  params = jax.tree.map(lambda leaf: leaf * np.nan, tiny.params)
  scorer = dataclasses.replace(tiny, params=params)
  with pytest.raises(FloatingPointError, match="'id0': the scorer"):
    lib.adjusted_perplexity(scorer, _answers(20), CONFIG)


@pytest.mark.parametrize(
  'changes',
  [
    {'min_tokens': 3},
    {'ngram_n': 5},
    {'ngram_n': 0},
    {'ngram_scope': 'all'},
    {'context': 'none'},
  ],
)
def test_settings_out_of_range(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    AdjustedPerplexityConfig(**changes)


def test_the_scorer_is_the_papers_unless_said_otherwise():
  assert CONFIG.scorer.name == 'vicuna_7b_v15'
