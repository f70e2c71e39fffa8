"""Second moments, from the disk if they are there, else collected now."""

from collections.abc import Callable, Sequence
from typing import Any

from me_jax import files
from me_jax.edits import corpus as corpus_lib
from me_jax.edits import second_moment, second_moment_collect
from me_jax.models.language_model import LanguageModel
from me_jax.progress import Progress


def ensure(
  model: LanguageModel,
  corpus: corpus_lib.Corpus,
  layers: Sequence[int],
  directory: files.PathLike,
  *,
  max_length: int,
  seed: int,
  n_samples: int = 0,
  min_tokens: int = 0,
  batch_tokens: int = 3 * 4096,
  progress: Callable[[int, str, str], Any] = Progress,
) -> dict[int, second_moment.SecondMoment]:
  """C of each of `layers`, also saved in `directory`.

  Text is drawn only if a layer is missing. Stored layers must agree in all
  that is known without drawing, `corpus.known_spec`.

  Args:
    model: The unedited model.
    corpus: Where the text comes from.
    layers: From 0, in any order.
    directory: Holds one directory per layer.
    max_length: Tokens after which a text is cut.
    seed: Of the draw.
    n_samples: Number of texts, or
    min_tokens: number of tokens to stop at.
    batch_tokens: Padded tokens in one batch.
    progress: Makes a progress display from total, description and unit.

  Raises:
    ValueError: `directory` holds another second moment, or the text has fewer
      tokens than the MLP has units.
    OSError: The disk is full or not writable.
  """
  draw = {
    'max_length': max_length,
    'seed': seed,
    'n_samples': n_samples,
    'min_tokens': min_tokens,
  }
  known = corpus_lib.known_spec(corpus, **draw)
  moments = {
    layer: second_moment.load(
      directory, layer, second_moment.fingerprint(model, layer, known)
    )
    for layer in second_moment.stored(directory, layers)
  }
  missing = sorted(set(layers) - set(moments))
  if missing:
    with progress(
      n_samples or min_tokens,
      'drawing text',
      'texts' if n_samples else 'tokens',
    ) as done:
      sample = corpus_lib.token_rows(corpus, progress=done, **draw)
    dim = model.config.mlp_dim
    if sample.n_tokens < dim:
      raise ValueError(
        f'{len(sample.rows):,} texts with {sample.n_tokens:,} tokens cannot '
        f'give an invertible second moment of {dim:,} units. Take at least '
        f'{10 * dim:,} tokens.'
      )
    names = ', '.join(map(str, missing))
    with progress(
      sample.n_tokens, f'second moment of layers {names}', 'tokens'
    ) as done:
      moments |= second_moment_collect.collect(
        model,
        sample.rows,
        missing,
        directory,
        sample.spec,
        done,
        batch_tokens=batch_tokens,
      )
  return {layer: moments[layer] for layer in sorted(set(layers))}
