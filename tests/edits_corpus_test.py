import dataclasses
import itertools
import types

import numpy as np
import pytest

from me_jax.data import sources
from me_jax.edits import corpus as corpus_lib
from me_jax.edits import corpus_texts, generated_text
from me_jax.edits.corpus_texts import TextCorpus, open_corpus

_NO_DATA = sources.DataSources(allow_hub=False)


@pytest.fixture
def letters(tiny):
  texts = [chr(ord('a') + i) * (i + 1) for i in range(20)]
  return TextCorpus('letters', lambda: texts, tiny.tokenizer.encode)


def _sample(corpus, **kwargs):
  return corpus_lib.token_rows(corpus, **{'max_length': 8, 'seed': 1} | kwargs)


def test_draws_without_replacement_and_cuts(letters, tiny):
  sample = _sample(letters, n_samples=20)
  texts = [tiny.tokenizer.decode(row) for row in sample.rows]
  assert sorted(texts) == [text[:8] for text in letters.read()]
  assert texts != sorted(texts)
  assert sample.n_tokens == sum(map(len, texts))


def test_smaller_sample_is_the_start_of_a_larger_one(letters):
  assert (
    _sample(letters, n_samples=5).rows == _sample(letters, n_samples=9).rows[:5]
  )


def test_seed_decides(letters):
  one, again = _sample(letters, n_samples=9), _sample(letters, n_samples=9)
  other = _sample(letters, n_samples=9, seed=2)
  assert one.rows == again.rows and one.spec == again.spec
  assert one.rows != other.rows
  assert one.spec['corpus_sha256'] != other.spec['corpus_sha256']


def test_min_tokens_stops_at_the_text_that_reaches_it(letters):
  calls = []
  sample = _sample(letters, min_tokens=30, progress=calls.append)
  assert sample.n_tokens >= 30 > sample.n_tokens - len(sample.rows[-1])
  assert sample.spec['n_texts'] == len(sample.rows)
  assert calls[0] == 0 and calls[-1] == 30


def test_asking_for_too_many_takes_all_and_records_it(letters):
  spec = _sample(letters, n_samples=1000).spec
  assert spec['n_samples'] == 1000 and spec['n_texts'] == 20


def test_known_spec_is_part_of_the_spec(letters):
  arguments = {'max_length': 8, 'seed': 3, 'n_samples': 4}
  known = corpus_lib.known_spec(letters, **arguments)
  spec = corpus_lib.token_rows(letters, **arguments).spec
  assert known.items() <= spec.items()
  assert set(spec) - set(known) == {'n_texts', 'corpus_sha256'}


def test_hash_tells_where_texts_end(tiny):
  digests = set()
  for texts in (['ab', 'c'], ['a', 'bc'], ['abc']):
    # In the given order, whatever the seed.
    corpus = types.SimpleNamespace(
      id='x',
      rows=lambda max_length, seed, texts=texts: map(
        tiny.tokenizer.encode, texts
      ),
    )
    digests.add(_sample(corpus, n_samples=9).spec['corpus_sha256'])
  assert len(digests) == 3


@pytest.mark.parametrize(
  'arguments',
  [
    {},
    {'n_samples': 3, 'min_tokens': 3},
    {'n_samples': 3, 'max_length': 0},
    {'n_samples': -1},
  ],
)
def test_refuses_unclear_sizes(letters, arguments):
  with pytest.raises(ValueError, match='at least 1'):
    _sample(letters, **arguments)


def test_empty_corpus(tiny):
  with pytest.raises(ValueError, match='nothing has no text'):
    _sample(TextCorpus('nothing', list, tiny.tokenizer.encode), n_samples=1)


def test_file_one_text_a_line(tiny, tmp_path):
  path = tmp_path / 'texts.txt'
  # U+2028 is no line end: the passage goes on.
  path.write_text(' one\n\n  \ntwo\u2028and a half\n', encoding='utf-8')
  corpus = open_corpus(f'file:{path}', tiny, _NO_DATA)
  assert list(corpus.read()) == ['one', 'two\u2028and a half']
  assert corpus.id.startswith('file:texts.txt ')
  path.write_text('three\n')
  assert open_corpus(f'file:{path}', tiny, _NO_DATA).id != corpus.id


def test_file_is_missing_or_not_text(tiny, tmp_path):
  with pytest.raises(FileNotFoundError, match='absent.txt'):
    open_corpus(f'file:{tmp_path}/absent.txt', tiny, _NO_DATA)
  (tmp_path / 'bad.txt').write_bytes(b'fine\n\xff\n')
  with pytest.raises(ValueError, match='bad.txt.*byte 5'):
    open_corpus(f'file:{tmp_path}/bad.txt', tiny, _NO_DATA)


