"""Checks of settings; errors name the setting."""

import dataclasses
from typing import Any


def checked(config: Any) -> Any:
  """An equal config whose values were checked as those of a new one are.

  Overrides set fields one by one, after the checks of the constructor.

  Raises:
    ValueError: A value is out of range.
  """
  return dataclasses.replace(
    config,
    **{
      field.name: checked(value)
      for field in dataclasses.fields(config)
      if dataclasses.is_dataclass(value := getattr(config, field.name))
    },
  )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError if the value is not among those allowed."""
  if value not in allowed:
    raise ValueError(
      f'{name} must be one of {", ".join(allowed)}, got {value!r}.'
    )


def at_least(name: str, value: int | float, smallest: int) -> None:
  """Raises ValueError if the value is smaller."""
  if value < smallest:
    raise ValueError(f'{name} must be at least {smallest}, got {value}.')


def ascending(name: str, layers: tuple[int, ...]) -> None:
  """Raises ValueError for no layer, or layers that do not ascend."""
  layers = tuple(layers)
  if not layers or list(layers) != sorted(set(layers)):
    raise ValueError(
      f'{name} must be one layer or more, each once, from the lowest up, got '
      f'{layers}.'
    )
