"""Hyper-parameters of MEMIT and EMMET."""

import dataclasses
from typing import Any

from me_jax.config.checks import ascending, at_least, one_of
from me_jax.config.latent_search import LatentSearchConfig


@dataclasses.dataclass(kw_only=True)
class _TargetsConfig(LatentSearchConfig):
  """The search for targets z of a batch of facts.

  Attributes:
    search_batch_size: So many facts at most are searched at once, on each copy
      of the weights. Memory grows with it; numbers move by rounding only.
    context_template_length_params: Pairs (tokens, how many).
  """

  search_batch_size: int = 16
  context_template_length_params: tuple[tuple[int, int], ...] = ((10, 5),)

  def __post_init__(self):
    super().__post_init__()
    at_least('method.search_batch_size', self.search_batch_size, 1)


@dataclasses.dataclass(kw_only=True)
class MemitConfig(_TargetsConfig):
  """MEMIT's hyper-parameters; `memit_preset` gives published values.

  Attributes:
    name: Always 'memit'.
    layers: Layers whose `down_proj` is edited, from the lowest up; targets are
      searched after the last one.
    mom2_update_weight: λ, how much old keys weigh against new ones. Means a
      second moment that is a mean, not a sum, and belongs to the width of the
      model: `memit_update_weight`.
    cache_previous_keys: Keys of earlier batches are kept in place, too.
  """

  name: str = 'memit'
  layers: tuple[int, ...] = (4, 5, 6, 7, 8)
  mom2_update_weight: float = 15_000.0
  cache_previous_keys: bool = False

  def __post_init__(self):
    super().__post_init__()
    ascending('method.layers', self.layers)
    if not self.mom2_update_weight > 0:
      raise ValueError(
        'method.mom2_update_weight must be above 0, got '
        f'{self.mom2_update_weight}.'
      )


@dataclasses.dataclass(kw_only=True)
class EmmetConfig(_TargetsConfig):
  """EMMET's hyper-parameters; `emmet_preset` gives published values.

  Attributes:
    name: Always 'emmet'.
    layer: Layer whose `down_proj` is edited, zero-based.
    emmet_lambda: How far new keys may miss their values; at 0 none does, and
      no two keys of a batch may be alike. Means a second moment that is a mean:
      a file with `mom2_update_weight` 100000 and 0.1 is 10000 here.
    lambda_for_one: Whether that holds for an edit of one fact, too, which else
      gets its value exactly.
  """

  name: str = 'emmet'
  layer: int = 5
  emmet_lambda: float = 0.1
  lambda_for_one: bool = True

  def __post_init__(self):
    super().__post_init__()
    at_least('method.emmet_lambda', self.emmet_lambda, 0)


def memit_update_weight(mlp_dim: int) -> float:
  """λ for a model with keys of width F, like 15000 for LLaMA-2-7B.

  A key k of ordinary text has q = kᵀ C⁻¹ k near F, and an edit delivers
  q / (λ + q) of what it is asked for: 15000 F / 11008 keeps that fraction.
  """
  return 15_000 * mlp_dim / 11_008


def memit_preset(preset: str, **changes: Any) -> MemitConfig:
  """MEMIT with published values.

  Args:
    preset: 'easyedit', whose files for LLaMA-2 hardly bound the search, or
      'authors', whose file for GPT-J keeps targets near where they start.
    **changes: Of other fields.

  Raises:
    ValueError: There is no such preset, or a value is out of range.
  """
  values = {
    'easyedit': {'clamp_norm_factor': 4.0, 'v_weight_decay': 1e-3},
    'authors': {'clamp_norm_factor': 0.75, 'v_weight_decay': 0.5},
  }
  one_of('preset', preset, tuple(values))
  return MemitConfig(**{**values[preset], **changes})


def emmet_preset(preset: str, **changes: Any) -> EmmetConfig:
  """EMMET with published values.

  Args:
    preset: 'easyedit', whose file for LLaMA-2-7B softens every edit, or
      'authors', who soften batches only, and hardly.
    **changes: Of other fields.

  Raises:
    ValueError: There is no such preset, or a value is out of range.
  """
  values = {
    'easyedit': {'emmet_lambda': 10_000.0, 'lambda_for_one': True},
    'authors': {'emmet_lambda': 0.1, 'lambda_for_one': False},
  }
  one_of('preset', preset, tuple(values))
  return EmmetConfig(**{**values[preset], **changes})
