"""The command line of a run; what is wrong with it is said in one line."""

import dataclasses
import difflib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from me_jax.config import checked


def parse(argv: Sequence[str]) -> list[str]:
  """The arguments that are no flags, for `app.run(flags_parser=parse)`.

  `--config` is checked with its overrides in place. Ends the process with exit
  code 1 and one line on stderr if anything is wrong.
  """
  try:
    rest = flags.FLAGS(argv)
    config = flags.FLAGS.config
    _split_names(config)
    checked(config)
    return rest
  except KeyError:
    sys.exit(f'Error: {_unknown_setting(argv)}')
  except (flags.Error, ValueError) as e:
    sys.exit(f'Error: {_cause(e)}')
  except (AttributeError, SyntaxError, ImportError) as e:
    sys.exit(
      f'Error: --config: {type(e).__name__}: {e}. Expected a Python file whose '
      'get_config(arg) returns a config of me_jax.config.'
    )
  except OSError:
    path = _config_argument(argv).partition(':')[0]
    sys.exit(f'Error: --config: cannot read {path!r}, is it a file?')


def _split_names(config: Any) -> None:
  """Makes several names of one: a tuple of texts takes a comma for part of a
  text."""
  for field in dataclasses.fields(config):
    if field.type == tuple[str, ...]:
      entries = getattr(config, field.name)
      names = [name for entry in entries for name in entry.split(',')]
      setattr(config, field.name, tuple(filter(None, names)))


def _cause(error: Exception) -> str:
  """What get_config itself said, without the trace around it."""
  inner = error
  while 'whilst parsing config file' in str(inner) and inner.__context__:
    inner = inner.__context__
  return str(inner)


def _unknown_setting(argv: Sequence[str]) -> str:
  parser = config_flags.ConfigFileFlagParser('config')
  known = list(_settings(parser.parse(_config_argument(argv))))
  for arg in argv:
    if arg.lstrip('-').startswith(('config.', 'noconfig.')):
      name = arg.partition('.')[2].partition('=')[0]
      if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
        return (
          f'--config has no setting {name!r}. Nearest: {", ".join(near)}. '
          'me_jax/config/ explains them all.'
        )
  return f'a setting among {list(argv)} does not exist.'


def _config_argument(argv: Sequence[str]) -> str:
  for arg, following in zip(argv, [*argv[1:], ''], strict=True):
    name, equals, value = arg.partition('=')
    if name in ('-config', '--config'):
      return value if equals else following
  return ''


def _settings(config: Any, prefix: str = '') -> Iterator[str]:
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from _settings(value, f'{prefix}{field.name}.')
    else:
      yield f'{prefix}{field.name}'
