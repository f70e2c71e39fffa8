"""Models and edits out of a run's directory."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from me_jax import files, processes
from me_jax.checkpoints import Checkpoints, state_digest
from me_jax.edits import registry
from me_jax.edits.edit import Edit, compose
from me_jax.edits.editor import Editor
from me_jax.models import language_model, load, precision
from me_jax.models.language_model import LanguageModel
from me_jax.workdir import Workdir


class EditedState(NamedTuple):
  """A model out of a run.

  Attributes:
    model: With the edits applied.
    edit_step: The last edit step in it, 0 for none.
    num_edits: Facts written by then.
    edit_batch_size: Facts of a step.
    method: How.
    fingerprint: Of all that an answer depends on: of the weights or, for a
      method that acts in the forward pass, of weights, method and state.
    unedited: The fingerprint of the weights before any edit.
    run_state: What the run's results call this state; empty if steps were left
      out, or of no run.
    editor: That method; None where the edits are all in the weights.
    editor_state: What it carries along.
  """

  model: LanguageModel
  edit_step: int
  num_edits: int
  edit_batch_size: int
  method: str
  fingerprint: str
  unedited: str
  run_state: str = ''
  editor: Editor | None = None
  editor_state: Any = None


def edited_model(
  run: files.PathLike,
  *,
  until: int | None = None,
  without: Collection[int] = (),
  weights: str = '',
) -> LanguageModel:
  """The run's model after its edit steps 1 ... `until`, to the bit.

  Args:
    run: The run's workdir; no process may be at work there.
    until: The last edit step to apply, 0 for none; None for all there are.
    without: Steps to leave out. Later ones were made in their presence.
    weights: Where the base weights are, if no longer where the run found them.

  Raises:
    FileNotFoundError: There is no run, or the weights are gone.
    ValueError: There is no such step, a step is damaged, or the weights are
      not those that the run began with; or the method leaves them alone.
    OSError: A process is at work there.
  """
  workdir = _open(run)
  _require_weights(workdir)
  model, _, _ = _rebuild(workdir, until, without, weights, mesh=None)
  return model


def edited_state(
  run: files.PathLike,
  *,
  until: int | None = None,
  without: Collection[int] = (),
  weights: str = '',
  mesh: Mesh | None = None,
) -> EditedState:
  """`edited_model`, and what was done to it; on a mesh, if there is one.

  A method that acts in the forward pass comes along, with its state, which it
  takes the steps out of that are left out.

  Raises:
    KeyError: A later step has overwritten what one of those wrote.
  """
  workdir = _open(run)
  config = workdir.identity()['config']
  model, num_facts, run_state = _rebuild(workdir, until, without, weights, mesh)
  edit_step = max(num_facts, default=0)
  editor = registry.acting_editor(config['method'], model)
  state, fingerprint = None, model.fingerprint
  if editor is not None:
    first = editor.init(model.params)
    state = _editor_state(workdir, editor, first, edit_step, without)
    parts = [
      fingerprint,
      config['method'],
      state_digest(jax.tree.leaves(state)),
    ]
    content = files.canonical_json(parts)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
  return EditedState(
    model=model,
    edit_step=edit_step,
    num_edits=sum(num_facts.values()),
    edit_batch_size=config['edit_batch_size'],
    method=config['method']['name'],
    fingerprint=fingerprint,
    unedited=workdir.identity()['weights'],
    run_state='' if without else run_state,
    editor=editor,
    editor_state=state,
  )


def _editor_state(
  workdir: Workdir,
  editor: Editor,
  first: Any,
  last: int,
  without: Collection[int],
) -> Any:
  """The editor's state after step `last`; `first` before all."""
  if not last:
    return first
  checkpoints = Checkpoints(workdir.checkpoints, workdir.identity()['weights'])
  state = checkpoints.load(last).editor_state(first)
  infos = [
    info
    for step in sorted(without)
    if step < last
    for info in checkpoints.load(step).record['info']
  ]
  checkpoints.close()
  return editor.without(state, infos) if infos else state


def _require_weights(workdir: Workdir) -> None:
  """Raises ValueError for a method whose edits are not in the weights."""
  method = workdir.identity()['config'].get('method', {})
  if registry.acts_in_forward(method):
    raise ValueError(
      f'The edits of {method["name"]} in {workdir.path} are not in the weights '
      'but act beside them: there are no edited weights to be had. '
      'launch.evaluate --run and me_jax.rebuild.edited_state take the model '
      'with what acts on it.'
    )


def _rebuild(
  workdir: Workdir,
  until: int | None,
  without: Collection[int],
  weights: str,
  mesh: Mesh | None,
) -> tuple[LanguageModel, dict[int, int], str]:
  """The model, the number of facts that each step in it wrote, and what the run
  calls the state after the last."""
  identity = workdir.identity()
  checkpoints = Checkpoints(workdir.checkpoints, identity['weights'])
  steps = _steps(checkpoints, until, without)
  source = identity['config']['model']
  path = weights or source['path']
  config = identity['config']
  base = load.load_model(source['name'], path=path, mesh=mesh)
  if (dtype := config.get('dtype', 'float32')) != 'float32':
    method = registry.stored_config(config['method'])
    base = precision.in_dtype(base, dtype, registry.edited_paths(method))
  if base.fingerprint != identity['weights']:
    raise ValueError(
      f'The run began with weights {identity["weights"][:12]}, but '
      f'{path or source["name"]} holds {base.fingerprint[:12]}. Say where the '
      'right ones are.'
    )
  last = max(steps, default=0)
  params = checkpoints.replay(base.params, until=last, without=without)
  run_state = checkpoints.fingerprint(last)
  num_facts = {
    step: len(checkpoints.load(step).record['requests']) for step in steps
  }
  checkpoints.close()
  model = dataclasses.replace(
    base,
    params=params,
    fingerprint=language_model.fingerprint(base.config, params),
  )
  return model, num_facts, run_state


def composed_edit(
  run: files.PathLike,
  *,
  until: int | None = None,
  without: Collection[int] = (),
) -> tuple[Edit, dict[str, str]]:
  """The steps' edits as one, equal up to rounding, and what it belongs to.

  Arguments and errors as for `edited_model`; the weights are not read.

  Returns:
    The edit, and metadata for `save_edit`: base, base_fingerprint, edit_steps.
  """
  workdir = _open(run)
  _require_weights(workdir)
  identity = workdir.identity()
  checkpoints = Checkpoints(workdir.checkpoints, identity['weights'])
  steps = _steps(checkpoints, until, without)
  edits = (checkpoints.load(step).edit for step in steps)
  edit = functools.reduce(compose, edits, {})
  checkpoints.close()
  return edit, {
    'base': identity['config']['model']['name'],
    'base_fingerprint': identity['weights'],
    'edit_steps': ','.join(map(str, steps)),
  }


def _open(run: files.PathLike) -> Workdir:
  # A Workdir would create what is not there.
  config = pathlib.Path(run) / 'config.json'
  if not processes.from_first(config.is_file):
    raise FileNotFoundError(
      f'{run} holds no run: there is no config.json. Give the --workdir of '
      'launch.run.'
    )
  return Workdir(run)


def _steps(
  checkpoints: Checkpoints, until: int | None, without: Collection[int]
) -> list[int]:
  last = checkpoints.last_step
  until = last if until is None else until
  unknown = {*without, *([until] if until else [])} - set(range(1, last + 1))
  if unknown:
    raise ValueError(
      f'The run has edit steps 1 ... {last}; there is no '
      f'{", ".join(map(str, sorted(unknown)))}.'
    )
  return [step for step in range(1, until + 1) if step not in without]
