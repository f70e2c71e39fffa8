"""An edit is a small value: low-rank factors by parameter path.

`kernel += left @ right`. Models are only ever rebuilt forward, by applying
edits to the base weights one after another: subtracting an edit does not give
the old bits back, applying the others again does.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float

from me_jax import files, trees
from me_jax.typing import ParamPath, Params


class LowRank(NamedTuple):
  """The change `left @ right` of a kernel [in, out], float32."""

  left: Float[Array, 'in R']
  right: Float[Array, 'R out']

  @property
  def rank(self) -> int:
    """R."""
    return self.left.shape[1]


Edit = dict[ParamPath, LowRank]

_FORMAT = 'me_jax.edit.v1'


def apply_edit(params: Params, edit: Edit) -> Params:
  """`params` with the edited kernels replaced; all other leaves are shared.

  Raises:
    KeyError: The edit names a parameter that the model does not have.
    ValueError: Its factors do not fit that kernel, are not float32, or the
      kernel is not float32 (a sum of many edits in half precision is not the
      edited model).
  """
  for path, change in edit.items():
    kernel = trees.get(params, path)
    _check_fits(path, kernel, change)
    params = trees.set_leaf(params, path, _add(kernel, change))
  return params


def compose(first: Edit, second: Edit) -> Edit:
  """The one edit that changes what both change; ranks add up.

  Equal to applying both up to rounding, not to the bit.
  """
  joined = dict(first)
  for path, b in second.items():
    a = first.get(path)
    joined[path] = (
      b
      if a is None
      else LowRank(
        jnp.concatenate([a.left, b.left], axis=1),
        jnp.concatenate([a.right, b.right], axis=0),
      )
    )
  return joined


@jax.jit
def frobenius_norm(change: LowRank) -> Float[Array, '']:
  """`‖left @ right‖_F` from the factors: only R x R products are formed."""
  with jax.default_matmul_precision('highest'):
    gram = (change.left.T @ change.left) * (change.right @ change.right.T)
  return jnp.sqrt(jnp.maximum(gram.sum(), 0.0))


def digest(edit: Edit) -> str:
  """SHA-256 over paths, shapes and bytes."""
  sha = hashlib.sha256()
  for path in sorted(edit):
    for factor in edit[path]:
      array = np.ascontiguousarray(jax.device_get(factor))
      sha.update(f'{path}:{array.shape}:{array.dtype}:'.encode())
      sha.update(array.tobytes())
  return sha.hexdigest()


def check_finite(edit: Edit) -> None:
  """Raises FloatingPointError if a factor holds NaN or infinity."""
  for path, change in edit.items():
    for name, factor in zip(change._fields, change, strict=True):
      bad = int((~jnp.isfinite(factor)).sum())
      if bad:
        raise FloatingPointError(
          f'The edit of {path} has {bad} of {factor.size} non-finite entries '
          f'in {name}; it was not saved. The model has probably collapsed: '
          'look at the losses of the last edits.'
        )


def save_edit(
  path: files.PathLike, edit: Edit, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one safetensors file: `{path}/left`, `{path}/right`."""
  tensors = {
    f'{name}/{factor}': np.ascontiguousarray(jax.device_get(array))
    for name, change in edit.items()
    for factor, array in change._asdict().items()
  }
  content = {'format': _FORMAT, **(metadata or {})}
  files.write_atomic(path, safetensors.numpy.save(tensors, metadata=content))


def load_edit(path: files.PathLike) -> Edit:
  """The edit that `save_edit` wrote.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged, or not an edit.
  """
  data = pathlib.Path(path).read_bytes()
  try:
    tensors = safetensors.numpy.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
  except (safetensors.SafetensorError, ValueError) as e:
    raise ValueError(
      f'{path} is damaged ({e}). Copy it again, or make the edit again.'
    ) from e
  form = header.get('__metadata__', {}).get('format')
  kernels = sorted({name.rpartition('/')[0] for name in tensors})
  factors = {f'{k}/{f}' for k in kernels for f in LowRank._fields}
  if form != _FORMAT or set(tensors) != factors:
    raise ValueError(
      f'{path} is not an edit: format {form!r}, tensors '
      f'{", ".join(sorted(tensors)[:4]) or "none"}. Expected the format '
      f'{_FORMAT} and tensors <path>/left, <path>/right.'
    )
  return {
    k: LowRank(*(jnp.asarray(tensors[f'{k}/{f}']) for f in LowRank._fields))
    for k in kernels
  }


@functools.partial(jax.jit)
def _add(kernel: jax.Array, change: LowRank) -> jax.Array:
  with jax.default_matmul_precision('highest'):
    return kernel + change.left @ change.right


def _check_fits(path: ParamPath, kernel: jax.Array, change: LowRank) -> None:
  left, right = change
  shape = (*left.shape[:1], *right.shape[1:])
  if kernel.shape != shape or left.shape[1:] != right.shape[:1]:
    raise ValueError(
      f'{path}: the kernel has shape {kernel.shape}, the edit '
      f'{left.shape} x {right.shape}. Was the edit made for another model?'
    )
  dtypes = {str(a.dtype) for a in (kernel, left, right)}
  if dtypes != {'float32'}:
    raise ValueError(
      f'{path}: kernel and factors must be float32, got {sorted(dtypes)}. '
      'Load the model with float32 parameters.'
    )
