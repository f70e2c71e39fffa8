"""C = G Gᵀ, factored once in float64; each edit is then two triangular solves.

With a condition number of 1e6 a float32 solve is off by 1 %, at 1e8 a float32
factor does not exist. So this runs in float64, on the host's processor:
accelerators may have no float64.
"""

import contextlib
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, Float64

from me_jax import files, processes
from me_jax.edits import tensor_file
from me_jax.edits.second_moment import SecondMoment, layer_directory

_TRACE_TOLERANCE = 1e-6
_POWER_STEPS = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
  """The lower Cholesky factor of C.

  Attributes:
    chol: G, zero above the diagonal.
  """

  chol: Float64[np.ndarray, 'F F'] = dataclasses.field(repr=False)

  def solve(self, k: Float[np.ndarray | jax.Array, ' F *R']) -> np.ndarray:
    """C⁻¹ k, float64, for one key [F] or for the columns of [F, R].

    Raises:
      ValueError: `k` has another F, or a NaN or infinity in it.
    """
    k = np.asarray(k, np.float64)
    if k.ndim not in (1, 2) or k.shape[0] != self.chol.shape[0]:
      raise ValueError(
        f'Expected a key of shape [{self.chol.shape[0]}] or keys of shape '
        f'[{self.chol.shape[0]}, R], got {list(k.shape)}: is this second '
        'moment of another model?'
      )
    if not np.isfinite(k).all():
      raise ValueError('The key holds a NaN or an infinity.')
    with _host_float64():
      columns = k if k.ndim == 2 else k[:, None]
      return np.array(_solve(self._on_host, columns)).reshape(k.shape)

  @functools.cached_property
  def _on_host(self) -> jax.Array:
    # Kept: at 7B a copy of G per solve would cost more than the solve.
    return jax.device_put(self.chol, _host())


def factor(moment: SecondMoment) -> Factor:
  """The factor of C, checked: tr(G⁻¹ C G⁻ᵀ) = F to 1e-6 relative.

  That trace is the mean of kᵀ C⁻¹ k over the tokens that C was computed from.

  Raises:
    ValueError: C is not positive definite; says how many tokens it has and
      how many it needs.
  """
  dim = moment.mean.shape[0]
  short = (
    f'The second moment of layer {moment.layer} is the mean over '
    f'{moment.count:,} tokens. It needs at least F = {dim:,} to be invertible '
    f'and about 10 F = {10 * dim:,} to be of use: collect it again from more '
    'text.'
  )
  if moment.count < dim:
    raise ValueError(short)
  with _host_float64():
    chol = _cholesky(moment.mean)
    if not jnp.isfinite(chol).all():
      raise ValueError(f'{short} It is not positive definite.')
    trace = float(_whitened_trace(chol, moment.mean))
    chol = np.asarray(chol)
  # Written so that a NaN fails.
  if not abs(trace / dim - 1) <= _TRACE_TOLERANCE:
    raise ValueError(
      f'{short} It is too close to singular: tr(G⁻¹ C G⁻ᵀ) is {trace!r}, '
      f'expected {dim}.'
    )
  return Factor(chol)


def load_factor(directory: files.PathLike, moment: SecondMoment) -> Factor:
  """The factor of `moment`, from the file beside C or else computed.

  The file carries the hash of the C it belongs to; a file of another C, or a
  damaged one, is computed again and replaced.

  Raises:
    ValueError: As `factor`.
    OSError: The disk is full or not writable.
  """
  path = layer_directory(directory, moment.layer) / 'factor.safetensors'
  if not processes.are_many():
    return _read_or_make(path, moment)
  # By the first, not by all at once: the others read it where they read C.
  made: list[Factor] = []
  processes.from_first(lambda: made.append(_read_or_make(path, moment)))
  return made[0] if made else _read_or_make(path, moment)


def _read_or_make(path: pathlib.Path, moment: SecondMoment) -> Factor:
  try:
    tensors, metadata = tensor_file.read(path)
  except (FileNotFoundError, ValueError):
    tensors, metadata = {}, {}
  if 'chol' in tensors and metadata.get('second_moment') == moment.digest:
    return Factor(tensors['chol'])
  result = factor(moment)
  tensor_file.write(
    path, {'chol': result.chol}, {'second_moment': moment.digest}
  )
  return result


def condition_number(moment: SecondMoment, chol: Factor) -> float:
  """Largest over smallest eigenvalue of C, estimated from below.

  Power iteration with C and with its factor; near the truth unless extreme
  eigenvalues lie close together.
  """
  largest = _power(lambda x: moment.mean @ x, moment.mean.shape[0])
  return largest * _power(chol.solve, moment.mean.shape[0])


def _power(multiply, dim: int) -> float:
  x = np.random.default_rng(0).standard_normal(dim)
  for _ in range(_POWER_STEPS):
    x = multiply(x / np.linalg.norm(x))
  return float(np.linalg.norm(x))


def _host() -> jax.Device:
  return jax.local_devices(backend='cpu')[0]


@contextlib.contextmanager
def _host_float64():
  with jax.enable_x64(True), jax.default_device(_host()):
    yield


@jax.jit
def _cholesky(c: jax.Array) -> jax.Array:
  return jnp.linalg.cholesky(c)


@jax.jit
def _solve(chol: jax.Array, k: jax.Array) -> jax.Array:
  half = solve_triangular(chol, k, lower=True)
  return solve_triangular(chol, half, lower=True, trans='T')


@jax.jit
def _whitened_trace(chol: jax.Array, c: jax.Array) -> jax.Array:
  half = solve_triangular(chol, c, lower=True)
  return jnp.trace(solve_triangular(chol, half.T, lower=True))
