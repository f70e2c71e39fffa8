"""What runs compile, for devices that are there and that are not."""

import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from eight_devices import mesh as _mesh
from eight_devices import needs_eight

from me_jax import config as config_lib
from me_jax import sharding, slabs, trees
from me_jax.capacity import chips, costs, estimate, functions, report, topology
from me_jax.capacity.setting import Setting, Sizes
from me_jax.models.config import PRESETS

_REPO = pathlib.Path(__file__).resolve().parent.parent
# Each kernel and table can be cut in two,
_CONFIG = dataclasses.replace(
  PRESETS['tiny'].config,
  num_layers=2,
  embed_dim=256,
  mlp_dim=768,
  num_heads=16,
  num_kv_heads=8,
  head_dim=16,
  vocab_size=1024,
)
_SMALLEST_KERNEL = 4 * 256 * 128
# and no activation is as large as a kernel.
_SMALL = Sizes(
  score_rows=2,
  score_tokens=16,
  score_prefix=64,
  decode_rows=2,
  decode_prompt=16,
  decode_answer=16,
  decode_prefix=64,
  rome_rows=3,
  rome_tokens=8,
  rome_tail=4,
  memit_requests=2,
  memit_rows=4,
  memit_room=8,
  memit_tail=4,
  text_rows=2,
  text_tokens=16,
  mend_tokens=8,
  mend_reads=8,
)


@pytest.fixture(scope='module')
def setting():
  return Setting('tiny', _CONFIG, _mesh('4x2'), _SMALL)


@pytest.fixture(scope='module')
def estimates(setting):
  return _estimates(setting, effort=0.0)


@pytest.fixture(scope='module')
def tpu_setting():
  mesh = sharding.make_mesh(2, 2, _tpus('v5e:2x2'))
  return Setting('tiny', _CONFIG, mesh, _SMALL)


@pytest.fixture(scope='module')
def tpu_estimates(tpu_setting):
  return _estimates(tpu_setting, effort=-1.0)


def _estimates(at, effort):
  """By function."""
  with pytest.MonkeyPatch.context() as patch:
    # One layer is like another, and three of them take a minute to compile.
    patch.setattr(
      config_lib,
      'mend_preset',
      functools.partial(config_lib.mend_preset, layers=(1,)),
    )
    return {
      name: estimate.estimate(at, name, effort) for name in functions.FUNCTIONS
    }


def _tpus(name):
  _skip_without_libtpu()
  with pytest.MonkeyPatch.context() as patch:
    # As `launch.capacity` has it.
    patch.setenv('TPU_SKIP_MDS_QUERY', '1')
    patch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    return topology.devices(name)


def _skip_without_libtpu():
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip("no compiler for TPUs: pip install -e '.[tpu]'")


@needs_eight
def test_no_function_gathers_a_whole_parameter(estimates):
  _check_that_none_is_gathered(estimates)


def test_nor_does_one_on_a_tpu(tpu_estimates):
  _check_that_none_is_gathered(tpu_estimates)


def _check_that_none_is_gathered(estimates):
  """Neither one by its shape nor anything as large as the smallest."""
  for name, one in estimates.items():
    assert any(c.kind == 'all-reduce' for c in one.costs.collectives), name
    assert not one.gathered, name
    gathered = [
      c.nbytes for c in one.costs.collectives if c.kind == 'all-gather'
    ]
    assert max(gathered, default=0) < _SMALLEST_KERNEL, name


@needs_eight
def test_a_parameter_that_is_gathered_is_named(setting):
  path = 'layers/1/mlp/up_proj/kernel'
  kernel = setting.params['layers']['1']['mlp']['up_proj']['kernel']
  whole = setting.whole(1).sharding
  program = jax.jit(lambda x: x, out_shardings=whole).lower(kernel).compile()
  found = estimate.gathered_parameters(setting, costs.costs(program.as_text()))
  # All of its shape: the text knows no names.
  assert path in found and 'layers/0/mlp/gate_proj/kernel' in found
  assert 'layers/1/mlp/up_proj/scale' not in found


@needs_eight
def test_copies_decode_without_waiting_for_one_another(setting, estimates):
  _check_that_copies_decode_alone(setting, estimates)


def test_so_they_do_on_a_tpu(tpu_setting, tpu_estimates):
  _check_that_copies_decode_alone(tpu_setting, tpu_estimates)


def _check_that_copies_decode_alone(at, estimates):
  found = estimates['generate'].costs.collectives
  assert {c.times for c in found if c.in_loop} == {_SMALL.decode_steps}
  assert not any(estimate.crosses_data(at.mesh, c) for c in found)


@needs_eight
def test_memory_and_flops(setting, estimates):
  """Weights are most of what is given, and each token meets each of them."""
  one = estimates['generate']
  given = functions.weight_bytes(setting, 'generate')
  assert given < one.arguments < 1.2 * given
  c = setting.config
  weights = c.num_layers * (
    c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    + 3 * c.embed_dim * c.mlp_dim
  )
  weights += c.embed_dim * c.vocab_size
  tokens = one.amount / setting.data
  least = 2 * weights * tokens / setting.mesh.shape['model']
  assert least <= one.costs.flops < 1.2 * least
  # All of them are read at each step.
  assert one.costs.nbytes > least / tokens * 2 * _SMALL.decode_steps
  assert one.amount == 4 * 2 * _SMALL.decode_steps


