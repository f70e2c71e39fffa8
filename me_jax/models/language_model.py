"""A loaded model: shape, weights and tokenizer together."""

import dataclasses
import hashlib
import pathlib

from me_jax import files, trees
from me_jax.models import config as config_lib
from me_jax.models import shapes
from me_jax.models import tokenizer as tokenizer_lib
from me_jax.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """A LLaMA and its tokenizer.

  Attributes:
    config: Shape.
    params: Arrays of `config.dtype` or float32, nested by path.
    tokenizer: A `me_jax.typing.Tokenizer` that can also be saved.
    name: What it was loaded as; not part of its identity.
    fingerprint: SHA-256 of weights and shape, whatever file they came from.
  """

  config: config_lib.ModelConfig
  params: Params = dataclasses.field(repr=False)
  tokenizer: tokenizer_lib.FastTokenizer
  name: str
  fingerprint: str


def language_model(
  config: config_lib.ModelConfig,
  params: Params,
  tokenizer: tokenizer_lib.FastTokenizer,
  *,
  name: str,
) -> LanguageModel:
  """The parts, checked against each other and fingerprinted.

  Raises:
    ValueError: A parameter is missing, unexpected, of the wrong shape or
      neither float32 nor of the config's dtype, or the tokenizer has ids
      without a row in the embedding table.
  """
  leaves = trees.flatten(params)
  found = {
    path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()
  }
  rounded = {p for p, leaf in leaves.items() if leaf.dtype == config.dtype}
  expected = {
    path: (shape, config.dtype if path in rounded else 'float32')
    for path, shape in shapes.param_shapes(config).items()
  }
  wrong = [
    f'{path}: expected {expected.get(path)}, got {found.get(path)}'
    for path in sorted(expected.keys() | found.keys())
    if expected.get(path) != found.get(path)
  ]
  if wrong:
    shown = '; '.join(wrong[:8])
    more = f'; and {len(wrong) - 8} more' if len(wrong) > 8 else ''
    raise ValueError(f'Parameters do not fit the config: {shown}{more}.')
  vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
  beyond = sorted(t for t, i in vocab.items() if i >= config.vocab_size)
  if beyond:
    raise ValueError(
      f'{len(beyond)} tokens have ids beyond the embedding table of '
      f'{config.vocab_size} rows: {", ".join(beyond[:8])}. Take the tokenizer '
      'that belongs to these weights, or remove the tokens from its files.'
    )
  return LanguageModel(
    config, params, tokenizer, name, fingerprint(config, params)
  )


def fingerprint(config: config_lib.ModelConfig, params: Params) -> str:
  """SHA-256 of weights and shape: what a model's answers depend on, but for its
  tokenizer."""
  shape = files.canonical_json(dataclasses.asdict(config))
  return hashlib.sha256(
    f'{shape}:{trees.fingerprint(params)}'.encode()
  ).hexdigest()


def require_float32(model: LanguageModel) -> None:
  """Raises ValueError if a model is not float32 throughout, as files are."""
  dtypes = {str(leaf.dtype) for leaf in trees.flatten(model.params).values()}
  if dtypes | {model.config.dtype} != {'float32'}:
    raise ValueError(
      f'Models are written as float32, this one has {sorted(dtypes)}. Write '
      "precision.in_dtype(model, 'float32'), which has the same numbers."
    )


def require_empty(directory: files.PathLike) -> pathlib.Path:
  """`directory` as a path, if nothing is in it; it need not exist.

  Raises:
    FileExistsError: Something is in it, or it is a file.
  """
  directory = pathlib.Path(directory)
  if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
    raise FileExistsError(
      f'{directory} is not an empty directory. A model is written to a new or '
      'empty one, so that files of two models never mix: choose another, or '
      'empty it.'
    )
  return directory
