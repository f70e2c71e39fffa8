"""Meshes of the eight simulated devices that conftest.py asks for."""

import jax
import pytest

from me_jax import sharding

needs_eight = pytest.mark.skipif(
  jax.device_count() != 8, reason='needs eight devices'
)


def mesh(text):
  """E.g. of '4x2'."""
  return sharding.make_mesh(*sharding.parse_mesh(text))
