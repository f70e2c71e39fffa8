import logging

import numpy as np
import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.analysis import saliency_prompts, saliency_summary
from me_jax.analysis.saliency import Prompt, Saliency
from me_jax.evals.sst2_icl import LABELS
from me_jax.evals.task import Item


@pytest.fixture
def sources(tmp_path):
  (tmp_path / 'sst2').mkdir()
  for split, rows in {
    'train_10000': ['bad film\t0', 'dull\t0', 'fine\t1', 'a joy\t1'],
    'dev': ['it works\t1', 'no\t0', 'never again\t0'],
  }.items():
    path = tmp_path / 'sst2' / f'{split}.tsv'
    path.write_text('\n'.join(['sentence\tlabel', *rows, '']))
  return folder(tmp_path)


class WordTokenizer(CharTokenizer):
  """The label words, with the blank before them, are tokens of their own."""

  WORDS = {' positive': 1000, ' negative': 1001, ' Positive': 1002}

  def encode(self, text):
    for word, token in self.WORDS.items():
      text = text.replace(word, chr(token))
    return super().encode(text)


def _item(sentence='so so', label='positive'):
  demonstrations = [['good', 'positive'], ['bad', 'negative']]
  return Item(
    id='7',
    group='dev',
    fields={
      'sentence': sentence,
      'label': label,
      'demonstrations': demonstrations,
    },
  )


def _labels(tokenizer):
  return saliency_prompts.label_words(tokenizer, LABELS)


def test_label_words_and_target_are_found():
  tokenizer = WordTokenizer()
  labels = _labels(tokenizer)
  assert labels == ((), (1001 + 3, 1000 + 3))
  prompt = saliency_prompts.build_prompt(tokenizer, _item(), labels)
  text = ''.join(chr(i - 3) for i in prompt.ids[1:])
  assert [ord(text[p - 1]) for p in prompt.label_positions] == [1000, 1001]
  assert text.endswith('\nReview: so so\nSentiment:')
  assert prompt.ids[0] == 1 and prompt.gold == LABELS.index('positive')


def test_words_of_many_tokens_are_known_where_they_part(caplog):
  """A tokenizer without the words: a blank begins both."""
  tokenizer = CharTokenizer()
  with caplog.at_level(logging.WARNING):
    words = _labels(tokenizer)
  blank, n, p = (tokenizer.encode(c)[-1] for c in ' np')
  assert words == ((blank,), (n, p))
  assert "'negative' has 9 tokens; only number 2 is" in caplog.text
  prompt = saliency_prompts.build_prompt(tokenizer, _item(), words)
  assert tokenizer.decode(prompt.ids).endswith('\nReview: so so\nSentiment: ')
  found = [prompt.ids[i] for i in prompt.label_positions]
  assert found == [p, n]


@pytest.mark.parametrize('labels', [('a', 'ab'), ('ab', 'ac', 'ad', 'ac')])
def test_words_that_do_not_part_are_refused(labels):
  with pytest.raises(ValueError, match='cannot tell them apart'):
    saliency_prompts.label_words(CharTokenizer(), labels)


def test_a_tokenizer_that_merges_the_colon():
  class Merging(CharTokenizer):
    def encode(self, text):
      return super().encode(text.replace(': p', 'Q'))

  with pytest.raises(ValueError, match='merge'):
    _labels(Merging())


def test_a_sentence_that_holds_the_template():
  tokenizer = WordTokenizer()
  item = _item(sentence='Sentiment: positive')
  with pytest.raises(ValueError, match="'7': expected 2 label words"):
    saliency_prompts.build_prompt(tokenizer, item, _labels(tokenizer))


def test_reading(sources):
  tokenizer = WordTokenizer()
  read = lambda **kwargs: saliency_prompts.read_prompts(
    sources, tokenizer, **kwargs
  )
  prompts = read()
  assert [p.gold for p in prompts] == [1, 0, 0]
  assert all(len(p.label_positions) == 2 for p in prompts)
  orders = {
    tuple(p.ids[i] for i in p.label_positions)
    for p in read(seed=43) + read(seed=43, limit=2)
  }
  assert len(orders) == 1  # Fixed per seed.
  assert read(limit=2) == [p for p in prompts if p in read(limit=2)]
  tails = lambda found: [p.ids[-12:] for p in found]
  assert tails(read(limit=1, seed=42)) == tails(read(limit=1, seed=45))


def _measured(scores, golds=(0,), logits=((1.0, 0.0),)):
  prompts = [Prompt((1, 2, 3), (1,), gold) for gold in golds]
  scores = np.asarray(scores, np.float64)
  return prompts, Saliency(
    scores, np.asarray(logits, np.float32), np.zeros(len(scores), np.float32)
  )


def test_the_shares_of_the_specification():
  scores = np.array([213 / 6, 108 / 2, 264 / 7])[None, :, None]
  found = saliency_summary.summarise([_measured(scores)])
  np.testing.assert_allclose(
    found.shares[:, 0], [0.2791, 0.4245, 0.2965], atol=5e-5
  )
  np.testing.assert_allclose(found.scores[:, 0], [35.5, 54, 37.714], atol=1e-3)


def test_seeds_have_equal_weight_and_are_normalised_one_by_one():
  """A seed with large scores does not drown the other."""
  small, large = [[[1.0], [3.0], [0.0]]], [[[300.0], [100.0], [0.0]]]
  found = saliency_summary.summarise([_measured(small), _measured(large)])
  np.testing.assert_allclose(found.shares[:, 0], [0.5, 0.5, 0])
  np.testing.assert_allclose(found.scores[:, 0], [150.5, 51.5, 0])
  assert found.n == 2


def test_within_a_seed_scores_are_averaged_as_they_are():
  scores = [[[1.0], [3.0], [0.0]], [[300.0], [100.0], [0.0]]]
  logits = ((1.0, 0.0), (1.0, 0.0))
  found = saliency_summary.summarise([_measured(scores, (0, 1), logits)])
  np.testing.assert_allclose(found.shares[:, 0], [150.5 / 202, 51.5 / 202, 0])
  assert found.label_accuracy == 0.5 and found.n == 2


@pytest.mark.parametrize(
  'wp, pq, expected',
  [
    ((5, 5, 1, 1), (1, 1, 5, 5), 2),
    ((5, 1, 5, 1), (1, 5, 1, 5), 3),
    ((1, 1, 1, 1), (2, 2, 2, 2), 0),
    ((1, 1, 1, 2), (2, 2, 2, 1), None),
    ((1, 1, 1, 1), (1, 1, 1, 1), None),
  ],
)
def test_crossover(wp, pq, expected):
  shares = np.array([wp, pq, np.zeros(4)], np.float64)
  assert saliency_summary.crossover_layer(shares) == expected
  found = saliency_summary.summarise([_measured([shares])])
  assert found.crossover_layer == expected
  late = np.divide(pq, np.add(wp, pq))[2:].mean()
  assert found.late_pq_share == pytest.approx(late)


def test_no_flow_has_no_shares():
  scores = np.zeros((1, 3, 2))
  scores[0, 1, 0] = 1
  found = saliency_summary.summarise([_measured(scores)])
  np.testing.assert_array_equal(found.shares[:, 0], [0, 1, 0])
  assert np.isnan(found.shares[:, 1]).all() and found.crossover_layer is None


def test_what_does_not_belong_together():
  prompts, found = _measured(np.ones((1, 3, 2)))
  with pytest.raises(ValueError, match='2 prompts have 1 saliencies'):
    saliency_summary.summarise([(prompts * 2, found)])
  with pytest.raises(ValueError, match='at least one seed'):
    saliency_summary.summarise([])
