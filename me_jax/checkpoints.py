"""One small checkpoint per edit step: what changed, not the model.

A model after step t is the base model plus the edits of steps 1 ... t, added
one after another. Going back, or leaving an edit out, is adding the others
again: the same bits, which subtracting would not give. What an editor keeps
beside the weights is stored whole with each step.

Of many processes the first one writes and reads: a step is small, and whole on
each of them.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from me_jax import files, orbax_store, processes, trees
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Edit
from me_jax.typing import Params


class Step(NamedTuple):
  """What one edit step left behind.

  Attributes:
    edit: The change of the weights.
    record: JSON: the requests, how the search went, and the fields that
      `Checkpoints.save` adds.
    state: Leaves of the editor's state, in the order of `jax.tree.leaves`;
      none for a method without.
  """

  edit: Edit
  record: dict[str, Any]
  state: tuple[jax.Array, ...] = ()

  def editor_state(self, like: Any) -> Any:
    """The editor's state, in the structure of another state of the method.

    Raises:
      ValueError: The method keeps another kind of state.
    """
    structure = jax.tree.structure(like)
    if structure.num_leaves != len(self.state):
      raise ValueError(
        f'Edit step {self.record["edit_step"]} keeps an editor state of '
        f'{len(self.state)} arrays, this method has {structure.num_leaves}. '
        'Was it made by another method or an older version?'
      )
    return jax.tree.unflatten(structure, self.state)


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
    self._store: ocp.CheckpointManager | None = None  # of the first process
    steps = processes.from_first(self._open)
    if steps != list(range(1, len(steps) + 1)):
      missing = sorted(set(range(1, max(steps) + 1)) - set(steps))
      raise ValueError(
        f'{self._directory} lacks edit steps {missing} below step '
        f'{max(steps)}. Put them back, or delete the later ones to have them '
        'made again.'
      )
    self._last = len(steps)
    self._fingerprints = [base_fingerprint]

  def _open(self) -> list[int]:
    """The steps there are."""
    self._store = orbax_store.open_store(self._directory)
    return sorted(self._store.all_steps())

  @property
  def last_step(self) -> int:
    """The newest step, 0 if there is none."""
    return self._last

  def fingerprint(self, step: int) -> str:
    """Names the model after `step`: equal only for equal base, edits and
    editor states."""
    while len(self._fingerprints) <= step:
      self.load(len(self._fingerprints))
    return self._fingerprints[step]

  def save(
    self, step: int, edit: Edit, record: dict[str, Any], state: Any = None
  ) -> None:
    """Writes step `step`, completely or not at all.

    Args:
      step: The next one.
      edit: The change of the weights.
      record: JSON.
      state: The editor's state after it, a pytree of arrays.

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
    leaves = _named(trees.to_host(jax.tree.leaves(state)))
    kept = state_digest(tuple(leaves.values()))
    record = {
      **record,
      'edit_step': step,
      'edit_sha256': digest,
      'previous_fingerprint': before,
      'state_fingerprint': _chain(before, digest, kept),
      'shapes': {
        path: [list(array.shape) for array in change]
        for path, change in edit.items()
      },
    }
    items = {}
    if edit:
      tree = {path: change._asdict() for path, change in edit.items()}
      items['edit'] = ocp.args.StandardSave(trees.to_host(tree))
    if leaves:
      items['editor_state'] = ocp.args.StandardSave(leaves)
      record['editor_state_sha256'] = kept
      record['editor_state'] = [
        [list(leaf.shape), str(leaf.dtype)] for leaf in leaves.values()
      ]
    items['record'] = ocp.args.JsonSave(record)
    processes.from_first(lambda: orbax_store.save(self._store, step, items))
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
    edit, record, state = processes.from_first(lambda: self._read(step))
    made_on, stated = record['previous_fingerprint'], _stated(record)
    if made_on != before:
      raise ValueError(
        f'Edit step {step} in {self._directory} was made on weights '
        f'{made_on[:12]}, these are {before[:12]}. Use the model that the run '
        'began with.'
      )
    if len(self._fingerprints) == step:
      self._fingerprints.append(_chain(before, *stated))
    # Not bound to the device they were read to: the model may lie on a mesh.
    edit, state = jax.tree.map(jnp.asarray, (edit, state))
    return Step(edit, record, state)

  def _read(self, step: int) -> Step:
    """Step `step` with NumPy arrays, verified against its hash."""
    try:
      record = self._store.restore(
        step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
      )['record']
      edit, state = trees.to_host(self._restore(step, record))
      found = (edit_lib.digest(edit), state_digest(state))
      # `load` needs the second: a record without it is damaged, too.
      stated, _ = _stated(record), record['previous_fingerprint']
    except Exception as e:  # Orbax raises whatever its backends raise.
      why = orbax_store.reason(e)
      raise ValueError(self._damaged(step, why)) from e
    for expected, got in zip(stated, found, strict=True):
      if got != expected:
        raise ValueError(
          self._damaged(step, f'its hash is {got[:12]}, not {expected[:12]}')
        )
    return Step(edit, record, state)

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
    if self._store is not None:
      self._store.close()

  def _restore(
    self, step: int, record: dict[str, Any]
  ) -> tuple[Edit, tuple[jax.Array, ...]]:
    """The edit and the leaves of the editor's state."""
    items = {}
    if record['shapes']:
      items['edit'] = _abstract_edit(record['shapes'])
    if wanted := record.get('editor_state'):
      items['editor_state'] = _named(
        [orbax_store.abstract(*leaf) for leaf in wanted]
      )
    if not items:
      return {}, ()
    restore = {k: ocp.args.StandardRestore(v) for k, v in items.items()}
    found = self._store.restore(step, args=ocp.args.Composite(**restore))
    changes = found['edit'] if 'edit' in items else {}
    edit = {path: edit_lib.change_of(a) for path, a in changes.items()}
    leaves = found['editor_state'] if wanted else {}
    return edit, tuple(leaves[str(i)] for i in range(len(leaves)))

  def _damaged(self, step: int, why: str) -> str:
    return (
      f'Edit step {step} in {self._directory} is damaged ({why}). Delete the '
      f'directories {step} and above and run the same command again: they '
      'are made anew.'
    )


