"""Whole models in Orbax checkpoints of our own.

A directory with `params/` (Orbax), the tokenizer's files, and `me_jax.json`
(shape and fingerprint), which is written last: without it the rest is what an
unfinished save left.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from me_jax import files, sharding, trees
from me_jax.models import config as config_lib
from me_jax.models import language_model, shapes
from me_jax.models import tokenizer as tokenizer_lib

_DESCRIPTION = 'me_jax.json'


def is_checkpoint(directory: files.PathLike) -> bool:
  """Whether `save_orbax` wrote `directory`, to the end."""
  return (pathlib.Path(directory) / _DESCRIPTION).is_file()


def save_orbax(
  directory: files.PathLike, model: language_model.LanguageModel
) -> None:
  """Writes `model`; returns when all of it is on the disk.

  Raises:
    FileExistsError: The directory is not empty.
    ValueError: The model is not float32.
  """
  language_model.require_float32(model)
  # Orbax takes absolute paths only.
  directory = language_model.require_empty(directory).absolute()
  directory.mkdir(parents=True, exist_ok=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(directory / 'params', model.params)
  model.tokenizer.save(directory)
  description = {
    'name': model.name,
    'fingerprint': model.fingerprint,
    'config': dataclasses.asdict(model.config),
  }
  files.write_atomic(
    directory / _DESCRIPTION, json.dumps(description, indent=2) + '\n'
  )


def load_orbax(
  directory: files.PathLike, *, name: str = '', mesh: Mesh | None = None
) -> language_model.LanguageModel:
  """The model that `save_orbax` wrote, bit for bit.

  Args:
    directory: Where it is.
    name: What to call it; empty for the name it was saved under.
    mesh: Where the parameters are to lie; None for the default device.

  Raises:
    FileNotFoundError: There is no finished checkpoint.
    ValueError: It is damaged: unreadable, or with other weights than saved.
  """
  directory = pathlib.Path(directory).absolute()
  if not is_checkpoint(directory):
    raise FileNotFoundError(
      f'{directory} is no finished checkpoint of a model: {_DESCRIPTION} is '
      'missing. Save the model again.'
    )
  damaged = (
    f'The checkpoint {directory} is damaged. Delete the directory and save or '
    'copy the model again'
  )
  try:
    description = json.loads((directory / _DESCRIPTION).read_text())
    config = config_lib.ModelConfig(**description['config'])
    fingerprint = description['fingerprint']
    name = name or description['name']
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f'{damaged} ({_DESCRIPTION}: {e}).') from e
  expected = shapes.param_shapes(config)
  if mesh is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    lies = dict.fromkeys(expected, device)
  else:
    lies = sharding.param_shardings(config, tuple(expected), mesh)
  target = trees.unflatten(
    {
      path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=lies[path])
      for path, shape in expected.items()
    }
  )
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      params = checkpointer.restore(directory / 'params', target)
  # Orbax passes on whatever its storage raises, bare Exception included.
  except Exception as e:
    raise ValueError(f'{damaged} (params: {str(e)[:300]}).') from e
  model = language_model.language_model(
    config, params, tokenizer_lib.from_saved(directory), name=name
  )
  if model.fingerprint != fingerprint:
    raise ValueError(
      f'{damaged} (the weights have fingerprint {model.fingerprint[:12]}, '
      f'saved were {fingerprint[:12]}).'
    )
  return model
