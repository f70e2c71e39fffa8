"""Hyper-parameters of ROME."""

import dataclasses

from me_jax.config.checks import at_least, one_of


@dataclasses.dataclass(kw_only=True)
class RomeConfig:
  """ROME's hyper-parameters, in the names of its authors' files.

  Attributes:
    name: Always 'rome'.
    layer: Layer whose `down_proj` is edited, zero-based.
    variant: 'rome', 'r_rome' or 'p_rome': which key the rank-one change is
      built from.
    mom2_adjustment: Take the key direction through the inverse second moment.
    v_num_grad_steps: Evaluations of the loss; there is one update less.
    v_lr: Adam's step size.
    v_weight_decay: Factor of `‖delta‖ / ‖target_init‖^2`.
    clamp_norm_factor: `‖delta‖` stays below so many times `‖target_init‖`.
    kl_factor: Factor of the divergence on "{subject} is a".
    early_stop_loss: The search ends below this total loss.
    context_template_length_params: Pairs (tokens, how many).
    context_templates: Explicit templates instead of drawn ones.
  """

  name: str = 'rome'
  layer: int = 5
  variant: str = 'rome'
  mom2_adjustment: bool = True
  v_num_grad_steps: int = 25
  v_lr: float = 0.5
  v_weight_decay: float = 1e-3
  clamp_norm_factor: float = 4.0
  kl_factor: float = 0.0625
  early_stop_loss: float = 0.05
  context_template_length_params: tuple[tuple[int, int], ...] = (
    (5, 10),
    (10, 10),
  )
  context_templates: tuple[str, ...] = ()

  def __post_init__(self):
    one_of('method.variant', self.variant, ('rome', 'r_rome', 'p_rome'))
    at_least('method.v_num_grad_steps', self.v_num_grad_steps, 1)