@needs_eight
def test_kernels_that_are_edited_stay_float32(setting, estimates):
  config = dataclasses.replace(setting.config, dtype='bfloat16')
  rounded = dataclasses.replace(setting, config=config)
  path = 'layers/0/mlp/down_proj/kernel'
  found = trees.flatten(rounded.run_params([path]))
  assert {p for p, leaf in found.items() if leaf.dtype == 'float32'} == {path}
  whole = estimates['generate'].arguments
  small = estimate.estimate(rounded, 'generate', effort=0.0).arguments
  assert whole / 2 < small < whole


@needs_eight
def test_weights_are_those_that_a_function_is_given(setting):
  config = dataclasses.replace(setting.config, dtype='bfloat16')
  rounded = dataclasses.replace(setting, config=config)
  exact = functions.weight_bytes(setting, 'score')
  assert functions.weight_bytes(rounded, 'second_moment') == exact
  # Half of a kernel cut in two, in four bytes instead of two.
  kernel = 256 * 768 // 2 * 4
  for name in ('score', 'generate', 'rome', 'memit'):
    assert functions.weight_bytes(rounded, name) == (exact + kernel) / 2


@needs_eight
def test_a_kernel_that_is_not_there_is_named(setting):
  with pytest.raises(ValueError, match='layers/3/mlp/up_proj.*has 2 layers'):
    functions.weight_bytes(setting, 'mend')


@needs_eight
def test_the_best_mesh(estimates):
  chip = chips.Chip('A chip', 10**9, 1e9, 1e9, 1e9)
  one = estimates['score']
  dearer = dataclasses.replace(one, amount=1)
  large = dataclasses.replace(one, temporaries=10**9)
  found = {'a': dearer, 'b': one, 'c': large}
  assert report.best('score', found, chip).startswith(
    'score: fits a, b; fastest on b'
  )
  reason = 'weights alone take 9.0 GB'
  assert report.best('rome', {'a': reason}, chip) == 'rome: fits none of a.'
  [line] = report.main_table('rome', {'a': reason}, chip).lines
  assert line.heads == ('a',) and line.cells[-1] == reason


def _start(*args, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'launch.capacity', '--model=tiny', *args],
    capture_output=True,
    text=True,
    cwd=_REPO,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
  )


def test_the_program_on_local_devices():
  done = _start(
    '--topology=local',
    '--function=generate',
    '--meshes=2x2,4x1',
    JAX_NUM_CPU_DEVICES='4',
    JAX_DISABLE_MOST_OPTIMIZATIONS='1',
  )
  assert done.returncode == 0, done.stderr
  assert '| 2x2 |' in done.stdout
  assert '| 2x2 | all-reduce | model | yes |' in done.stdout
  assert '| 4x1 | all' not in done.stdout


@pytest.mark.parametrize(
  'args, message',
  [
    (('--topology=v7:2x2',), 'Expected local or a slice of TPUs'),
    (('--topology=local', '--meshes=3x5'), 'does not fit'),
  ],
)
def test_mistakes_are_named(args, message):
  done = _start(*args)
  assert done.returncode == 1
  assert message in done.stderr and 'Traceback' not in done.stderr


def test_the_program_for_a_tpu():
  _skip_without_libtpu()
  done = _start('--topology=v5e:2x2', '--function=score', '--meshes=2x2')
  assert done.returncode == 0, done.stderr
  assert '4 x TPU v5e' in done.stdout
  assert 'score: fits 2x2; fastest on 2x2' in done.stdout


@pytest.mark.parametrize('name', ['v5p:4x4x4', 'v6e:4x4'])
def test_a_mesh_that_is_not_made_of_the_axes_of_a_torus(name):
  """Copies lie apart, and the parts of each side by side."""
  devices = _tpus(name)
  copies = sharding.make_mesh(len(devices) // 8, 8, devices).devices
  assert {d.id for d in copies.flat} == {d.id for d in devices}
  for parts in copies:
    coords = np.array([d.coords for d in parts])
    assert math.prod(np.ptp(coords, axis=0) + 1) == 8


def test_slabs_of_half_precision_compile_for_a_tpu():
  """Sums of integers of 16 bits."""
  mesh = sharding.make_mesh(2, 2, _tpus('v5e:2x2'))
  spec = jax.sharding.PartitionSpec('model')
  table = jax.ShapeDtypeStruct(
    (64, 128), 'bfloat16', sharding=jax.sharding.NamedSharding(mesh, spec)
  )
  where = jax.ShapeDtypeStruct((2,), 'int32')
  program = slabs._slab.lower(table, where, mesh=mesh, spec=spec, size=8)
  assert 'u16[8,128]' in program.compile().as_text()


def test_without_a_compiler_for_tpus(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
    topology.devices('v5e:4x4')
