"""Hyper-parameters of fine-tuning: FT-L and FT-M."""

import dataclasses
from typing import Any

from me_jax.config.checks import at_least, one_of

_VARIANTS = ('ft_m', 'ft_l', 'ft_l_constrained')
_SMALL_LAYERS = {'smollm2_135m': 20, 'tiny': 2}


@dataclasses.dataclass(kw_only=True)
class FineTuneConfig:
  """Fine-tuning of one matrix; `fine_tune_preset` gives published values.

  Attributes:
    name: Not a choice: 'ft_m', 'ft_l' or 'ft_l_constrained', whatever the other
      settings amount to.
    layer: Layer whose `down_proj` is trained, zero-based.
    objective: 'target_new', the negative log-likelihood of the target given
      the prompt, or 'prompt_last', which expects each token of the target
      right after the prompt.
    lr: Adam's step size.
    num_steps: Adam's steps at most.
    early_stop_loss: There is no further step below this loss.
    norm_constraint: No entry of the matrix gets further than this from that of
      the anchor; 0 for no bound.
    anchor: What the bound is around: 'theta_prev', the matrix before the edit,
      so that a sequence of edits may go any way, or 'theta_0', the unedited.
  """

  name: str = ''
  layer: int = 21
  objective: str = 'target_new'
  lr: float = 5e-4
  num_steps: int = 25
  early_stop_loss: float = 1e-2
  norm_constraint: float = 0.0
  anchor: str = 'theta_prev'

  def __post_init__(self):
    one_of('method.objective', self.objective, ('target_new', 'prompt_last'))
    one_of('method.anchor', self.anchor, ('theta_prev', 'theta_0'))
    at_least('method.num_steps', self.num_steps, 1)
    at_least('method.norm_constraint', self.norm_constraint, 0)
    if self.anchor == 'theta_0' and not self.norm_constraint:
      raise ValueError(
        'method.anchor theta_0 is what method.norm_constraint bounds the '
        'matrix around, and there is no bound. Set method.norm_constraint.'
      )
    name = 'ft_l' if self.objective == 'prompt_last' else 'ft_m'
    if self.norm_constraint:
      name = 'ft_l_constrained'
    self.name = name


def fine_tune_preset(
  variant: str, model: str, **changes: Any
) -> FineTuneConfig:
  """A variant of fine-tuning for a model by name.

  Args:
    variant: 'ft_m' and 'ft_l' are EasyEdit's for LLaMA-2-7B: layer 21 of 32,
      with the one objective or the other. 'ft_l_constrained' is the baseline of
      ROME's authors for GPT-J: layer 0, no entry moves by more than 5e-5.
    model: The model; all but the small ones get the published layer.
    **changes: Of other fields.

  Raises:
    ValueError: There is no such variant, or a value is out of range.
  """
  layer = _SMALL_LAYERS.get(model, 21)
  values = {
    'ft_l': {'objective': 'prompt_last', 'layer': layer},
    'ft_l_constrained': {'norm_constraint': 5e-5, 'layer': 0},
    'ft_m': {'layer': layer},
  }
  one_of('variant', variant, _VARIANTS)
  return FineTuneConfig(**{**values[variant], **changes})
