"""The second moment of the MLP keys, C = mean k kᵀ, and its files.

C is uncentred, over tokens of ordinary text, by the unedited model (ROME,
Meng et al. 2022, section 3.1; MEMIT, Meng et al. 2023, equation 15). It says
in which directions keys lie, and so which directions an edit must spare.

Files, one directory per layer:
  DIRECTORY/layer_5/second_moment.safetensors   mean [F, F] float64, count
  DIRECTORY/layer_5/second_moment.json          fingerprint, for people too
  DIRECTORY/layer_5/factor.safetensors          see `second_moment_factor`
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from me_jax import files, processes
from me_jax.edits import tensor_file
from me_jax.models.language_model import LanguageModel

Fingerprint = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SecondMoment:
  """C of one layer.

  Attributes:
    layer: Whose MLP keys, from 0.
    mean: C, symmetric.
    count: Number of tokens that C is the mean of.
    fingerprint: What C was computed from, see `fingerprint`.
  """

  layer: int
  mean: Float64[np.ndarray, 'F F'] = dataclasses.field(repr=False)
  count: int
  fingerprint: Mapping[str, Any]

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of `mean`."""
    return tensor_file.digest({'mean': self.mean})


def fingerprint(
  model: LanguageModel, layer: int, spec: Mapping[str, Any]
) -> Fingerprint:
  """Everything that decides C, as it is stored beside it.

  Args:
    model: The unedited model.
    layer: From 0.
    spec: The text: `CorpusSample.spec`, or those of its fields that are known
      before the text is drawn (`corpus.known_spec`).
  """
  return {
    'weights': model.fingerprint,
    'mlp_dim': model.config.mlp_dim,
    'layer': layer,
    'dtype': model.config.dtype,
    **spec,
  }


def differences(
  found: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[str]:
  """One line for each expected field that `found` lacks or has otherwise."""
  lines = []
  for name, value in expected.items():
    if name not in found:
      lines.append(f'{name}: expected {value!r}, not recorded')
    elif found[name] != value:
      lines.append(f'{name}: expected {value!r}, found {found[name]!r}')
  return lines


def layer_directory(directory: files.PathLike, layer: int) -> pathlib.Path:
  """Where the files of a layer are."""
  return pathlib.Path(directory) / f'layer_{layer}'


def stored(directory: files.PathLike, layers: Sequence[int]) -> list[int]:
  """Those of `layers` of which there is a C, of whatever fingerprint; the same
  for all processes.

  Raises:
    FileNotFoundError: Some have it and some do not.
  """
  return [
    layer
    for layer in layers
    if processes.all_see(_record_path(directory, layer))
  ]


def save(directory: files.PathLike, moment: SecondMoment) -> None:
  """Writes the files of `moment.layer`.

  Raises:
    OSError: The disk is full or not writable.
  """
  tensor_file.write(
    _tensor_path(directory, moment.layer),
    {'mean': moment.mean, 'count': np.asarray(moment.count, np.int64)},
    {},
  )
  # Written last: a layer without its record counts as not collected.
  record = {
    'fingerprint': dict(moment.fingerprint),
    'count': moment.count,
    'sha256': moment.digest,
  }
  files.write_atomic(
    _record_path(directory, moment.layer),
    json.dumps(record, indent=2, ensure_ascii=False) + '\n',
  )


def load(
  directory: files.PathLike, layer: int, expected: Mapping[str, Any]
) -> SecondMoment:
  """The stored C of a layer, if it is the expected one.

  Args:
    directory: Holds one directory per layer.
    layer: From 0.
    expected: As from `fingerprint`. Only the fields in it are compared: who
      has not drawn the text does not know its hash.

  Raises:
    FileNotFoundError: It was not collected.
    ValueError: It has another fingerprint (names each field that differs, with
      both values), or a file is damaged.
  """
  path = _record_path(directory, layer)
  if not path.is_file():
    raise FileNotFoundError(
      f'No second moment of layer {layer} in {directory}: {path} is missing. '
      'Collect it with python -m launch.second_moment.'
    )
  advice = (
    f'Delete {path.parent} and collect it again with '
    'python -m launch.second_moment.'
  )
  try:
    record = json.loads(path.read_text())
    found, count, sha256 = (
      record['fingerprint'],
      record['count'],
      record['sha256'],
    )
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f'{path} is damaged ({e!r}). {advice}') from e
  lines = differences(found, expected)
  if lines:
    raise ValueError(
      f'The second moment in {path.parent} is not the one asked for: '
      + '; '.join(lines)
      + '. Use another directory, or delete this one to collect it again.'
    )
  try:
    tensors, _ = tensor_file.read(_tensor_path(directory, layer))
  except (ValueError, FileNotFoundError) as e:
    raise ValueError(f'{e} {advice}') from e
  mean, shape = tensors.get('mean'), (found.get('mlp_dim'),) * 2
  if mean is None or mean.shape != shape or mean.dtype != np.float64:
    raise ValueError(
      f'{path.parent}: expected a float64 matrix of shape {shape}, found '
      f'{"none" if mean is None else f"{mean.dtype} {mean.shape}"}. {advice}'
    )
  moment = SecondMoment(layer=layer, mean=mean, count=count, fingerprint=found)
  if moment.digest != sha256 or tensors.get('count') != count:
    raise ValueError(
      f'{path.parent}: second_moment.json and second_moment.safetensors are '
      f'not of the same collection. {advice}'
    )
  return moment


def _tensor_path(directory: files.PathLike, layer: int) -> pathlib.Path:
  return layer_directory(directory, layer) / 'second_moment.safetensors'


def _record_path(directory: files.PathLike, layer: int) -> pathlib.Path:
  return layer_directory(directory, layer) / 'second_moment.json'
