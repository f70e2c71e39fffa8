"""The editing methods by name, and what each needs before it can start."""

from collections.abc import Mapping, Sequence
from typing import Any

from me_jax.config import RomeConfig
from me_jax.edits.editor import Editor
from me_jax.edits.rome import rome
from me_jax.edits.second_moment_factor import Factor
from me_jax.models.language_model import LanguageModel


def second_moment_layers(method: Any) -> tuple[int, ...]:
  """Layers whose second moment the method wants."""
  _check(method)
  return (method.layer,) if method.mom2_adjustment else ()


def first_edited_layer(method: Any) -> int:
  """No parameter below this layer is ever changed by the method."""
  _check(method)
  return method.layer


def make_editor(
  method: Any,
  model: LanguageModel,
  *,
  templates: Sequence[str],
  factors: Mapping[int, Factor],
) -> Editor:
  """The editor of `method`, a config of `me_jax.config`.

  Args:
    method: Hyper-parameters.
    model: The unedited model.
    templates: Context templates, the bare one first.
    factors: Of the second moment, for `second_moment_layers(method)`.

  Raises:
    ValueError: The method is unknown or cannot be applied to the model.
  """
  _check(method)
  return rome(
    method,
    model.config,
    model.tokenizer,
    templates=templates,
    factor=factors.get(method.layer),
  )


def _check(method: Any) -> None:
  if not isinstance(method, RomeConfig):
    raise ValueError(
      f'Unknown editing method {type(method).__name__}; there is RomeConfig.'
    )
