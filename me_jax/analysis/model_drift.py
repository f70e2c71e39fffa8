"""The drift of all edited matrices: between two models, and along a run.

`weight_drift.py` says what is computed of each. Leaves are read as they are
needed, so models need not fit in memory: `checkpoint_leaves.CheckpointLeaves`
of a directory will do for the leaves, `checkpoints.Checkpoints` for the edits.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from me_jax.analysis import weight_drift
from me_jax.analysis.weight_drift import Drift, Reference
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Change, Edit, LowRank
from me_jax.typing import ParamPath

# Arrays by path, as in `trees.flatten(params)`.
Leaves = Mapping[ParamPath, Any]


def between(
  base: Leaves, edited: Leaves, paths: Collection[ParamPath] | None = None
) -> Iterator[tuple[ParamPath, Drift]]:
  """Matrices of two models, one after the other.

  Only two leaves are held at a time: with `CheckpointLeaves` of two directories
  models of any size are compared.

  Args:
    base: The leaves of one model, by path.
    edited: Those of the other.
    paths: Which; None for all kernels that differ.

  Raises:
    KeyError: A model has no such leaf.
    ValueError, FloatingPointError: As `of_kernels`, of which leaf.
  """
  chosen = (
    [p for p in base if p.endswith('/kernel')] if paths is None else paths
  )
  for path in chosen:
    before, after = np.asarray(base[path]), np.asarray(edited[path])
    if paths is None and np.array_equal(before, after):
      continue
    with _named(path):
      drift = weight_drift.of_kernels(weight_drift.reference(before), after)
    yield path, drift


def trajectory(
  leaves: Leaves, edits: Iterable[Edit], steps: Collection[int]
) -> Iterator[tuple[int, ParamPath, Drift]]:
  """Edit step, path and drift of every kernel edited so far, at some steps.

  Of the weights only edited kernels are read, each once, and held.

  Args:
    leaves: The leaves of the unedited model, by path.
    edits: Those of steps 1, 2, ..., in order, as
      `(step.edit for step in checkpoints)`.
    steps: After which to look, from 1 on, at least one.

  Raises:
    KeyError: The model has no such leaf.
    ValueError: There is no such step, or as `of_change`, of which leaf.
  """
  changes: dict[ParamPath, list[Change]] = {}
  references: dict[ParamPath, Reference] = {}
  waiting = sorted(set(steps))
  if not waiting or waiting[0] < 1:
    raise ValueError(f'Expected edit steps, from 1 on, got {waiting}.')
  for step, edit in enumerate(edits, start=1):
    for path, change in edit.items():
      changes[path] = _followed_by(changes.get(path, []), change)
    if step != waiting[0]:
      continue
    waiting.pop(0)
    for path in sorted(changes):
      with _named(path):
        if path not in references:
          references[path] = weight_drift.reference(leaves[path])
        drift = weight_drift.of_change(references[path], _sum(changes[path]))
      yield step, path, drift
    if not waiting:
      return
  if waiting:
    raise ValueError(
      f'There are no edit steps {waiting}: the edits end before.'
    )


def _followed_by(changes: list[Change], change: Change) -> list[Change]:
  """What adds up to all of them: low-rank ones as they are, others summed."""
  if all(isinstance(c, LowRank) for c in (*changes, change)):
    return [*changes, change]
  total = {'': change}
  for earlier in reversed(changes):
    total = edit_lib.compose({'': earlier}, total)
  return [total['']]


def _sum(changes: Sequence[Change]) -> Change:
  """One change. On the host: on a device each rank would compile anew."""
  if len(changes) == 1:
    return changes[0]
  return LowRank(
    np.concatenate([np.asarray(c.left) for c in changes], axis=1),
    np.concatenate([np.asarray(c.right) for c in changes], axis=0),
  )


@contextlib.contextmanager
def _named(path: ParamPath) -> Iterator[None]:
  """Errors say which leaf they are about."""
  try:
    yield
  except (ValueError, FloatingPointError) as e:
    raise type(e)(f'{path}: {e}') from e
