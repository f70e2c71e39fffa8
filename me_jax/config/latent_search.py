"""Hyper-parameters of a search for a latent target, shared by its methods."""

import dataclasses

from me_jax.config.checks import at_least


@dataclasses.dataclass(kw_only=True)
class LatentSearchConfig:
  """The search for the vector that says the new fact, in its authors' names.

  Attributes:
    v_num_grad_steps: Evaluations of the loss; there is one update less.
    v_lr: Adam's step size.
    v_weight_decay: Factor of `‖delta‖ / ‖target_init‖^2`.
    clamp_norm_factor: `‖delta‖` stays below so many times `‖target_init‖`.
    kl_factor: Factor of the divergence on "{subject} is a".
    early_stop_loss: The search of a fact ends below this total loss.
    context_templates: Explicit templates instead of drawn ones.
  """

  v_num_grad_steps: int = 25
  v_lr: float = 0.5
  v_weight_decay: float = 1e-3
  clamp_norm_factor: float = 4.0
  kl_factor: float = 0.0625
  early_stop_loss: float = 0.05
  context_templates: tuple[str, ...] = ()

  def __post_init__(self):
    at_least('method.v_num_grad_steps', self.v_num_grad_steps, 1)
