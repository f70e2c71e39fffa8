"""A model with its editor's interventions in place."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import EditorInterventions, Fed, ModelState


class Forward(NamedTuple):
  """From a model state and a residual stream to the output of layers.

  Attributes:
    config: The model's shape.
    editor_interventions: From the editor's state to functions at sites.
    start: The first layer to run.
    stop: The layer to stop before; None for all.
  """

  config: ModelConfig
  editor_interventions: Callable[[Any], EditorInterventions] | None
  start: int = 0
  stop: int | None = None

  def embed(self, state: ModelState, ids: jax.Array) -> jax.Array:
    """The residual stream [B, T, D] that enters layer 0."""
    return llama.embed(self.config, state.params, ids)

  def __call__(
    self,
    state: ModelState,
    x: jax.Array,
    *,
    kinds: jax.Array | int,
    positions: jax.Array,
    **kwargs,
  ) -> llama.LayersOutput:
    """`llama.run_layers` from `start` to `stop`.

    Args:
      state: The model.
      x: What enters, [B, T, D].
      kinds: What the tokens are, see `typing.Fed`; to be broadcast to [B, T].
      positions: The place of each in its text, to be broadcast to [B, T].
      **kwargs: Further arguments of `run_layers`.
    """
    functions = {}
    if self.editor_interventions:
      shape = x.shape[:2]
      fed = Fed(
        jnp.broadcast_to(jnp.asarray(kinds, jnp.int32), shape),
        jnp.broadcast_to(positions, shape),
      )
      functions = {
        site: functools.partial(_told, fn, fed)
        for site, fn in self.editor_interventions(state.editor).items()
      }
    return llama.run_layers(
      self.config,
      state.params,
      x,
      positions=positions,
      start=self.start,
      stop=self.stop,
      interventions=functions,
      **kwargs,
    )


def _told(fn, fed: Fed, output: jax.Array, site_input: jax.Array) -> jax.Array:
  return fn(output, site_input, fed)
