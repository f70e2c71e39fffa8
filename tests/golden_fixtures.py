"""Fixtures that several comparisons with stored numbers share."""

import filelock
import pytest


@pytest.fixture(scope='session')
def golden_second_moments(request, smollm2, data_root, tmp_path_factory):
  """Second moments of layers 4-8 as in `cov.json`, {layer: SecondMoment}.

  Collected once: whichever process of pytest-xdist comes later reads them.
  """
  from me_jax.edits import second_moment_collect

  path = data_root / 'wikitext' / 'wikipedia_passages.txt'
  if not path.is_file():
    pytest.skip(f'{path} not found')
  lines = [line.strip() for line in path.read_text().split('\n')]
  texts = [line for line in lines if line][:400]
  rows = [smollm2.tokenizer.encode(text)[:256] for text in texts]
  folder = tmp_path_factory.getbasetemp()
  if hasattr(request.config, 'workerinput'):
    folder = folder.parent
  with filelock.FileLock(folder / 'second_moments.lock'):
    return second_moment_collect.collect(
      smollm2,
      rows,
      range(4, 9),
      folder / 'second_moments',
      {'corpus': 'the first 400 lines of wikipedia_passages.txt'},
      # On a processor smaller batches are faster: they fit the cache.
      batch_tokens=3072,
    )
