"""What MEND's networks are trained on: facts, as tokens and as activations.

The weights stay as they are in training, so what enters the first edited layer
is computed once for each text and kept in host memory. An example is always
computed alone, in a shape that depends on nothing else: kept or computed again,
in whatever company, it is the same to the bit.
"""

import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.data.request import EditRequest
from me_jax.edits import mend_factors, target_texts
from me_jax.edits.target_texts import Reads, Text, TextRows
from me_jax.models.config import ModelConfig
from me_jax.typing import Params, Tokenizer

# Compiling a step takes as long as ten of them: few shapes, some padding.
_WIDTH_STEP, _READS_STEP = 8, 32


class Example(NamedTuple):
  """The texts of one fact.

  Attributes:
    edit: What the gradient is taken of.
    rephrase: The target after another wording.
    local: An unrelated text with its answer.
  """

  edit: Text
  rephrase: Text
  local: Text


class Prepared(NamedTuple):
  """An example and what the unedited model makes of it.

  Attributes:
    example: The texts.
    entering: For each text [S, D], what enters the first edited layer.
    local_final: [T, D], what leaves the last layer where the answer of the
      unrelated text is predicted.
  """

  example: Example
  entering: tuple[np.ndarray, ...]
  local_final: np.ndarray


class Group(NamedTuple):
  """Examples of a step, as arrays. A pytree.

  Each of E examples has `batch` facts. The edited model is asked K texts of
  each example, in consecutive rows.

  Attributes:
    edit: The texts of the gradients, N = E * batch.
    edit_x: [N, S, D], what enters the first edited layer there.
    lengths: int32 [E * K], of the texts that are asked.
    x: [E * K, S, D], what enters the first edited layer.
    own: Where the targets after the edits' own prompts are, if these are asked,
    rephrase: and after other wordings, if these are asked,
    local: and the answers of unrelated texts.
    local_final: [P, D], the unedited model's last state at `local`.
  """

  edit: TextRows
  edit_x: np.ndarray
  lengths: np.ndarray
  x: np.ndarray
  own: Reads | None
  rephrase: Reads | None
  local: Reads
  local_final: np.ndarray


def make_examples(
  tokenizer: Tokenizer,
  facts: Sequence[EditRequest],
  *,
  max_length: int,
) -> list[Example]:
  """The examples of `facts`, less those with a text that is too long.

  Args:
    tokenizer: The model's tokenizer.
    facts: Each with other wordings and unrelated prompts.
    max_length: Tokens of a text, at most.

  Raises:
    ValueError: None is left.
  """
  examples = []
  for fact in facts:
    rephrase = fact.rephrase_prompts[0]
    unrelated = fact.locality_prompts[0]
    example = Example(
      target_texts.text(tokenizer, fact.text, fact.target_new),
      target_texts.text(tokenizer, rephrase, fact.target_new),
      target_texts.text(tokenizer, unrelated.prompt, unrelated.answer),
    )
    if max(len(text.ids) for text in example) <= max_length:
      examples.append(example)
  if not examples:
    raise ValueError(
      f'Each of {len(facts)} facts has a text of more than {max_length} '
      'tokens. Raise method.max_length.'
    )
  if len(examples) < len(facts):
    logging.info(
      '%d of %d facts have a text of more than %d tokens and are left out.',
      len(facts) - len(examples),
      len(facts),
      max_length,
    )
  return examples


class Preparer:
  """Prepares examples for one model, each once while there is memory."""

  def __init__(
    self, config: ModelConfig, params: Params, layer: int, max_bytes: int
  ):
    """Holds nothing yet.

    Args:
      config: The model's shape.
      params: Its weights.
      layer: The first edited layer.
      max_bytes: What is beyond is computed each time.
    """
    self._config, self._params, self._layer = config, params, layer
    self._room = max_bytes
    self._kept: dict[Example, Prepared] = {}

  def __call__(self, example: Example) -> Prepared:
    """The example, prepared."""
    if example in self._kept:
      return self._kept[example]
    rows = target_texts.stack(example)
    entering, final = trees.to_host(
      _prepare(
        self._config,
        self._params,
        rows,
        target_texts.reads({2: example.local}),
        layer=self._layer,
      )
    )
    prepared = Prepared(
      example,
      tuple(
        x[: len(t.ids)].copy() for x, t in zip(entering, example, strict=True)
      ),
      final[: len(example.local.targets)].copy(),
    )
    size = sum(x.nbytes for x in (*prepared.entering, prepared.local_final))
    if size <= self._room:
      self._room -= size
      self._kept[example] = prepared
    return prepared


def group(prepared: Sequence[Prepared], *, batch: int, outer: str) -> Group:
  """The arrays of a step.

  Args:
    prepared: A whole number of examples of `batch` facts each.
    batch: Facts that one edit writes.
    outer: What the targets are asked with, see `config.MendConfig`.
  """
  texts: list[Text] = []
  entering: list[np.ndarray] = []
  kinds = {'rephrase': (1, 2), 'same': (0, 2), 'both': (0, 1, 2)}[outer]
  rows: dict[int, list[int]] = {kind: [] for kind in kinds}
  for first in range(0, len(prepared), batch):
    for kind in kinds:
      for fact in prepared[first : first + batch]:
        rows[kind].append(len(texts))
        texts.append(fact.example[kind])
        entering.append(fact.entering[kind])
  reads = {
    kind: target_texts.reads({i: texts[i] for i in rows[kind]}, _READS_STEP)
    for kind in kinds
  }
  edit = target_texts.stack(
    [p.example.edit for p in prepared],
    width_step=_WIDTH_STEP,
    reads_step=_READS_STEP,
  )
  width = target_texts.bucket(max(map(len, entering)), _WIDTH_STEP)
  finals = np.concatenate([p.local_final for p in prepared])
  return Group(
    edit=edit,
    edit_x=_padded([p.entering[0] for p in prepared], edit.ids.shape[1]),
    lengths=np.array([len(t.ids) for t in texts], np.int32),
    x=_padded(entering, width),
    own=reads.get(0),
    rephrase=reads.get(1),
    local=reads[2],
    local_final=np.pad(
      finals, ((0, reads[2].targets.size - len(finals)), (0, 0))
    ),
  )


def deal(found: Group, mesh: Mesh | None) -> Group:
  """The texts of a step over groups of devices, as far as these divide them;
  where their tokens are, on each. As it is without a mesh."""
  if mesh is None:
    return found
  texts = {'edit_x': found.edit_x, 'lengths': found.lengths, 'x': found.x}
  others = found._replace(**dict.fromkeys(texts))
  return sharding.replicate(others, mesh)._replace(
    **sharding.deal_rows(texts, mesh)
  )


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def _prepare(
  config: ModelConfig,
  params: Params,
  rows: TextRows,
  local: Reads,
  *,
  layer: int,
) -> tuple[jax.Array, jax.Array]:
  x = mend_factors.entering(config, params, rows, layer)
  final, _ = mend_factors.tail(config, params, x, rows.lengths, start=layer)
  return x, final[local.rows, local.slots]


def _padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
  """[N, width, D]; padding repeats the first token, as `padding` wants."""
  out = np.empty((len(rows), width, rows[0].shape[1]), rows[0].dtype)
  for i, row in enumerate(rows):
    out[i] = row[0]
    out[i, : len(row)] = row
  return out
