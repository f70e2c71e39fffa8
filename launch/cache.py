"""The directory that programs share: compiled programs and second moments."""

import os
import pathlib

import jax


def open_cache(directory: str | None) -> pathlib.Path:
  """The directory, and compiled programs are kept there from now on, unless
  JAX was told another place for them (`$JAX_COMPILATION_CACHE_DIR`).

  Args:
    directory: What the flag says; else `$ME_JAX_CACHE`, else
      `~/.cache/me_jax`.
  """
  path = pathlib.Path(
    directory or os.environ.get('ME_JAX_CACHE') or '~/.cache/me_jax'
  ).expanduser()
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(path / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  return path
