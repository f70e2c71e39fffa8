"""A model with its editor's interventions in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import Interventions, ModelState


class Forward(NamedTuple):
  """From a model state and token ids to the output of all layers.

  Attributes:
    config: The model's shape.
    editor_interventions: From the editor's state to functions at sites.
  """

  config: ModelConfig
  editor_interventions: Callable[[Any], Interventions] | None

  def __call__(self, state: ModelState, ids, **kwargs) -> llama.LayersOutput:
    functions = (
      self.editor_interventions(state.editor)
      if self.editor_interventions
      else None
    )
    x = llama.embed(self.config, state.params, ids)
    return llama.run_layers(
      self.config, state.params, x, interventions=functions, **kwargs
    )
