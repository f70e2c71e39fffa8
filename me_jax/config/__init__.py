"""What a run does, as plain dataclasses: every setting that can move a number.

`experiments/*.py` fill them in, `--config.NAME=VALUE` overrides them, and a
workdir keeps them. A method's settings are in the file of its name.
"""

from me_jax.config.adjusted_perplexity import AdjustedPerplexityConfig
from me_jax.config.argument import parse_arg
from me_jax.config.checks import checked
from me_jax.config.fine_tune import FineTuneConfig, fine_tune_preset
from me_jax.config.grace import GraceConfig
from me_jax.config.memit import (
  EmmetConfig,
  MemitConfig,
  emmet_preset,
  memit_preset,
  memit_update_weight,
)
from me_jax.config.mend import MendConfig, MendTrainingConfig, mend_preset
from me_jax.config.model import ModelSource
from me_jax.config.rome import RomeConfig
from me_jax.config.run import (
  EvalConfig,
  FactsConfig,
  RunConfig,
  SecondMomentConfig,
)
from me_jax.config.saliency import SaliencyConfig
from me_jax.config.sweep import Cell

__all__ = [
  'AdjustedPerplexityConfig',
  'Cell',
  'EmmetConfig',
  'EvalConfig',
  'FactsConfig',
  'FineTuneConfig',
  'GraceConfig',
  'MemitConfig',
  'MendConfig',
  'MendTrainingConfig',
  'ModelSource',
  'RomeConfig',
  'RunConfig',
  'SaliencyConfig',
  'SecondMomentConfig',
  'checked',
  'emmet_preset',
  'fine_tune_preset',
  'memit_preset',
  'memit_update_weight',
  'mend_preset',
  'parse_arg',
]
