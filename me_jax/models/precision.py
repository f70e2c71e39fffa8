"""A model in bfloat16, but for the kernels that are edited.

It takes half the memory and, where products of bfloat16 are the fast ones, less
time. A sum of many small edits has more digits than bfloat16 holds, so kernels
that a method edits stay float32, and products with them are float32.
"""

import dataclasses
from collections.abc import Collection

from me_jax import trees
from me_jax.models.language_model import LanguageModel, language_model
from me_jax.typing import ParamPath


def in_dtype(
  model: LanguageModel, dtype: str, exact: Collection[ParamPath] = ()
) -> LanguageModel:
  """The model that computes in `dtype`, with parameters rounded to it.

  Args:
    model: A model.
    dtype: 'float32' or 'bfloat16'.
    exact: Parameters that are kept as they are.

  Raises:
    KeyError: It rounds, and one of `exact` is none of the model's.
    ValueError: It is another dtype.
  """
  if dtype == model.config.dtype:
    return model
  for path in exact:
    trees.get(model.params, path)
  rounded = {
    path: leaf if path in exact else leaf.astype(dtype)
    for path, leaf in trees.flatten(model.params).items()
  }
  return language_model(
    dataclasses.replace(model.config, dtype=dtype),
    trees.unflatten(rounded),
    model.tokenizer,
    name=model.name,
  )
