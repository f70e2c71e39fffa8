"""Settings of adjusted perplexity."""

import dataclasses

from me_jax.config.checks import at_least, one_of
from me_jax.config.model import ModelSource

NGRAMS = (1, 2, 3, 4)


@dataclasses.dataclass(kw_only=True)
class AdjustedPerplexityConfig:
  """How an external model judges generated text; see
  `analysis/adjusted_perplexity.py`.

  Attributes:
    scorer: The model that judges. The paper's is Vicuna-7B-v1.5, which has the
      vocabulary of LLaMA-2.
    min_tokens: Shorter answers are left out, and of others so many first tokens
      are scored; the paper's are 20.
    ngram_n: Length of the n-grams whose repetition counts, 1 to 4. The paper
      does not say; with 4 the share of repeated ones is seq-rep-4, and healthy
      text, in which function words recur, is not penalised.
    ngram_scope: 'answer': n-grams of the whole answer; or 'window': of the
      tokens that are scored.
    context: 'question': the answer is read after its question alone; or
      'prompt': after all that the model was given, exemplars included.
  """

  scorer: ModelSource = dataclasses.field(
    default_factory=lambda: ModelSource(name='vicuna_7b_v15')
  )
  min_tokens: int = 20
  ngram_n: int = 4
  ngram_scope: str = 'answer'
  context: str = 'question'

  def __post_init__(self):
    # An answer that is judged has an n-gram of each length.
    at_least('min_tokens', self.min_tokens, max(NGRAMS))
    one_of('ngram_scope', self.ngram_scope, ('answer', 'window'))
    one_of('context', self.context, ('question', 'prompt'))
    if self.ngram_n not in NGRAMS:
      raise ValueError(f'ngram_n must be 1 to 4, got {self.ngram_n}.')
