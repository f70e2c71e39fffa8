"""One small checkpoint per edit step: what changed, not the model.

A model after step t is the base model plus the edits of steps 1 ... t, added
one after another. Going back, or leaving an edit out, is adding the others
again: the same bits, which subtracting would not give.
"""

import hashlib
import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from me_jax import files, trees
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Edit, LowRank
from me_jax.typing import Params

_FULL_BELOW = 16 << 20  # bytes free; Orbax reports a full disk in many words
_SHOWN = 200  # characters of a storage error


class Step(NamedTuple):
  """What one edit step left behind.

  Attributes:
    edit: The change of the weights.
    record: JSON: the requests, how the search went, and the fields that
      `Checkpoints.save` adds.
  """

  edit: Edit
  record: dict[str, Any]


class Checkpoints:
  """The edit steps of one run, 1, 2, ..., in a directory."""

  def __init__(self, directory: files.PathLike, base_fingerprint: str):
    """Opens or creates the directory; unfinished saves are cleaned up.

    Args:
      directory: Where the steps are.
      base_fingerprint: Of the weights that step 1 edits.

    Raises:
      ValueError: Steps are missing in between.
    """
    self._directory = pathlib.Path(directory).absolute()
    self._base_fingerprint = base_fingerprint
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
      ),
    )
    steps = sorted(self._manager.all_steps())
    if steps != list(range(1, len(steps) + 1)):
      missing = sorted(set(range(1, max(steps) + 1)) - set(steps))
      raise ValueError(
        f'{self._directory} lacks edit steps {missing} below step '
        f'{max(steps)}. Put them back, or delete the later ones to have them '
        'made again.'
      )
    self._last = len(steps)
    self._fingerprints = [base_fingerprint]

  @property
  def last_step(self) -> int:
    """The newest step, 0 if there is none."""
    return self._last

  def fingerprint(self, step: int) -> str:
    """Names the model after `step`: equal only for equal base and edits."""
    while len(self._fingerprints) <= step:
      self.load(len(self._fingerprints))
    return self._fingerprints[step]

  def save(self, step: int, edit: Edit, record: dict[str, Any]) -> None:
    """Writes step `step`, completely or not at all.

    Raises:
      FloatingPointError: A factor is not finite; nothing was written.
      ValueError: The step does not follow the last one.
      OSError: The disk is full; earlier steps are intact.
    """
    if step != self._last + 1:
      raise ValueError(
        f'Edit steps are saved in order: expected {self._last + 1}, got {step}.'
      )
    edit_lib.check_finite(edit)
    before, digest = self.fingerprint(step - 1), edit_lib.digest(edit)
    record = {
      **record,
      'edit_step': step,
      'edit_sha256': digest,
      'previous_fingerprint': before,
      'state_fingerprint': _chain(before, digest),
      'shapes': {
        path: [list(factor.shape) for factor in change]
        for path, change in edit.items()
      },
    }
    tree = {path: change._asdict() for path, change in edit.items()}
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          edit=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record)
        ),
      )
      self._manager.wait_until_finished()
    except Exception as e:
      if shutil.disk_usage(self._directory).free < _FULL_BELOW:
        full = OSError(28, 'No space left on device')
        raise files.explained(full, self._directory / str(step)) from e
      raise
    self._last = step
    self._fingerprints.append(record['state_fingerprint'])

  def load(self, step: int) -> Step:
    """Step `step`, verified against its hash and its predecessor's.

    Raises:
      ValueError: There is no such step, it is damaged, or it was made on
        other weights.
    """
    if not 1 <= step <= self._last:
      raise ValueError(
        f'{self._directory} holds edit steps 1 ... {self._last}, not {step}.'
      )
    before = self.fingerprint(step - 1)
    try:
      record = self._manager.restore(
        step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
      )['record']
      tree = self._manager.restore(
        step,
        args=ocp.args.Composite(
          edit=ocp.args.StandardRestore(_abstract(record['shapes']))
        ),
      )['edit']
      edit = {path: LowRank(**factors) for path, factors in tree.items()}
      found = edit_lib.digest(edit)
      stated = record['edit_sha256']
      made_on = record['previous_fingerprint']
    except Exception as e:  # Orbax raises whatever its backends raise.
      # The head says what is wrong; the rest is the storage's own settings.
      why = f'{type(e).__name__}: {e}'[:_SHOWN]
      raise ValueError(self._damaged(step, why)) from e
    if found != stated:
      raise ValueError(
        self._damaged(step, f'its hash is {found[:12]}, not {stated[:12]}')
      )
    if made_on != before:
      raise ValueError(
        f'Edit step {step} in {self._directory} was made on weights '
        f'{made_on[:12]}, these are {before[:12]}. Use the model that the run '
        'began with.'
      )
    if len(self._fingerprints) == step:
      self._fingerprints.append(_chain(before, stated))
    return Step(edit, record)

  def replay(
    self,
    params: Params,
    *,
    until: int | None = None,
    without: Collection[int] = (),
  ) -> Params:
    """The base weights `params` with the edits of steps 1 ... `until`.

    Args:
      params: Weights that the run began with.
      until: Last step to apply; None for all.
      without: Steps to leave out.
    """
    until = self._last if until is None else until
    for step in range(1, until + 1):
      if step not in without:
        params = edit_lib.apply_edit(params, self.load(step).edit)
    return params

  def __iter__(self) -> Iterator[Step]:
    """Steps 1, 2, ..., each loaded when its turn comes."""
    return (self.load(step) for step in range(1, self._last + 1))

  def close(self) -> None:
    """Lets go of Orbax's threads."""
    self._manager.close()

  def _damaged(self, step: int, why: str) -> str:
    return (
      f'Edit step {step} in {self._directory} is damaged ({why}). Delete the '
      f'directories {step} and above and run the same command again: they '
      'are made anew.'
    )


def check_finite(params: Params, edit: Edit) -> None:
  """Raises FloatingPointError if a kernel is not finite after `edit`."""
  for path in edit:
    if not bool(jnp.isfinite(trees.get(params, path)).all()):
      raise FloatingPointError(
        f'{path} is not finite after the edit, which was not saved: the '
        'change is too large for float32. See the losses and '
        'relative_change_norm of the last edits.'
      )


def _abstract(shapes: dict[str, list[list[int]]]) -> dict[str, Any]:
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return {
    path: {
      name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
      for name, shape in zip(LowRank._fields, factors, strict=True)
    }
    for path, factors in shapes.items()
  }


def _chain(fingerprint: str, digest: str) -> str:
  return hashlib.sha256(f'{fingerprint}+{digest}'.encode()).hexdigest()
