"""A model with its editor's interventions in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import Interventions, ModelState


class Forward(NamedTuple):
  """From a model state and a residual stream to the output of layers.

  Attributes:
    config: The model's shape.
    editor_interventions: From the editor's state to functions at sites.
    start: The first layer to run.
    stop: The layer to stop before; None for all.
  """

  config: ModelConfig
  editor_interventions: Callable[[Any], Interventions] | None
  start: int = 0
  stop: int | None = None

  def embed(self, state: ModelState, ids: jax.Array) -> jax.Array:
    """The residual stream [B, T, D] that enters layer 0."""
    return llama.embed(self.config, state.params, ids)

  def __call__(
    self, state: ModelState, x: jax.Array, **kwargs
  ) -> llama.LayersOutput:
    """`llama.run_layers` from `start` to `stop`."""
    functions = (
      self.editor_interventions(state.editor)
      if self.editor_interventions
      else None
    )
    return llama.run_layers(
      self.config,
      state.params,
      x,
      start=self.start,
      stop=self.stop,
      interventions=functions,
      **kwargs,
    )
