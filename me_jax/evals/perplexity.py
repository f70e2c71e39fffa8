"""Perplexity of a text in windows."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from me_jax.data import sample
from me_jax.evals import aggregates, hub_tables, letters, statistics
from me_jax.evals.task import Item, Metric, Record, TaskContext
from me_jax.typing import ScoreRequest, ScoreResult

_WINDOW = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity:
  """See `Task`. An item is a window of tokens, `fields['ids']`.

  The text is tokenised once and cut into windows of 512 tokens that do not
  overlap; every token but each window's first is scored.

  Attributes:
    name: As in the registry.
    version: Of text and windows.
    context: The tokenizer.
    read: Gives the text.
  """

  name: str
  version: str = 'windows_512'
  context: TaskContext
  read: Callable[[], str]
  mode: str = dataclasses.field(default='ppl', init=False)

  def items(self) -> list[Item]:
    """The windows in order; a last one of a single token is left out."""
    ids = self._ids
    starts = range(0, len(ids) - 1, _WINDOW)
    return [
      Item(
        id=str(index),
        group=self.name,
        fields={'ids': ids[start : start + _WINDOW]},
      )
      for index, start in enumerate(starts)
    ]

  def request(self, item: Item) -> ScoreRequest:
    """All tokens of the window, the last one as the continuation."""
    *context, last = item.fields['ids']
    return ScoreRequest(
      context=tuple(context), continuations=((last,),), score_context=True
    )

  def answer(self, item: Item, result: ScoreResult) -> Record:
    """`resps` holds the negative log-likelihood of the window in nats."""
    del item
    logprobs = np.concatenate([result.context_logprobs, *result.logprobs])
    nll = -float(np.sum(logprobs, dtype=np.float64))
    return {
      'resps': [letters.to_json(nll)],
      'n_tokens': len(logprobs),
      'nonfinite': not math.isfinite(nll),
    }

  def score(self, item: Item, answer: Record) -> Record:
    """Nats per token of the window; lower is better."""
    del item
    per_token = float(answer['resps'][0]) / answer['n_tokens']
    return {
      'target': '',
      'filtered_resps': {},
      'metrics': {'nll_per_token': letters.to_json(per_token)},
    }

  def is_cut_short(self, item: Item, answer: Record) -> bool:
    """Never: a likelihood is whole."""
    del item, answer
    return False

  def aggregate(
    self, samples: Sequence[Record], *, complete: bool
  ) -> list[Metric]:
    """`ppl` with a bootstrap over windows; infinite if any window is."""
    del complete  # there are no groups to miss
    bad = aggregates.nonfinite(samples)
    value, low, high = math.inf, None, None
    if not bad.value:
      data = np.array(
        [(s['resps'][0], s['n_tokens']) for s in samples], np.float64
      )
      value = float(_ppl(data.sum(axis=0, keepdims=True))[0])
      if math.isfinite(value):
        low, high = statistics.bootstrap(_ppl, data)
    ppl = Metric(
      name='ppl', value=value, n=len(samples), ci_low=low, ci_high=high
    )
    return [ppl, bad]

  @functools.cached_property
  def _ids(self) -> tuple[int, ...]:
    ids = tuple(self.context.tokenizer.encode(self.read()))
    if len(ids) < 2:
      raise ValueError(
        f'{self.name}: expected a text of at least 2 tokens, got {len(ids)}.'
      )
    return ids


def wikitext_ppl(context: TaskContext) -> Perplexity:
  """Perplexity of the test split of WikiText-2 raw (Merity et al. 2017)."""

  def read() -> str:
    path = context.sources.find(
      'wikitext/wiki.test.raw', hub_tables.wikitext_test()
    )
    # Line ends are part of the text: no translation.
    return path.read_bytes().decode('utf-8')

  return Perplexity(name='wikitext_ppl', context=context, read=read)


def sample_ppl(context: TaskContext) -> Perplexity:
  """Perplexity of the prose that comes with this package."""
  return Perplexity(
    name='sample_ppl', context=context, read=sample.sample_prose
  )


def _ppl(totals: np.ndarray) -> np.ndarray:
  """exp(NLL / tokens) of each row; a collapsed model's may be infinite."""
  with np.errstate(over='ignore'):
    return np.exp(totals[:, 0] / totals[:, 1])
