"""Trained networks of MEND in one safetensors file."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import files, trees
from me_jax.config import MendConfig
from me_jax.edits import mend_network, tensor_file
from me_jax.edits.mend_network import NetworkParams, Statistics
from me_jax.models.config import ModelConfig

_FORMAT = 'me_jax.mend.v1'
# What an edit depends on, and the networks with it.
SHAPING = ('layers', 'rank', 'n_hidden', 'step_sign')


class Trained(NamedTuple):
  """Networks ready for use.

  Attributes:
    params: Networks and step sizes.
    statistics: Of the token rows seen in training, by network.
    model_fingerprint: Of the weights that they were trained on.
    settings: The values of `SHAPING`.
    notes: JSON values: how they were trained.
  """

  params: NetworkParams
  statistics: dict[str, Statistics]
  model_fingerprint: str
  settings: dict[str, Any]
  notes: dict[str, Any]


def settings(config: MendConfig) -> dict[str, Any]:
  """The values of `SHAPING` as JSON gives them back."""
  return json.loads(
    files.canonical_json({name: getattr(config, name) for name in SHAPING})
  )


def save(path: files.PathLike, trained: Trained) -> None:
  """Replaces the file `path`.

  Raises:
    OSError: The disk is full or not writable.
  """
  tensors = {
    name: np.asarray(leaf)
    for name, leaf in trees.flatten(_tree(trained)).items()
  }
  tensor_file.write(
    path,
    tensors,
    {
      'format': _FORMAT,
      'model_fingerprint': trained.model_fingerprint,
      'settings': files.canonical_json(trained.settings),
      'notes': files.canonical_json(trained.notes),
    },
  )


def digest(path: files.PathLike) -> str:
  """SHA-256 of the networks in a file, whatever is noted beside them.

  Raises:
    FileNotFoundError: There is no such file, or none was given.
    ValueError: It is damaged.
  """
  return tensor_file.digest(_read(path)[0])


def load(
  path: files.PathLike,
  config: MendConfig,
  model: ModelConfig,
  model_fingerprint: str,
) -> Trained:
  """The networks that `save` wrote, if they are the ones that are meant.

  Args:
    path: The file.
    config: Its `SHAPING` must be that of the training.
    model: The model's shape.
    model_fingerprint: Of the unedited weights.

  Raises:
    FileNotFoundError: There is no such file, or none was given.
    ValueError: It is damaged or something else, or the networks were trained
      on other weights or with other settings.
  """
  tensors, metadata = _read(path)
  if metadata.get('format') != _FORMAT:
    raise ValueError(
      f'{path} holds no networks of MEND: format {metadata.get("format")!r}, '
      f'expected {_FORMAT!r}. launch.train_mend writes them.'
    )
  stored = json.loads(metadata['settings'])
  different = [
    f'{name}: {stored[name]} there, {now} here'
    for name, now in settings(config).items()
    if stored[name] != now
  ]
  if different:
    raise ValueError(
      f'The networks of {path} were trained with other settings: '
      f'{"; ".join(different)}. Set method to what they were trained with.'
    )
  made_on = metadata['model_fingerprint']
  if made_on != model_fingerprint:
    raise ValueError(
      f'The networks of {path} were trained on the weights {made_on[:12]}, '
      f'these are {model_fingerprint[:12]}. Networks serve exactly the model '
      'that they were trained on: train others with launch.train_mend.'
    )
  tree = trees.unflatten({k: jnp.asarray(v) for k, v in tensors.items()})
  trained = Trained(
    {'networks': tree['networks'], 'edit_lrs': tree['edit_lrs']},
    {name: _scalar_count(s) for name, s in tree['statistics'].items()},
    made_on,
    stored,
    json.loads(metadata['notes']),
  )
  check(trained, config, model)
  return trained


def check(trained: Trained, config: MendConfig, model: ModelConfig) -> None:
  """Raises ValueError if networks do not fit a model or cannot be used."""
  expected = jax.eval_shape(
    lambda: (
      mend_network.init_params(config, model),
      mend_network.init_statistics(config, model),
    )
  )
  shapes = lambda tree: {
    jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  wanted, found = shapes(expected), shapes((trained.params, trained.statistics))
  wrong = [
    f'{name}: expected {wanted.get(name)}, got {found.get(name)}'
    for name in sorted(wanted.keys() | found.keys())
    if wanted.get(name) != found.get(name)
  ]
  if wrong:
    raise ValueError(
      f'The networks do not fit the model: {"; ".join(wrong[:4])}. Were they '
      'trained on a model of this shape, with these settings?'
    )
  if few := [n for n, s in trained.statistics.items() if int(s.count) < 2]:
    raise ValueError(
      f'The networks for kernels {", ".join(few)} have not seen two token '
      'rows, so nothing can be standardised. Train them first.'
    )


def _read(
  path: files.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  if not path:
    raise FileNotFoundError(
      'MEND edits with networks trained for the model: method.network must be '
      'the file that launch.train_mend wrote.'
    )
  return tensor_file.read(path)


def _scalar_count(stored: Mapping[str, jax.Array]) -> Statistics:
  """A number comes back from the file as an array of one."""
  return Statistics(**{**stored, 'count': stored['count'].reshape(())})


def _tree(trained: Trained) -> Mapping[str, Any]:
  statistics = {n: s._asdict() for n, s in trained.statistics.items()}
  return {**trained.params, 'statistics': statistics}
