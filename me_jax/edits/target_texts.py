"""Prompts with their targets as padded token rows.

Unlike the rows of a latent search these are fed from the first token on, and
what is read off them lies flat: one entry per target token, whatever row it is
in, so that short targets pay for no logits of long ones.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.data import token_ids
from me_jax.engines.padding import pad_mask
from me_jax.typing import Tokenizer


class Text(NamedTuple):
  """A prompt and its target as ids.

  Attributes:
    ids: What is fed: all but the last target; the targets are predicted at the
      last `len(targets)` of them.
    targets: Ids to predict.
    boundary_merged: The target's first token swallowed the prompt's end.
  """

  ids: tuple[int, ...]
  targets: tuple[int, ...]
  boundary_merged: bool


class Reads(NamedTuple):
  """Where target tokens are predicted, flat. A pytree; padding is 0.

  Attributes:
    rows: int32 [P], the row of each target token.
    slots: int32 [P], where in the row it is predicted.
    targets: int32 [P].
    weights: float32 [P], 1 / targets of the row.
  """

  rows: np.ndarray
  slots: np.ndarray
  targets: np.ndarray
  weights: np.ndarray


class TextRows(NamedTuple):
  """Texts as arrays of few shapes. A pytree.

  Attributes:
    lengths: int32 [N], real tokens.
    ids: int32 [N, S], padded with the first token of the row.
    reads: The targets of all rows.
  """

  lengths: np.ndarray
  ids: np.ndarray
  reads: Reads


def text(tokenizer: Tokenizer, prompt: str, target: str) -> Text:
  """The ids of a prompt and its target.

  Raises:
    ValueError: As `token_ids.joint_ids`.
  """
  joint = token_ids.joint_ids(tokenizer, prompt, target)
  return Text(joint.full[:-1], joint.target, joint.boundary_merged)


def stack(
  texts: Sequence[Text], *, width_step: int = 8, reads_step: int = 4
) -> TextRows:
  """The arrays of some texts, padded to buckets.

  Args:
    texts: One a row.
    width_step: S is a multiple of it; the larger, the fewer shapes,
    reads_step: and P of this.
  """
  lengths = np.array([len(t.ids) for t in texts], np.int32)
  ids = np.zeros((len(texts), bucket(int(lengths.max()), width_step)), np.int32)
  for i, t in enumerate(texts):
    ids[i] = t.ids[0]
    ids[i, : len(t.ids)] = t.ids
  return TextRows(lengths, ids, reads(dict(enumerate(texts)), reads_step))


def reads(texts: Mapping[int, Text], step: int = 4) -> Reads:
  """The targets of the texts in the rows that are named; P as in `stack`."""
  flat = [
    (row, len(t.ids) - len(t.targets) + j, target, 1 / len(t.targets))
    for row, t in texts.items()
    for j, target in enumerate(t.targets)
  ]
  padding = [(0, 0, 0, 0.0)] * (bucket(len(flat), step) - len(flat))
  rows, slots, targets, weights = zip(*flat, *padding, strict=True)
  array = lambda values: np.array(values, np.int32)
  return Reads(
    array(rows), array(slots), array(targets), np.array(weights, np.float32)
  )


def layout(lengths: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  """Positions [N, S] and mask [N, S, S] of right-padded rows."""
  order = jnp.arange(width)
  real = order < lengths[:, None]
  mask = (order[None, :] <= order[:, None])[None]
  # Padding stands where the token stands that it repeats.
  return jnp.where(real, order, 0), pad_mask(mask, real)


def by_row(where: Reads, values: jax.Array, count: int) -> jax.Array:
  """[count], for each row the mean of `values` [P] over its target tokens."""
  weighted = values * where.weights
  return jax.ops.segment_sum(weighted, where.rows, num_segments=count)


def bucket(length: int, step: int) -> int:
  """`length` rounded up to 1, 2, 3, 4, 6, 8, 12, 16, ... times `step`."""
  size = step
  while True:
    for choice in (size, size * 3 // 2):
      if length <= choice and choice % step == 0:
        return choice
    size *= 2
