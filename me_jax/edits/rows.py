"""The token rows of a latent search: templates around one request."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import templates as templates_lib
from me_jax.typing import Tokenizer

_KL_SUFFIX = ' is a'


class Rows(NamedTuple):
  """P template rows and, last, the row that guards the subject's essence.

  Padded on the right to buckets, so that requests share compiled functions.
  The tail of a row is what comes from its lookup position on: only there does
  a change at that position have an effect.

  Attributes:
    ids: int32 [P + 1, S], what the model is fed: all but the last target.
    lengths: int32 [P + 1], real tokens of each row.
    lookups: int32 [P + 1], the subject's last token.
    targets: int32 [P, T].
    target_slots: int32 [P, T], where in the tail each target is predicted.
    target_weights: float32 [P, T]: 1 / targets of the row, 0 for padding.
    tail_slots: int32 [W], 0 ... W - 1; its length is the tail's bucket.
  """

  ids: np.ndarray
  lengths: np.ndarray
  lookups: np.ndarray
  targets: np.ndarray
  target_slots: np.ndarray
  target_weights: np.ndarray
  tail_slots: np.ndarray


class RowNotes(NamedTuple):
  """What was odd about the tokenisation, for the log of the edit."""

  boundary_merged: int  # rows whose prompt and target share a token
  lookup_disagrees: int  # rows where the prefix-length rule differs
  target: tuple[int, ...]  # ids after the bare prompt


def build_rows(
  tokenizer: Tokenizer, request: EditRequest, templates: Sequence[str]
) -> tuple[Rows, RowNotes]:
  """Rows for `request`, the bare template first.

  Raises:
    ValueError: The first template is not the bare one, or prompt and target
      cannot be told apart as tokens.
  """
  if not templates or templates[0] != templates_lib.BARE:
    raise ValueError(
      f'The first context template must be {templates_lib.BARE!r}, the bare '
      f'prompt, got {list(templates[:1])}.'
    )
  ids, lookups, targets, slots = [], [], [], []
  merged = disagrees = 0
  for template in templates:
    head = template.partition(templates_lib.BARE)[0]
    prompt = templates_lib.fill(template, request.text)
    # `joint_ids` strips the prompt; a blank in front would shift the subject.
    shift = len(prompt) - len(prompt.lstrip())
    joint = token_ids.joint_ids(tokenizer, prompt, request.target_new)
    end = len(head) + len(request.prefix) + len(request.subject) - shift
    text = f'{prompt.strip()} {request.target_new}'
    lookup = token_ids.lookup_position(tokenizer, text, end)
    merged += joint.boundary_merged
    disagrees += not lookup.prefix_length_agrees
    first = joint.num_prompt - 1 - lookup.position
    if first < 0:
      raise ValueError(
        f'Case {request.case_id!r}: the subject {request.subject!r} ends '
        'inside the target; end the prompt with a word of its own.'
      )
    ids.append(joint.full[:-1])
    lookups.append(lookup.position)
    targets.append(joint.target)
    slots.append(range(first, first + len(joint.target)))

  text = request.subject + _KL_SUFFIX
  lookup = token_ids.lookup_position(tokenizer, text, len(request.subject))
  # What follows the lookup position cannot reach the logits read there.
  ids.append(tuple(tokenizer.encode(text))[: lookup.position + 1])
  lookups.append(lookup.position)

  lengths = [len(row) for row in ids]
  tail = max(n - p for n, p in zip(lengths, lookups, strict=True))
  most = _bucket(max(map(len, targets)), 1)
  weights = [[1 / len(t)] * len(t) for t in targets]
  rows = Rows(
    ids=_pad(ids, _bucket(max(lengths), 8), np.int32),
    lengths=np.array(lengths, np.int32),
    lookups=np.array(lookups, np.int32),
    targets=_pad(targets, most, np.int32),
    target_slots=_pad(slots, most, np.int32),
    target_weights=_pad(weights, most, np.float32),
    tail_slots=np.arange(_bucket(tail, 1), dtype=np.int32),
  )
  return rows, RowNotes(merged, disagrees, targets[0])


def _bucket(length: int, step: int) -> int:
  """`length` rounded up to 1, 2, 3, 4, 6, 8, 12, 16, ... times `step`: few
  shapes, little padding."""
  size = step
  while True:
    for bucket in (size, size * 3 // 2):
      if length <= bucket and bucket % step == 0:
        return bucket
    size *= 2


def _pad(rows, width: int, dtype) -> np.ndarray:
  out = np.zeros((len(rows), width), dtype)
  for i, row in enumerate(rows):
    out[i, : len(row)] = list(row)
  return out
