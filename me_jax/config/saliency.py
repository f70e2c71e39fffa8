"""Settings of attention saliency."""

import dataclasses

from me_jax.config.checks import at_least, one_of

LOSSES = ('label_words', 'full_vocabulary')


@dataclasses.dataclass(kw_only=True)
class SaliencyConfig:
  """Which prompts information flow is measured in, and of which loss; see
  `analysis/saliency.py`.

  Attributes:
    limit: Sentences of SST-2, the same for every seed; 0 for all 872.
    seeds: Of the demonstrations, as in Wang et al. 2023.
    loss: Cross-entropy over the logits of the 'label_words', or over the
      'full_vocabulary'.
    exclude_bos: The first token is none of the pairs.
    batch_size: Prompts at once. Each holds some N T² floats a layer, of N heads
      and T tokens.
  """

  limit: int = 0
  seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
  loss: str = 'label_words'
  exclude_bos: bool = False
  batch_size: int = 8

  def __post_init__(self):
    at_least('saliency.limit', self.limit, 0)
    at_least('saliency.batch_size', self.batch_size, 1)
    at_least('the number of saliency.seeds', len(self.seeds), 1)
    one_of('saliency.loss', self.loss, LOSSES)
