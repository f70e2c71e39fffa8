"""Facts and prose that come with the package, for runs without a download."""

import importlib.resources

from me_jax.data import counterfact
from me_jax.data.pool import FactPool


def load_sample(*, target: str = 'alt') -> FactPool:
  """120 counterfactual facts about 120 subjects, each with one rephrasing and
  one locality prompt; case ids `sample-0` to `sample-119`.

  Raises:
    ValueError: `target` is neither 'alt' nor 'true'.
  """
  with importlib.resources.as_file(_folder() / 'facts.jsonl') as path:
    return counterfact.load_easyedit(path, name='sample', target=target)


def sample_prose() -> str:
  """About 2,800 words of encyclopedic English, paragraphs separated by blank
  lines: a small text that no data set holds, for perplexity."""
  return (_folder() / 'prose.txt').read_text(encoding='utf-8')


def _folder():
  return importlib.resources.files('me_jax.data') / 'sample'