def test_passages_and_wikitext_below_the_data_root(tiny, tmp_path):
  (tmp_path / 'wikitext').mkdir()
  (tmp_path / 'wikitext' / 'wikipedia_passages.txt').write_text('A passage.\n')
  (tmp_path / 'wikitext' / 'wiki.valid.raw').write_text(
    ' \n = Homarus = \n \n A lobster = a clawed one . \n = = Names = = \n'
  )
  data = sources.DataSources(data_root=tmp_path, allow_hub=False)
  passages = open_corpus('wikipedia_passages', tiny, data)
  both = open_corpus('wikipedia_passages+wikitext', tiny, data)
  assert list(passages.read()) == ['A passage.']
  assert list(both.read()) == ['A passage.', 'A lobster = a clawed one .']
  assert passages.id != both.id


def test_real_passages(tiny, data_root):
  data = sources.DataSources(data_root=data_root, allow_hub=False)
  corpus = open_corpus('wikipedia_passages', tiny, data)
  assert len(corpus.read()) == 8906


def test_missing_corpora_say_what_to_do(tiny):
  with pytest.raises(FileNotFoundError, match='wikitext/wikipedia_passages'):
    open_corpus('wikipedia_passages', tiny, _NO_DATA)
  with pytest.raises(FileNotFoundError, match='choose one of .*generated'):
    open_corpus('wikipedia', tiny, _NO_DATA).read()
  with pytest.raises(ValueError, match="No corpus 'wikpedia'.*generated"):
    open_corpus('wikpedia', tiny, _NO_DATA)


def test_wikipedia_comes_from_the_hub(tiny, monkeypatch):
  import datasets

  asked = []

  def load_dataset(*args, **kwargs):
    asked.append((args, kwargs))
    return datasets.Dataset.from_dict(
      {'title': ['a', 'b', 'c'], 'text': ['Alpha', 'Beta', 'Gamma']}
    )

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  corpus = open_corpus('wikipedia', tiny, sources.DataSources())
  rows = _sample(corpus, n_samples=3).rows
  assert asked == [
    (
      ('wikimedia/wikipedia', '20231101.en'),
      {'split': 'train', 'streaming': False},
    )
  ]
  assert sorted(map(tiny.tokenizer.decode, rows)) == ['Alpha', 'Beta', 'Gamma']
  assert '20231101' in corpus.id


def test_hub_failure_gives_the_reason(tiny, monkeypatch):
  import datasets

  def load_dataset(*args, **kwargs):
    raise ConnectionError('no route')

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  with pytest.raises(FileNotFoundError, match='ConnectionError: no route'):
    open_corpus('wikipedia', tiny, sources.DataSources()).read()


@pytest.fixture(scope='module')
def generated(tiny):
  return open_corpus('generated', tiny, _NO_DATA)


def test_generated_texts_start_with_each_starter(generated, tiny):
  rows = list(itertools.islice(generated.rows(24, 0), 500))
  decoded = [tiny.tokenizer.decode(row) for row in rows]
  starts = {
    s for s in generated_text.STARTERS for t in decoded if t.startswith(s)
  }
  assert starts == set(generated_text.STARTERS)
  assert all(tiny.tokenizer.eos_id not in row for row in rows)
  assert max(map(len, rows)) == 24
  assert len({tuple(row) for row in rows}) > 400
  assert 'generated by the model' in generated.id


def test_generated_texts_are_seeded(generated):
  draw = lambda seed, n: list(itertools.islice(generated.rows(24, seed), n))
  assert draw(0, 150) == draw(0, 200)[:150]
  assert draw(0, 50) != draw(1, 50)


def test_generated_texts_end_before_the_end_token(tiny, monkeypatch):
  def sample(config, params, prompts, key, *, num_new_tokens, top_k):
    del config, params, key, top_k
    tokens = np.tile(np.arange(1, num_new_tokens + 1), (len(prompts), 1))
    tokens[::2, 3:] = tiny.tokenizer.eos_id
    return tokens

  monkeypatch.setattr(generated_text.sampling, 'sample', sample)
  corpus = generated_text.GeneratedCorpus(tiny)
  first, second = itertools.islice(corpus.rows(10, 0), 2)
  # 'The' and 'You' are three bytes each and share the first batch.
  assert first == [*tiny.tokenizer.encode('The'), 1, 2, 3]
  assert second == [*tiny.tokenizer.encode('You'), *range(1, 8)]


def test_special_tokens_of_the_tokenizer_are_kept(letters):
  with_bos = dataclasses.replace(
    letters, encode=lambda text: [256, *letters.encode(text)]
  )
  rows = _sample(with_bos, n_samples=20).rows
  assert all(row[0] == 256 and len(row) <= 8 for row in rows)
  assert all(row.count(256) == 1 for row in rows)


def test_names_are_all_known(tiny, tmp_path):
  # The list that errors print and the names that work are the same.
  (tmp_path / 'PATH').write_text('x\n')
  for name in corpus_texts.NAMES:
    try:
      open_corpus(name.replace('PATH', f'{tmp_path}/PATH'), tiny, _NO_DATA)
    except FileNotFoundError:
      pass
