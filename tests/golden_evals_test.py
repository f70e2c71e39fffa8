"""SmolLM2-135M against the numbers of independent implementations."""

import dataclasses

import numpy as np
import pytest
from evals_fakes import folder, sample_of, task_context

from me_jax.evals import mmlu, perplexity, runner
from me_jax.evals.commonsenseqa_cloze import commonsenseqa_cloze
from me_jax.generation import LlamaPredictor
from me_jax.prefixes import shared_lengths
from me_jax.typing import ModelState

# Float32 in another order of summation, in nats of a choice.
_SUM_ATOL = 1e-3

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.golden]


@pytest.fixture(scope='module')
def predictor(smollm2):
  return LlamaPredictor(smollm2.config, smollm2.tokenizer)


def _samples(task, items, predictor, smollm2, shares_prefixes=False):
  requests = [task.request(item) for item in items]
  if shares_prefixes:
    lengths = shared_lengths([request.context for request in requests])
    assert min(lengths) > 100
    requests = [
      dataclasses.replace(request, shared=length)
      for request, length in zip(requests, lengths, strict=True)
    ]
  results = predictor.score(ModelState(params=smollm2.params), requests)
  samples = {
    items[index].id: sample_of(task, items[index], result)
    for index, result in results
  }
  return [samples[item.id] for item in items]


@pytest.mark.parametrize('every', [5, pytest.param(1, marks=pytest.mark.slow)])
def test_mmlu(golden, data_root, predictor, smollm2, every):
  """All by the shortcuts, `every`-th as the reference scores: whole texts."""
  expected = golden('mmlu_ppl.json')['items']
  by_id = {f'{e["subject"]}/{e["row"]}': e for e in expected}
  subjects = tuple(dict.fromkeys(e['subject'] for e in expected))
  whole, short = (
    mmlu.Mmlu(
      context=task_context(
        folder(data_root), smollm2.tokenizer, one_forward=one_forward
      ),
      subjects=subjects,
    )
    for one_forward in (False, True)
  )
  items = [item for item in whole.items() if item.id in by_id]
  assert len(items) == len(expected)
  all_letters = _samples(short, items, predictor, smollm2, shares_prefixes=True)
  decided = 0
  for item, letters in zip(items, all_letters, strict=True):
    want = by_id[item.id]
    assert letters['target'] == want['gold']
    assert letters['n_tokens'] == want['n_tokens']
    # What all four have in common is missing, the same for each.
    scores = [want['score'][letter] for letter in 'ABCD']
    common = np.subtract(scores, letters['resps'])
    assert np.ptp(common) < 1e-4 and common.min() > 0
    if _is_decided(scores):
      decided += 1
      assert letters['filtered_resps'] == {'oc': want['prediction']}
    assert not letters['nonfinite']
  assert decided > len(items) / 2

  some = slice(None, None, every)
  for item, sample, letters in zip(
    items[some],
    _samples(whole, items[some], predictor, smollm2),
    all_letters[some],
    strict=True,
  ):
    want = by_id[item.id]
    scores = [want['score'][letter] for letter in 'ABCD']
    assert sample['target'] == want['gold']
    assert sample['n_tokens'] == want['n_tokens']
    np.testing.assert_allclose(sample['resps'], scores, atol=1e-4, rtol=0)
    common = np.subtract(sample['resps'], letters['resps'])
    assert np.ptp(common) < 1e-5 and common.min() > 0
    np.testing.assert_allclose(
      sample['letter_logprobs'], letters['letter_logprobs'], atol=2e-3, rtol=0
    )
    if _is_decided(scores):
      assert sample['filtered_resps'] == {'oc': want['prediction']}
    assert not sample['nonfinite']


def _is_decided(scores):
  best, second = sorted(scores)[:2]
  return second - best >= 1e-4


def _may_win(task, item, sums, n_tokens, reading):
  """Labels whose score may be the best if each sum is off by `_SUM_ATOL`."""
  sizes = {
    'per_char': [len(choice) for choice in task.doc_to_choice(item)],
    'per_token': n_tokens,
    'sum': [1] * len(sums),
  }[reading]
  highest = np.add(sums, _SUM_ATOL) / sizes
  lowest = np.subtract(sums, _SUM_ATOL) / sizes
  return [
    label
    for label, score in zip(task.labels, highest, strict=True)
    if score >= lowest.max()
  ]


@pytest.mark.parametrize(
  'count', [100, pytest.param(300, marks=pytest.mark.slow)]
)
def test_commonsenseqa_cloze(golden, data_root, predictor, smollm2, count):
  """100 one by one, and how many are right of them, or of 300."""
  expected = golden('csqa_cloze.json')
  accuracy = expected['accuracy']
  if count == len(expected['items']):
    accuracy = {
      name: 100 * np.mean([e[name] == e['gold'] for e in expected['items']])
      for name in accuracy
    }
  task = commonsenseqa_cloze(task_context(folder(data_root), smollm2.tokenizer))
  items = task.items()[:count]
  samples = _samples(task, items, predictor, smollm2)
  for item, sample, want in zip(
    items, samples, expected['items'], strict=False
  ):
    assert (item.id, sample['target']) == (want['id'], want['gold'])
    np.testing.assert_allclose(
      sample['resps'], want['sum_logprob'], atol=_SUM_ATOL, rtol=0
    )
    sums, n_tokens = want['sum_logprob'], sample['n_tokens']
    for reading in ('per_char', 'per_token', 'sum'):
      # Choices that are closer than the sums agree may change places.
      may_win = _may_win(task, item, sums, n_tokens, reading)
      if len(may_win) == 1:
        assert may_win == [want[f'pred_{reading}']]
      assert sample['filtered_resps'][reading] in may_win
  values = {m.name: m.value for m in task.aggregate(samples, complete=False)}
  for reading in ('per_char', 'per_token', 'sum'):
    name = f'accuracy_{reading}'
    near_ties = sum(
      len(_may_win(task, i, s['resps'], s['n_tokens'], reading)) > 1
      for i, s in zip(items, samples, strict=True)
    )
    assert near_ties < max(3, len(items) / 50)
    right, want = (
      len(items) * share / 100
      for share in (values[name], accuracy[f'pred_{reading}'])
    )
    assert abs(right - want) <= near_ties + 1e-6


def test_wikitext_ppl(golden, data_root, predictor, smollm2, tmp_path):
  expected = golden('wikitext_ppl.json')
  text = (data_root / 'wikitext' / 'wiki.test.raw').read_bytes().decode()
  (tmp_path / 'wikitext').mkdir()
  (tmp_path / 'wikitext' / 'wiki.test.raw').write_bytes(
    text[: expected['chars']].encode()
  )
  task = perplexity.wikitext_ppl(
    task_context(folder(tmp_path), smollm2.tokenizer)
  )
  ppl, bad = runner.evaluate(
    runner.select(task),
    predictor,
    ModelState(params=smollm2.params),
    state_fingerprint=smollm2.fingerprint,
    path=tmp_path / 'wikitext_ppl.jsonl',
    scores_path=tmp_path / 'scores.jsonl',
  )
  windows = [item.fields['ids'] for item in task.items()]
  assert sum(len(window) - 1 for window in windows) == expected['n_scored']
  assert ppl.value == pytest.approx(expected['ppl'], rel=1e-3)
  assert ppl.ci_low < ppl.value < ppl.ci_high
  assert bad.value == 0
