"""The argument of an experiment."""


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
  """The settings in `arg`, 'name=value,name=value', over `defaults`.

  Raises:
    ValueError: A name is not one of `defaults`.
  """
  found = dict(defaults)
  for piece in filter(None, (arg or '').split(',')):
    name, equals, value = piece.partition('=')
    if not equals or name not in defaults:
      raise ValueError(
        f'Expected settings {", ".join(f"{n}=..." for n in defaults)} after '
        f'the colon of --config, got {piece!r}.'
      )
    found[name] = value
  return found
