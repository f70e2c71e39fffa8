"""Devices to compile for, whether they are there or not."""

import importlib.util
import math
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

LOCAL = 'local'


def devices(name: str) -> Sequence[jax.Device]:
  """The devices of a topology.

  Args:
    name: 'local' for those of this machine, else a slice of TPUs, e.g.
      'v5e:4x4' or 'v5p:2x2x4', of v4, v5e, v5p or v6e.

  Raises:
    ValueError: It is written in another way, there is no such slice, or the
      compiler for TPUs is not installed.
  """
  if name == LOCAL:
    return jax.devices()
  match = re.fullmatch(r'(v4|v5e|v5p|v6e):(\d+(?:x\d+){1,2})', name)
  if not match:
    raise ValueError(
      f'Expected local or a slice of TPUs as v5e:4x4, v6e:2x4, v5p:2x2x4 or '
      f'v4:2x2x4, got {name!r}.'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      "The compiler for TPUs is missing. Run: pip install -e '.[tpu]'. It "
      'needs no TPU.'
    )
  # Both cores of a v4 chip work as one device, as they do on a TPU VM.
  options = {'chip_config_name': 'megacore'} if match[1] == 'v4' else {}
  if math.prod(map(int, match[2].split('x'))) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError as e:
    raise ValueError(f'There is no slice {name}: {e}') from e
