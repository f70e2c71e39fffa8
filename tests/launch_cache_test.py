"""Where compiled programs are kept."""

import jax
import pytest

from launch import cache


@pytest.fixture(autouse=True)
def jax_settings():
  """JAX as it was."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.parametrize('is_flag', [True, False])
def test_programs_go_where_the_flag_or_the_environment_says(
  is_flag, tmp_path, monkeypatch
):
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv(
    'ME_JAX_CACHE', str(tmp_path / 'other' if is_flag else tmp_path)
  )
  assert cache.open_cache(str(tmp_path) if is_flag else None) == tmp_path
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'xla')


def test_a_place_that_jax_was_told_stays(tmp_path):
  jax.config.update('jax_compilation_cache_dir', 'gs://bucket/programs')
  assert cache.open_cache(str(tmp_path)) == tmp_path
  assert jax.config.jax_compilation_cache_dir == 'gs://bucket/programs'
