"""SmolLM2-135M against the numbers of independent implementations."""

import numpy as np
import pytest
from evals_fakes import folder

from me_jax.evals import commonsenseqa_cloze, mmlu, perplexity, runner
from me_jax.generation import LlamaPredictor
from me_jax.typing import ModelState

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.golden]


@pytest.fixture(scope='module')
def predictor(smollm2):
  return LlamaPredictor(smollm2.config, smollm2.tokenizer)


def _samples(task, items, predictor, smollm2):
  results = predictor.score(
    ModelState(params=smollm2.params), [task.request(item) for item in items]
  )
  samples = {
    items[index].id: task.sample(items[index], result)
    for index, result in results
  }
  return [samples[item.id] for item in items]


def test_mmlu(golden, data_root, predictor, smollm2):
  expected = golden('mmlu_ppl.json')['items']
  by_id = {f'{e["subject"]}/{e["row"]}': e for e in expected}
  subjects = tuple(dict.fromkeys(e['subject'] for e in expected))
  task = mmlu.Mmlu(smollm2.tokenizer, folder(data_root), subjects=subjects)
  items = [item for item in task.items() if item.id in by_id]
  assert len(items) == len(expected)
  for item, sample in zip(
    items, _samples(task, items, predictor, smollm2), strict=True
  ):
    want = by_id[item.id]
    scores = [want['score'][letter] for letter in 'ABCD']
    assert sample['target'] == want['gold']
    assert sample['n_tokens'] == want['n_tokens']
    np.testing.assert_allclose(sample['resps'], scores, atol=1e-4, rtol=0)
    best, second = sorted(scores)[:2]
    if second - best >= 1e-4:
      assert sample['filtered_resps'] == [want['prediction']]
    assert not sample['nonfinite']


def test_commonsenseqa_cloze(golden, data_root, predictor, smollm2):
  expected = golden('csqa_cloze.json')
  task = commonsenseqa_cloze.CommonsenseQaCloze(
    smollm2.tokenizer, folder(data_root)
  )
  items = task.items()[:300]
  samples = _samples(task, items, predictor, smollm2)
  for item, sample, want in zip(
    items, samples, expected['items'], strict=False
  ):
    assert (item.id, sample['target']) == (want['id'], want['gold'])
    np.testing.assert_allclose(
      sample['resps'], want['sum_logprob'], atol=1e-3, rtol=0
    )
    assert sample['pred_sum'] == want['pred_sum']
    assert sample['pred_per_token'] == want['pred_per_token']
    assert sample['filtered_resps'] == [want['pred_per_char']]
  values = {m.name: m.value for m in task.aggregate(samples, complete=False)}
  for ours, theirs in (
    ('accuracy_sum', 'pred_sum'),
    ('accuracy_per_token', 'pred_per_token'),
    ('accuracy_per_char', 'pred_per_char'),
  ):
    assert values[ours] == pytest.approx(expected['accuracy'][theirs])


def test_wikitext_ppl(golden, data_root, predictor, smollm2, tmp_path):
  expected = golden('wikitext_ppl.json')
  text = (data_root / 'wikitext' / 'wiki.test.raw').read_bytes().decode()
  (tmp_path / 'wikitext').mkdir()
  (tmp_path / 'wikitext' / 'wiki.test.raw').write_bytes(
    text[: expected['chars']].encode()
  )
  task = perplexity.wikitext_ppl(smollm2.tokenizer, folder(tmp_path))
  ppl, bad = runner.evaluate(
    task,
    predictor,
    ModelState(params=smollm2.params),
    state_fingerprint=smollm2.fingerprint,
    path=tmp_path / 'wikitext_ppl.jsonl',
  )
  windows = [item.fields['ids'] for item in task.items()]
  assert sum(len(window) - 1 for window in windows) == expected['n_scored']
  assert ppl.value == pytest.approx(expected['ppl'], rel=1e-3)
  assert ppl.ci_low < ppl.value < ppl.ci_high
  assert bad.value == 0
