"""What a model needs of hardware, before there is any.

    pip install -e '.[tpu]'        # the compiler for TPUs; needs no TPU
    JAX_PLATFORMS=cpu python -m launch.capacity --model=llama2_7b \\
      --topology=v5e:4x4
    python -m launch.capacity --model=tiny --topology=local

Compiles what runs compile, for each way to cut and copy the model over the
devices, and prints memory, FLOPs, bytes moved, what passes between devices and
the time of all that at best. No weights are made, and nothing is run: times are
bounds that the compiled program cannot beat, not forecasts.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import tqdm
from absl import app, flags

from launch import log
from me_jax import sharding
from me_jax.capacity import chips, estimate, functions, report, topology
from me_jax.capacity.setting import Setting
from me_jax.models.config import PRESETS
from me_jax.progress import duration
from me_jax.reporting import table_forms
from me_jax.typing import DTYPES

_MODEL = flags.DEFINE_enum(
  'model', 'llama2_7b', sorted(PRESETS), 'Whose shape is taken.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  'v5e:4x4',
  'A slice of TPUs by its chips, v4:2x2x4, v5e:4x4, v5p:2x2x4 or v6e:4x4, or '
  'local for the devices of this machine.',
)
_FUNCTIONS = flags.DEFINE_multi_enum(
  'function',
  list(functions.FUNCTIONS),
  list(functions.FUNCTIONS),
  'What is compiled; may be given several times.',
)
_MESHES = flags.DEFINE_list(
  'meshes',
  [],
  'DATAxMODEL, e.g. 4x4,2x8; all that the devices allow if empty. One whose '
  'weights alone do not fit is not compiled for.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  DTYPES,
  'Of weights and activations. Kernels that a method edits stay float32, for '
  'score and generate those of MEMIT, and second moments are of the float32 '
  'model.',
)
_EFFORT = flags.DEFINE_float(
  'effort',
  -1.0,
  "Of the compiler, from -1 to 0, JAX's own. The least takes less time, for "
  'score a tenth; temporaries and bytes moved are more than they need be.',
  lower_bound=-1.0,
  upper_bound=0.0,
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  log.show_warnings()
  try:
    _report_all()
  except ValueError as e:
    sys.exit(f'Error: {e}')


def _report_all() -> None:
  if _TOPOLOGY.value != topology.LOCAL:
    # No TPU is used: none is asked for over the network, and none is locked.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  devices = topology.devices(_TOPOLOGY.value)
  chip = chips.chip(devices[0])
  meshes = _MESHES.value or [
    f'{len(devices) // n}x{n}'
    for n in range(1, len(devices) + 1)
    if len(devices) % n == 0
  ]
  settings = {name: _setting(name, devices) for name in meshes}
  kind = chip.name if chip else devices[0].device_kind
  print(f'## {_MODEL.value}, {_DTYPE.value}, {len(devices)} x {kind}\n')
  if chip:
    print(f'{chip}\n')
  for function in _FUNCTIONS.value:
    # Each by itself: compiling takes long, and what is known is there.
    print(_report(function, settings, chip), flush=True)


def _report(
  function: str,
  settings: Mapping[str, Setting],
  chip: chips.Chip | None,
) -> str:
  found = {
    name: _estimate(at, function, name, chip) for name, at in settings.items()
  }
  tables = (
    report.main_table(function, found, chip),
    report.collectives_table(function, found),
  )
  lines = [
    *([report.best(function, found, chip)] if chip else []),
    *report.gathered(function, found),
  ]
  return '\n'.join((*map(table_forms.markdown, tables), *lines, ''))


def _setting(name: str, devices: Sequence[jax.Device]) -> Setting:
  config = PRESETS[_MODEL.value].config
  return Setting(
    _MODEL.value,
    dataclasses.replace(config, dtype=_DTYPE.value),
    sharding.make_mesh(*sharding.parse_mesh(name), devices=devices),
  )


def _estimate(
  at: Setting, function: str, mesh: str, chip: chips.Chip | None
) -> estimate.Estimate | str:
  """The estimate, or why there is none."""
  weights = functions.weight_bytes(at, function)
  if chip and weights > chip.hbm:
    return f'weights alone take {weights / 1e9:.1f} GB'
  start = time.monotonic()
  try:
    return estimate.estimate(at, function, _EFFORT.value)
  except estimate.TooLarge as e:
    return str(e)
  finally:
    took = duration(time.monotonic() - start)
    tqdm.tqdm.write(f'{function} on {mesh}: {took}', file=sys.stderr)


if __name__ == '__main__':
  app.run(main)
