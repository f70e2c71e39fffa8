"""Resource limits of the calling process."""

import resource
import sys


def apply(wanted: dict[str, int]) -> None:
  """Lowers soft and hard limits to `wanted`, by the names of `resource`.

  A limit that is already lower stays. Raises OSError or ValueError where the
  platform refuses; whether it keeps what it accepts is for a probe to find out.
  """
  for name, value in wanted.items():
    kind = getattr(resource, name, None)
    if kind is None:  # Not every platform has each of them.
      continue
    if sys.platform == 'darwin' and name == 'RLIMIT_AS':
      continue  # Not kept there, and in some versions refused.
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
      value = min(value, hard)
    # The signal at the soft limit can be caught: the hard one follows.
    ceiling = value + 1 if name == 'RLIMIT_CPU' else value
    if hard != resource.RLIM_INFINITY:
      ceiling = min(ceiling, hard)
    resource.setrlimit(kind, (value, ceiling))
