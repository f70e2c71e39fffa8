"""Arrays in one safetensors file that is whole, or refused."""

import hashlib
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from me_jax import files, processes

_DIGEST = 'sha256'


def digest(tensors: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over name, shape, dtype and bytes of each array, by name."""
  total = hashlib.sha256()
  for name, tensor in sorted(tensors.items()):
    array = np.ascontiguousarray(tensor)
    total.update(f'{name}:{array.shape}:{array.dtype}:'.encode())
    total.update(memoryview(array.reshape(-1)).cast('B'))
  return total.hexdigest()


def write(
  path: files.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Replaces the file `path` by `tensors`, or leaves it as it was.

  Unlike `files.write_atomic` it needs no second copy of the arrays in memory.

  Raises:
    OSError: The disk is full or not writable; the message says what to do.
  """
  if not processes.is_first():
    return
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      safetensors_numpy.save_file(
        arrays, partial, {**metadata, _DIGEST: digest(arrays)}
      )
    except safetensors.SafetensorError as e:
      # The library reports a full disk as an error of its own.
      raise OSError(str(e)) from e
    with open(partial, 'rb') as f:
      os.fsync(f.fileno())
    os.replace(partial, path)
  except OSError as e:
    partial.unlink(missing_ok=True)
    raise files.explained(e, path) from e


def read(
  path: files.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays and the metadata that `write` was given.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is cut short, changed, or was not written by `write`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}.')
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      metadata = dict(f.metadata() or {})
      tensors = {name: f.get_tensor(name) for name in f.keys()}
  except safetensors.SafetensorError as e:
    raise ValueError(
      f'{path} is damaged ({e}). Delete it to have it made again.'
    ) from e
  expected, found = metadata.pop(_DIGEST, None), digest(tensors)
  if expected != found:
    raise ValueError(
      f'{path} is damaged: its contents have SHA-256 {found}, its header says '
      f'{expected}. Delete it to have it made again.'
    )
  return tensors, metadata
