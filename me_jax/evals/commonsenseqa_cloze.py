"""CommonsenseQA as a cloze: how likely is the text of each choice?

Letters are beyond small models; the likelihood of an answer's words still
tells what they know. Zero-shot, prompt `Question: {stem}\nAnswer:`.
"""

from collections.abc import Sequence

import numpy as np

from me_jax.data.sources import DataSources
from me_jax.evals import letters, prompts
from me_jax.evals.commonsenseqa import LETTERS, read_items
from me_jax.evals.task import Item, Metric, Sample
from me_jax.typing import ScoreRequest, ScoreResult, Tokenizer


class CommonsenseQaCloze:
  """See `Task`. `fields` are question, A to E and answerKey."""

  name = 'commonsenseqa_cloze'
  mode = 'ppl'

  def __init__(self, tokenizer: Tokenizer, sources: DataSources):
    """Binds data and tokenizer; files are read when first needed."""
    self._tokenizer = tokenizer
    self._sources = sources

  def items(self) -> list[Item]:
    """The 1,221 questions of the development split."""
    return read_items(self._sources, 'dev')

  def request(self, item: Item) -> ScoreRequest:
    """One context, five continuations; each text is tokenised as a whole."""
    context, continuations = prompts.split_common_prefix(
      [
        self._tokenizer.encode(
          f'Question: {item.fields["question"]}\nAnswer: {item.fields[letter]}'
        )
        for letter in LETTERS
      ]
    )
    return ScoreRequest(context=context, continuations=continuations)

  def sample(self, item: Item, result: ScoreResult) -> Sample:
    """`resps` holds the sum of log-probabilities of each choice.

    `filtered_resps` and `correct` are those of the score per character of the
    choice; the other two readings have fields of their own.
    """
    sums = [float(np.sum(lp, dtype=np.float64)) for lp in result.logprobs]
    tokens = [len(lp) for lp in result.logprobs]
    chars = [len(item.fields[letter]) for letter in LETTERS]
    best = lambda sizes: LETTERS[
      letters.first_smallest(
        [-s / size for s, size in zip(sums, sizes, strict=True)]
      )
    ]
    prediction = best(chars)
    return {
      'target': item.fields['answerKey'],
      'resps': [letters.finite_or_none(s) for s in sums],
      'filtered_resps': [prediction],
      'correct': prediction == item.fields['answerKey'],
      'pred_sum': best([1] * len(LETTERS)),
      'pred_per_token': best(tokens),
      'n_tokens': tokens,
      'nonfinite': not np.isfinite(sums).all(),
    }

  def aggregate(
    self, samples: Sequence[Sample], *, complete: bool
  ) -> list[Metric]:
    """Accuracy per character (the headline), per token and by sum."""
    del complete  # there are no groups to miss
    others = [
      letters.share(
        f'accuracy_{reading}',
        sum(s[f'pred_{reading}'] == s['target'] for s in samples),
        len(samples),
      )
      for reading in ('per_token', 'sum')
    ]
    return [
      letters.accuracy('accuracy_per_char', samples),
      *others,
      *letters.spread(samples, LETTERS),
      letters.nonfinite(samples),
    ]
