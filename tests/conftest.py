"""Fixtures: real data and weights where they are at hand, else a skip."""

import json
import os
import pathlib

import jax
import pytest

# Meshes need devices; whatever else is tested is on the first of them.
jax.config.update('jax_num_cpu_devices', 8)

pytest_plugins = ['golden_fixtures']

_REPO = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope='module')
def few_programs():
  """Forgets compiled programs before there are too many of them.

  Each takes some memory maps. At the system's limit, 65,530 by default, which
  the whole suite in two processes would reach, the next one ends the process.
  """
  yield
  try:
    maps = pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')
    limit = int(pathlib.Path('/proc/sys/vm/max_map_count').read_text())
  except OSError:  # Not Linux.
    return
  if maps > limit // 2:
    jax.clear_caches()


@pytest.fixture
def usual_compilation():
  """XLA's usual optimisations, of which `make test` has fewer."""
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


def _place(variable: str, default: str) -> pathlib.Path:
  path = pathlib.Path(os.environ.get(variable) or _REPO / default)
  if not path.is_dir():
    pytest.skip(f'{path} not found; set ${variable}')
  return path


@pytest.fixture(scope='session')
def data_root() -> pathlib.Path:
  """The public data sets."""
  return _place('ME_JAX_DATA', '../shared/data')


@pytest.fixture(scope='session')
def spec_dir() -> pathlib.Path:
  """The protocol's test vectors."""
  return _place('ME_JAX_SPEC', '../shared/spec')


@pytest.fixture(scope='session')
def golden():
  """A function from a file name to the stored numbers in it."""
  import numpy as np

  root = _place('ME_JAX_GOLDEN', '../shared/golden')

  def read(name: str):
    if name.endswith('.npz'):
      return dict(np.load(root / name, allow_pickle=False))
    return json.loads((root / name).read_text())

  return read


@pytest.fixture(scope='session')
def smollm2():
  """SmolLM2-135M-Instruct, float32."""
  from me_jax.models import load

  try:
    return load.load_model('smollm2_135m')
  except FileNotFoundError as e:
    pytest.skip(f'no weights: {e}')


@pytest.fixture(scope='session')
def tiny():
  """Four random layers and a byte tokenizer."""
  from me_jax.models import load

  return load.load_model('tiny')
