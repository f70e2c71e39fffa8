"""Memory editing of language models in JAX, and what it does to them.

    model = me_jax.load_model('smollm2_135m')
    editor = me_jax.rome(me_jax.RomeConfig(...), ...)
    edit, _, info = editor.edit(model.params, None, [request])
    params = me_jax.apply_edit(model.params, edit)

Parameters are plain trees of arrays, edits are small values, and nothing is
changed in place.
"""

from me_jax.config import (
  EmmetConfig,
  FineTuneConfig,
  GraceConfig,
  MemitConfig,
  MendConfig,
  RomeConfig,
)
from me_jax.data.request import EditRequest, LocalityPrompt
from me_jax.edits.edit import (
  Dense,
  Edit,
  LowRank,
  apply_edit,
  compose,
  load_edit,
  save_edit,
)
from me_jax.edits.editor import Editor
from me_jax.edits.fine_tune import fine_tune
from me_jax.edits.grace import grace
from me_jax.edits.memit import emmet, memit
from me_jax.edits.mend import mend
from me_jax.edits.rome import rome
from me_jax.edits.templates import draw_templates
from me_jax.generation import LlamaPredictor
from me_jax.models.load import LanguageModel, load_model
from me_jax.typing import GenerateRequest, ModelState, ScoreRequest

__all__ = [
  'Dense',
  'Edit',
  'EditRequest',
  'Editor',
  'EmmetConfig',
  'FineTuneConfig',
  'GenerateRequest',
  'GraceConfig',
  'LanguageModel',
  'LlamaPredictor',
  'LocalityPrompt',
  'LowRank',
  'MemitConfig',
  'MendConfig',
  'ModelState',
  'RomeConfig',
  'ScoreRequest',
  'apply_edit',
  'compose',
  'draw_templates',
  'emmet',
  'fine_tune',
  'grace',
  'load_edit',
  'load_model',
  'memit',
  'mend',
  'rome',
  'save_edit',
]
