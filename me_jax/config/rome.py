"""Hyper-parameters of ROME."""

import dataclasses

from me_jax.config.checks import one_of
from me_jax.config.latent_search import LatentSearchConfig


@dataclasses.dataclass(kw_only=True)
class RomeConfig(LatentSearchConfig):
  """ROME's hyper-parameters, in the names of its authors' files.

  Attributes:
    name: Always 'rome'.
    layer: Layer whose `down_proj` is edited, zero-based.
    variant: 'rome', 'r_rome' or 'p_rome': which key the rank-one change is
      built from.
    mom2_adjustment: Take the key direction through the inverse second moment.
    context_template_length_params: Pairs (tokens, how many).
  """

  name: str = 'rome'
  layer: int = 5
  variant: str = 'rome'
  mom2_adjustment: bool = True
  context_template_length_params: tuple[tuple[int, int], ...] = (
    (5, 10),
    (10, 10),
  )

  def __post_init__(self):
    super().__post_init__()
    one_of('method.variant', self.variant, ('rome', 'r_rome', 'p_rome'))
