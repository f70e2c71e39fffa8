import json
import math

import numpy as np
import pytest
from evals_fakes import (
  CharTokenizer,
  FakePredictor,
  folder,
  sample_of,
  task_context,
)

from me_jax.evals import perplexity


def _task(text, adds_bos=False):
  context = task_context(folder(None), CharTokenizer(adds_bos=adds_bos))
  return perplexity.Perplexity(name='text', context=context, read=lambda: text)


def _samples(task):
  items = task.items()
  requests = [task.request(item) for item in items]
  results = dict(FakePredictor().score(None, requests))
  return [sample_of(task, item, results[i]) for i, item in enumerate(items)]


@pytest.mark.parametrize(
  ('length', 'sizes'),
  [
    (2, [2]),
    (512, [512]),
    (513, [512]),
    (514, [512, 2]),
    (1100, [512, 512, 76]),
  ],
)
def test_windows_do_not_overlap(length, sizes):
  text = ''.join(chr(65 + i % 50) for i in range(length))
  task = _task(text)
  windows = [item.fields['ids'] for item in task.items()]
  assert [len(w) for w in windows] == sizes
  joined = [token for window in windows for token in window]
  assert joined == CharTokenizer(adds_bos=False).encode(text)[: sum(sizes)]
  assert [s['n_tokens'] for s in _samples(task)] == [n - 1 for n in sizes]


def test_all_but_the_first_token_is_asked_for():
  task = _task('abcd', adds_bos=True)
  (item,) = task.items()
  request = task.request(item)
  assert request.context == (1, 100, 101, 102)
  assert request.continuations == ((103,),)
  assert request.score_context


def test_ppl_is_per_token_over_all_windows():
  task = _task('x' * 1000 + 'y' * 300)
  samples = _samples(task)
  ppl, bad = task.aggregate(samples, complete=True)
  nll = sum(s['resps'][0] for s in samples)
  assert ppl.value == pytest.approx(math.exp(nll / (511 + 511 + 275)))
  assert ppl.ci_low < ppl.value < ppl.ci_high
  assert (ppl.name, ppl.n, bad.name, bad.value) == ('ppl', 3, 'n_nonfinite', 0)


def test_a_non_finite_window_makes_the_value_infinite():
  samples = _samples(_task('x' * 600))
  samples[1] = {**samples[1], 'resps': ['nan'], 'nonfinite': True}
  ppl, bad = _task('x').aggregate(samples, complete=True)
  assert ppl.value == math.inf and ppl.ci_low is None and bad.value == 1


def test_an_overflowing_exponential_is_infinite():
  samples = [{'resps': [900.0 * 4], 'n_tokens': 4, 'nonfinite': False}]
  ppl, _ = _task('x').aggregate(samples, complete=True)
  assert ppl.value == math.inf and ppl.ci_high is None


def test_a_sample_is_the_loss_of_its_window():
  for sample in _samples(_task('x' * 700)):
    [nll] = sample['resps']
    assert sample['metrics'] == {'nll_per_token': nll / sample['n_tokens']}
    assert sample['filtered_resps'] == {} and sample['target'] == ''


@pytest.mark.parametrize(
  ('value', 'name'), [(np.nan, 'nan'), (-np.inf, 'inf'), (np.inf, '-inf')]
)
def test_a_sample_that_is_not_finite_is_plain_json(value, name):
  task = _task('abc')
  (item,) = task.items()
  ((_, result),) = FakePredictor().score(None, [task.request(item)])
  result.context_logprobs[0] = value
  sample = sample_of(task, item, result)
  assert sample['nonfinite'] and sample['resps'] == [name]
  assert sample['metrics'] == {'nll_per_token': name}
  json.dumps(sample, allow_nan=False)
  ppl, bad = task.aggregate([sample], complete=True)
  assert ppl.value == math.inf and bad.value == 1


def test_a_text_without_a_second_token_is_refused():
  with pytest.raises(ValueError, match='at least 2 tokens, got 1'):
    _task('a').items()


def test_the_packaged_prose_has_several_windows(tmp_path):
  task = perplexity.sample_ppl(task_context(folder(tmp_path)))
  assert len(task.items()) > 4


def test_wikitext_is_read_as_it_is(tmp_path):
  (tmp_path / 'wikitext').mkdir()
  (tmp_path / 'wikitext' / 'wiki.test.raw').write_bytes(b' \n = A\r\n')
  tokenizer = CharTokenizer(adds_bos=False)
  task = perplexity.wikitext_ppl(task_context(folder(tmp_path), tokenizer))
  (item,) = task.items()
  assert tokenizer.decode(item.fields['ids']) == ' \n = A\r\n'
