"""Meshes of the eight simulated devices that conftest.py asks for."""

import jax
import pytest

from me_jax import sharding

needs_eight = pytest.mark.skipif(
  jax.device_count() != 8, reason='needs eight devices'
)


# All shapes, of which the others repeat what the first shows.
MESHES = (
  '2x4',
  *[pytest.param(m, marks=pytest.mark.slow) for m in ('8x1', '4x2', '1x8')],
)


def mesh(text):
  """E.g. of '4x2'."""
  return sharding.make_mesh(*sharding.parse_mesh(text))
