"""The editing methods by name, and what each needs before it can start."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from me_jax.config import (
  EmmetConfig,
  FineTuneConfig,
  GraceConfig,
  MemitConfig,
  MendConfig,
  RomeConfig,
)
from me_jax.edits import mend_factors, mend_file
from me_jax.edits.edit import kernel_path
from me_jax.edits.editor import Editor
from me_jax.edits.fine_tune import fine_tune
from me_jax.edits.grace import grace
from me_jax.edits.memit import emmet, memit
from me_jax.edits.mend import mend
from me_jax.edits.rome import rome
from me_jax.edits.second_moment_factor import Factor
from me_jax.models.language_model import LanguageModel
from me_jax.typing import ParamPath


class _Method(NamedTuple):
  """What the registry knows of the methods with one class of config.

  Attributes:
    names: What such a config may be called.
    edited_paths: Parameters that the method may change.
    second_moment_layers: Layers whose second moment the method wants.
    first_edited_layer: No parameter below it is ever changed.
    make: The editor, of (config, model, templates, factors).
  """

  names: tuple[str, ...]
  edited_paths: Callable[[Any], tuple[ParamPath, ...]]
  second_moment_layers: Callable[[Any], tuple[int, ...]]
  first_edited_layer: Callable[[Any], int]
  make: Callable[
    [Any, LanguageModel, Sequence[str], Mapping[int, Factor]], Editor
  ]


def stored_config(method: Mapping[str, Any]) -> Any:
  """The config that was stored as `method`.

  Raises:
    ValueError: There is no method of that name.
  """
  for kind, known in _METHODS.items():
    if method.get('name') in known.names:
      return kind(**{name: _tuples(value) for name, value in method.items()})
  names = [name for known in _METHODS.values() for name in known.names]
  raise ValueError(
    f'Unknown editing method {method.get("name")!r}; there are '
    f'{", ".join(sorted(names))}.'
  )


def edited_paths(method: Any) -> tuple[ParamPath, ...]:
  """The parameters that the method may change."""
  return _of(method).edited_paths(method)


def second_moment_layers(method: Any) -> tuple[int, ...]:
  """Layers whose second moment the method wants."""
  return _of(method).second_moment_layers(method)


def first_edited_layer(method: Any) -> int:
  """No parameter below this layer is ever changed by the method."""
  return _of(method).first_edited_layer(method)


def trained(method: Any) -> dict[str, str]:
  """Hashes of the files that the method was given, by the setting's name; none
  for a method that is not trained.

  Raises:
    FileNotFoundError: There is no such file, or none was given.
    ValueError: It is damaged.
  """
  if not isinstance(method, MendConfig):
    return {}
  return {'network': mend_file.digest(method.network)}


def uses_templates(method: Any) -> bool:
  """Whether context templates are among the method's settings."""
  return hasattr(method, 'context_templates')


def acts_in_forward(method: Mapping[str, Any]) -> bool:
  """Whether a method, by its stored config, leaves the weights alone."""
  return method.get('name') == 'grace'


def acting_editor(
  method: Mapping[str, Any], model: LanguageModel
) -> Editor | None:
  """The editor of a stored config that acts in the forward pass; None for a
  method whose edits are all in the weights."""
  if not acts_in_forward(method):
    return None
  return make_editor(stored_config(method), model, templates=(), factors={})


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
  return _of(method).make(method, model, templates, factors)


def _rome(method, model, templates, factors) -> Editor:
  return rome(
    method,
    model.config,
    model.tokenizer,
    templates=templates,
    factor=factors.get(method.layer),
  )


def _grace(method, model, templates, factors) -> Editor:
  del templates, factors
  return grace(method, model.config, model.tokenizer)


def _fine_tune(method, model, templates, factors) -> Editor:
  del templates, factors
  return fine_tune(method, model.config, model.tokenizer, base=model.params)


def _mend(method, model, templates, factors) -> Editor:
  del templates, factors
  trained = mend_file.load(
    method.network, method, model.config, model.fingerprint
  )
  return mend(method, model.config, model.tokenizer, trained=trained)


def _batched(editor, method, model, templates, factors) -> Editor:
  """Of `memit` or `emmet`."""
  return editor(
    method,
    model.config,
    model.tokenizer,
    templates=templates,
    factors=factors,
  )


_METHODS: dict[type, _Method] = {
  EmmetConfig: _Method(
    ('emmet',),
    lambda m: (kernel_path(m.layer),),
    lambda m: (m.layer,),
    lambda m: m.layer,
    functools.partial(_batched, emmet),
  ),
  FineTuneConfig: _Method(
    ('ft_l', 'ft_l_constrained', 'ft_m'),
    lambda m: (kernel_path(m.layer),),
    lambda m: (),
    lambda m: m.layer,
    _fine_tune,
  ),
  GraceConfig: _Method(
    ('grace',), lambda m: (), lambda m: (), lambda m: m.layer, _grace
  ),
  MemitConfig: _Method(
    ('memit',),
    lambda m: tuple(map(kernel_path, m.layers)),
    lambda m: tuple(m.layers),
    lambda m: m.layers[0],
    functools.partial(_batched, memit),
  ),
  MendConfig: _Method(
    ('mend',),
    lambda m: mend_factors.edited_paths(m.layers),
    lambda m: (),
    lambda m: m.layers[0],
    _mend,
  ),
  RomeConfig: _Method(
    ('rome',),
    lambda m: (kernel_path(m.layer),),
    lambda m: (m.layer,) if m.mom2_adjustment else (),
    lambda m: m.layer,
    _rome,
  ),
}


def _tuples(value: Any) -> Any:
  """JSON has lists only."""
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _of(method: Any) -> _Method:
  if type(method) not in _METHODS:
    raise ValueError(
      f'Unknown editing method {type(method).__name__}; there are '
      f'{", ".join(sorted(c.__name__ for c in _METHODS))}.'
    )
  return _METHODS[type(method)]