def read_records(directory: files.PathLike) -> list[dict[str, Any]]:
  """The records of the edit steps there are, in order, and nothing else.

  A run may be at work there: nothing is cleaned up, and a step that is not
  complete is left out.

  Raises:
    ValueError: A record is damaged.
  """
  records = []
  steps = pathlib.Path(directory).glob('[0-9]*/record/metadata')
  complete = [p for p in steps if p.parts[-3].isdecimal()]
  for path in sorted(complete, key=lambda p: int(p.parts[-3])):
    try:
      records.append(dict(json.loads(path.read_text())))
    except (ValueError, TypeError) as e:
      raise ValueError(
        f'{path} is damaged ({e}). Delete this step and those above and run '
        'the same command again: they are made anew.'
      ) from e
  return records


def check_finite(params: Params, edit: Edit) -> None:
  """Raises FloatingPointError if a kernel is not finite after `edit`."""
  for path in edit:
    if not bool(jnp.isfinite(trees.get(params, path)).all()):
      raise FloatingPointError(
        f'{path} is not finite after the edit, which was not saved: the '
        'change is too large for float32. See the losses and '
        'relative_change_norm of the last edits.'
      )


def _abstract_edit(shapes: dict[str, list[list[int]]]) -> dict[str, Any]:
  # A kind of change is known by how many arrays it has.
  names = {len(kind._fields): kind._fields for kind in edit_lib.KINDS}
  return {
    path: {
      name: orbax_store.abstract(shape, 'float32')
      for name, shape in zip(names[len(arrays)], arrays, strict=True)
    }
    for path, arrays in shapes.items()
  }


def _named(leaves: Sequence[Any]) -> dict[str, Any]:
  return {str(i): leaf for i, leaf in enumerate(leaves)}


def _stated(record: dict[str, Any]) -> tuple[str, str]:
  """The hashes of an edit and of the editor's state."""
  return record['edit_sha256'], record.get('editor_state_sha256', '')


def state_digest(leaves: Sequence[Any]) -> str:
  """SHA-256 of an editor's state; empty if it keeps none."""
  return trees.fingerprint(_named(leaves)) if leaves else ''


def _chain(fingerprint: str, edit_digest: str, state_digest: str) -> str:
  """Names a state after its predecessor, the change of the weights and, if it
  has one, the state that the editor keeps."""
  parts = filter(None, (fingerprint, edit_digest, state_digest))
  return hashlib.sha256('+'.join(parts).encode()).hexdigest()
