"""An edit is a value: a change of kernels by parameter path.

`kernel += left @ right` for methods whose change is of low rank, which makes it
small, `kernel += delta` for others. Models are only ever rebuilt forward, by
applying edits to the base weights one after another: subtracting an edit does
not give the old bits back, applying the others again does.
"""

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

from me_jax import files, sharding, trees
from me_jax.typing import ParamPath, Params


class LowRank(NamedTuple):
  """The change `left @ right` of a kernel [in, out], float32."""

  left: Float[Array, 'in R']
  right: Float[Array, 'R out']

  @property
  def rank(self) -> int:
    """R."""
    return self.left.shape[1]


class Dense(NamedTuple):
  """The change of a kernel [in, out] as it stands, float32."""

  delta: Float[Array, 'in out']


Change = LowRank | Dense
Edit = dict[ParamPath, Change]

KINDS = (LowRank, Dense)

# Of one edit against its kernel; a larger one is warned of.
LARGEST_RELATIVE_NORM = 0.05

_FORMAT = 'me_jax.edit.v1'


def kernel_path(layer: int) -> ParamPath:
  """The `down_proj` of a layer, which most methods edit."""
  return f'layers/{layer}/mlp/down_proj/kernel'


def apply_edit(params: Params, edit: Edit) -> Params:
  """`params` with the edited kernels replaced; all other leaves are shared.

  On a mesh edited kernels are cut as they were, but for inside a compiled
  function, where the compiler says how.

  Raises:
    KeyError: The edit names a parameter that the model does not have.
    ValueError: Its arrays do not fit that kernel, are not float32, or the
      kernel is not float32 (a sum of many edits in half precision is not the
      edited model).
  """
  for path, change in edit.items():
    kernel = trees.get(params, path)
    _check_fits(path, kernel, change)
    change = _beside(kernel, change)
    edited = sharding.with_sharding_of(kernel, _add(kernel, change))
    params = trees.set_leaf(params, path, edited)
  return params


def smallest(change: LowRank) -> Change:
  """The change in the form that has fewer numbers.

  Factors of [in, R] and [R, out] have more than the matrix from a rank of
  in * out / (in + out) on, 2985 for `down_proj` of LLaMA-2-7B.
  """
  size = change.left.shape[0] * change.right.shape[1]
  if sum(factor.size for factor in change) <= size:
    return change
  return Dense(_product(change))


def compose(first: Edit, second: Edit) -> Edit:
  """The one edit that changes what both change; ranks add up.

  Equal to applying both up to rounding, not to the bit.
  """
  joined = dict(first)
  for path, change in second.items():
    joined[path] = _sum(first[path], change) if path in first else change
  return joined


def change_of(arrays: Mapping[str, jax.Array]) -> Change:
  """The change that consists of these arrays.

  Raises:
    ValueError: No kind of change has just these names.
  """
  for kind in KINDS:
    if set(arrays) == set(kind._fields):
      return kind(**arrays)
  kinds = ' or '.join(' and '.join(kind._fields) for kind in KINDS)
  raise ValueError(
    f'A change consists of {kinds}, got {", ".join(sorted(arrays))}.'
  )


@jax.jit
def frobenius_norm(change: Change) -> Float[Array, '']:
  """`‖change‖_F`. Of factors only R x R products are formed."""
  if isinstance(change, Dense):
    return jnp.linalg.norm(change.delta)
  with jax.default_matmul_precision('highest'):
    gram = (change.left.T @ change.left) * (change.right @ change.right.T)
  return jnp.sqrt(jnp.maximum(gram.sum(), 0.0))


def digest(edit: Edit) -> str:
  """SHA-256 over paths, shapes and bytes."""
  sha = hashlib.sha256()
  for path in sorted(edit):
    for array in edit[path]:
      array = np.ascontiguousarray(trees.to_host(array))
      sha.update(f'{path}:{array.shape}:{array.dtype}:'.encode())
      sha.update(array.tobytes())
  return sha.hexdigest()


def check_finite(edit: Edit) -> None:
  """Raises FloatingPointError if an edit holds NaN or infinity."""
  for path, change in edit.items():
    for name, array in change._asdict().items():
      bad = int((~jnp.isfinite(array)).sum())
      if bad:
        raise FloatingPointError(
          f'The edit of {path} has {bad} of {array.size} non-finite entries '
          f'in {name}; it was not saved. The model has probably collapsed: '
          'look at the losses of the last edits.'
        )


def save_edit(
  path: files.PathLike, edit: Edit, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one safetensors file: `{path}/left` and so on."""
  tensors = {
    f'{path}/{name}': np.ascontiguousarray(jax.device_get(array))
    for path, change in edit.items()
    for name, array in change._asdict().items()
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
  changes = {}
  for name, array in tensors.items():
    kernel, _, part = name.rpartition('/')
    changes.setdefault(kernel, {})[part] = jnp.asarray(array)
  kinds = [set(kind._fields) for kind in KINDS]
  if form != _FORMAT or any(set(a) not in kinds for a in changes.values()):
    raise ValueError(
      f'{path} is not an edit: format {form!r}, tensors '
      f'{", ".join(sorted(tensors)[:4]) or "none"}. Expected the format '
      f'{_FORMAT} and tensors <path>/left, <path>/right or <path>/delta.'
    )
  return {kernel: change_of(changes[kernel]) for kernel in sorted(changes)}


def _beside(kernel: jax.Array, change: Change) -> Change:
  """The change where the kernel lies: one that was read from a file lies on one
  device."""
  if isinstance(change, Dense):
    return Dense(sharding.with_sharding_of(kernel, change.delta))
  return sharding.replicate(change, sharding.mesh_of(kernel))


@jax.jit
def _add(kernel: jax.Array, change: Change) -> jax.Array:
  return kernel + _matrix(change)


@jax.jit
def _product(change: LowRank) -> jax.Array:
  return _matrix(change)


def _matrix(change: Change) -> jax.Array:
  if isinstance(change, Dense):
    return change.delta
  with jax.default_matmul_precision('highest'):
    return change.left @ change.right


def _sum(a: Change, b: Change) -> Change:
  if isinstance(a, LowRank) and isinstance(b, LowRank):
    return LowRank(
      jnp.concatenate([a.left, b.left], axis=1),
      jnp.concatenate([a.right, b.right], axis=0),
    )
  return Dense(_matrix(a) + _matrix(b))


def _check_fits(path: ParamPath, kernel: jax.Array, change: Change) -> None:
  shape = (*change[0].shape[:1], *change[-1].shape[1:])
  joins = isinstance(change, Dense) or (
    change.left.shape[1:] == change.right.shape[:1]
  )
  if kernel.shape != shape or not joins:
    raise ValueError(
      f'{path}: the kernel has shape {kernel.shape}, the edit '
      f'{" x ".join(str(a.shape) for a in change)}. Was the edit made for '
      'another model?'
    )
  dtypes = {str(a.dtype) for a in (kernel, *change)}
  if dtypes != {'float32'}:
    raise ValueError(
      f'{path}: kernel and change must be float32, got {sorted(dtypes)}. '
      'precision.in_dtype keeps kernels float32 that are named to it.'
    )
