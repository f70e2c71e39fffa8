"""Information flow in SmolLM2 against a PyTorch implementation."""

import numpy as np
import pytest

from me_jax.analysis import saliency_prompts
from me_jax.analysis.saliency import saliency
from me_jax.evals import sst2_icl
from me_jax.evals.task import Item

pytestmark = [pytest.mark.model, pytest.mark.golden]


@pytest.fixture(scope='module')
def stored(golden):
  content = golden('saliency.json')
  assert len(content['samples']) == 4
  return content


@pytest.fixture(scope='module')
def words(smollm2):
  return saliency_prompts.label_words(smollm2.tokenizer, sst2_icl.LABELS)


@pytest.fixture(scope='module')
def prompts(smollm2, words, stored):
  return [
    saliency_prompts.build_prompt(smollm2.tokenizer, _item(s), words)
    for s in stored['samples']
  ]


@pytest.fixture(scope='module')
def found(smollm2, words, prompts):
  measure = saliency(smollm2.config, label_ids=words.ids, batch_size=3)
  return measure(smollm2.params, prompts)


def _item(sample):
  *shots, query = sample['text'].split('Review: ')[1:]
  return Item(
    id='golden',
    group='dev',
    fields={
      'demonstrations': [
        shot.rstrip('\n').split('\nSentiment: ') for shot in shots
      ],
      'sentence': query.removesuffix('\nSentiment:'),
      'label': sst2_icl.LABELS[int(sample['gold'])],
    },
  )


def test_tokens(prompts, words, stored):
  assert [[i] for i in words.ids] == [stored['label_ids'][g] for g in '01']
  for prompt, sample in zip(prompts, stored['samples'], strict=True):
    assert list(prompt.ids) == sample['ids']
    assert list(prompt.label_positions) == sample['label_positions']
    assert len(prompt.ids) - 1 == sample['target_position']
    assert prompt.gold == int(sample['gold'])


def test_logits_and_losses(found, stored):
  samples = stored['samples']
  np.testing.assert_allclose(
    found.label_logits, [s['label_logits_neg_pos'] for s in samples], rtol=1e-4
  )
  np.testing.assert_allclose(
    found.losses, [s['loss'] for s in samples], rtol=1e-3
  )


def test_scores(found, stored):
  expected = [s['S_wp_pq_ww_per_layer'] for s in stored['samples']]
  np.testing.assert_allclose(
    found.scores.transpose(0, 2, 1), expected, rtol=1e-3
  )
