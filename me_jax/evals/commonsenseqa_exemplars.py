"""Which training questions each CommonsenseQA question is shown.

The reference retrieves the nearest by cosine of sentence embeddings (of
`all-mpnet-base-v2`). An embedding model is not part of this package: whoever
has one writes the list once, and a run reads it.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from me_jax import files
from me_jax.evals.task import Item

_SHOTS = 8


def nearest(
  embed: Callable[[Sequence[str]], np.ndarray],
  train: Sequence[Item],
  questions: Sequence[Item],
) -> dict[str, list[str]]:
  """Ids of the eight nearest training questions by id, nearest first.

  Args:
    embed: From n texts to float [n, d].
    train: The training questions.
    questions: Those to be asked.
  """
  keys, queries = (
    _unit(np.asarray(embed([_text(item) for item in items]), np.float64))
    for items in (train, questions)
  )
  # Stable, so that equal distances keep the order of the file.
  order = np.argsort(-queries @ keys.T, axis=1, kind='stable')[:, :_SHOTS]
  return {
    item.id: [train[i].id for i in row]
    for item, row in zip(questions, order, strict=True)
  }


def write(path: files.PathLike, chosen: Mapping[str, Sequence[str]]) -> None:
  """Writes what `nearest` found, for `evals.exemplars=file:PATH`."""
  files.write_atomic(path, json.dumps(chosen, indent=1) + '\n')


def read(path: files.PathLike, train: Sequence[Item]) -> dict[str, list[Item]]:
  """The exemplars by id of the question.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is not an object of lists of eight ids, or an id is not in
      the training split.
  """
  by_id = {item.id: item for item in train}
  try:
    chosen = json.loads(pathlib.Path(path).read_text())
    found = {name: [by_id[i] for i in ids] for name, ids in chosen.items()}
  except KeyError as e:
    raise ValueError(
      f'{path}: {e.args[0]!r} is no id of the CommonsenseQA training split at '
      'hand. Take the complete train_rand_split.jsonl, or write the list from '
      'this one.'
    ) from e
  except (ValueError, TypeError, AttributeError) as e:
    raise ValueError(
      f'{path}: expected a JSON object from question id to a list of training '
      f'ids ({e}).'
    ) from e
  for name, items in found.items():
    if len(items) != _SHOTS:
      raise ValueError(
        f'{path}: {name!r} has {len(items)} exemplars, expected {_SHOTS}.'
      )
  return found


def _text(item: Item) -> str:
  fields = item.fields
  return ' '.join([fields['question'], *(fields[x] for x in 'ABCDE')])


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
