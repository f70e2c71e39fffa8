"""With what a run was made."""

import importlib.metadata
import platform

import jax

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def notes() -> dict[str, str]:
  """Versions and device, worth knowing beside a run's numbers."""
  return {
    'device': jax.devices()[0].device_kind,
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }
