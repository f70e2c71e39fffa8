"""A run's directory: what is where, and whose it is."""

import fcntl
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from me_jax import files, processes


class RunFiles:
  """Everything that one run writes.

  | place                      | content                                      |
  |----------------------------|----------------------------------------------|
  | `config.json`              | config, hashes of weights, facts, statistics |
  | `facts.jsonl`              | the requests, in the order of the edits      |
  | `context_templates.json`   | what was drawn before the first edit         |
  | `checkpoints/`             | one delta per edit step                      |
  | `samples/TASK/STEP.jsonl`  | the model's answer to each item              |
  | `scores/TASK/STEP.jsonl`   | what was read off each answer                |
  | `analysis/NAME/STEP.*`     | what an analysis averaged over               |
  | `triangle.jsonl`           | scores of fact s after edit step t           |
  | `results.jsonl`            | one row per metric                           |
  | `report.md`                | tables                                       |
  """

  def __init__(self, path: files.PathLike):
    """The places in a directory; it is neither locked nor written to."""
    self.path = pathlib.Path(path).absolute()

  @property
  def config(self) -> pathlib.Path:
    return self.path / 'config.json'

  @property
  def checkpoints(self) -> pathlib.Path:
    return self.path / 'checkpoints'

  @property
  def templates(self) -> pathlib.Path:
    return self.path / 'context_templates.json'

  @property
  def facts(self) -> pathlib.Path:
    return self.path / 'facts.jsonl'

  @property
  def triangle(self) -> pathlib.Path:
    return self.path / 'triangle.jsonl'

  @property
  def results(self) -> pathlib.Path:
    return self.path / 'results.jsonl'

  @property
  def report(self) -> pathlib.Path:
    return self.path / 'report.md'

  def samples(self, task: str, step: int) -> pathlib.Path:
    """The log of one task on the model after `step` edit steps."""
    return samples_path(self.path, task, step)

  def scores(self, task: str, step: int) -> pathlib.Path:
    """The scores of what `samples` holds."""
    return self.path / 'scores' / task / f'{step:06d}.jsonl'

  def analysis(self, name: str, step: int, kind: str) -> pathlib.Path:
    """What an analysis of the model after `step` edit steps averaged over."""
    return self.path / 'analysis' / name / f'{step:06d}.{kind}'

  def all_scores(self) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """The records of all `scores` by edit step and task."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(self.path.glob('scores/*/[0-9]*.jsonl')):
      by_task = found.setdefault(int(path.stem), {})
      by_task[path.parent.name] = files.read_jsonl(path)
    return found

  def identity(self) -> dict[str, Any]:
    """What `Workdir.claim` wrote: all that the run's numbers depend on.

    Raises:
      FileNotFoundError: Nothing was claimed yet.
      ValueError: The file is damaged.
    """
    try:
      return dict(json.loads(self.config.read_text())['identity'])
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(
        f'{self.config} is damaged ({type(e).__name__}: {e}). Restore it, or '
        'start again in an empty --workdir.'
      ) from e


class Workdir(RunFiles):
  """A run's directory, and the right to write in it.

  Of many processes (see `processes`) the first one holds it.
  """

  def __init__(self, path: files.PathLike):
    """Creates the directory and locks it until the process ends.

    Raises:
      OSError: Another run is at work there, or it cannot be written.
    """
    super().__init__(path)
    processes.from_first(self._take)

  def _take(self) -> None:
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = open(self.path / '.lock', 'w')
    except OSError as e:
      raise files.explained(e, self.path) from e
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise OSError(
        e.errno,
        f'Another process is running in {self.path}. Wait for it, or choose '
        'another --workdir.',
      ) from e
    # What a killed process was writing, under a name that nothing reads.
    for partial in self.path.rglob('.*.partial'):
      partial.unlink(missing_ok=True)

  def identity(self) -> dict[str, Any]:
    """As `RunFiles.identity`, the same for all processes."""
    return processes.from_first(super().identity)

  def check(self, identity: Mapping[str, Any]) -> None:
    """Returns if the directory is new, or agrees in all that is given.

    Raises:
      ValueError: It belongs to another run; names each field that differs.
    """
    processes.from_first(lambda: self._check(identity))

  def _check(self, identity: Mapping[str, Any]) -> None:
    if not self.config.exists():
      return
    # Through JSON and back, so that a tuple equals the list it was stored as.
    identity = json.loads(files.canonical_json(identity))
    there = super().identity()
    stored = {k: v for k, v in there.items() if k in identity}
    before, now = _BEFORE | _flat(stored), _BEFORE | _flat(identity)
    different = [
      f'{name}: {before.get(name, "absent")!r} there, '
      f'{now.get(name, "absent")!r} now'
      for name in sorted(before.keys() | now.keys())
      if before.get(name, _ABSENT) != now.get(name, _ABSENT)
      and _is_compared(name, before, now)
    ]
    if different:
      raise ValueError(
        f'{self.path} holds another run. Different: {"; ".join(different)}. '
        'Choose another --workdir, or restore the setting.'
      )

  def claim(
    self, identity: Mapping[str, Any], notes: Mapping[str, Any]
  ) -> None:
    """Writes down what this run is, or checks that it is the same as before.

    What is measured may be more than before, or other things: that is added.

    Args:
      identity: All that its numbers depend on, nested JSON.
      notes: What is worth knowing beside it, e.g. versions; not compared.

    Raises:
      ValueError: As `check`.
    """
    processes.from_first(lambda: self._claim(identity, notes))

  def _claim(
    self, identity: Mapping[str, Any], notes: Mapping[str, Any]
  ) -> None:
    self._check(identity)
    content = {'identity': dict(identity), 'notes': dict(notes)}
    if self.config.exists():
      content = json.loads(self.config.read_text())
      content['identity'] = _with_added(content['identity'], identity)
    text = json.dumps(content, indent=2) + '\n'
    if not self.config.exists() or text != self.config.read_text():
      files.write_atomic(self.config, text)


def samples_path(workdir: files.PathLike, task: str, step: int) -> pathlib.Path:
  """`RunFiles.samples`, for who only reads there."""
  return pathlib.Path(workdir) / 'samples' / task / f'{step:06d}.jsonl'


# What a setting was before there was one.
_BEFORE = {'config.dtype': 'float32'}
# Where the weights are may change; which they are is compared by their hash.
_PLACES = ('config.model.path', 'config.method.network')
# Of a run whose edited model is asked; its weights imply them.
_IMPLIED = ('unedited', 'run_state')
# What is measured, as lists and by name. It may grow.
_MEASURED = ('tasks', 'eval_steps', 'analyses')
_TASK_HASHES = 'tasks'
# Settings of an analysis, by its name. Without it they move no number.
_OF_ANALYSIS = ('saliency', 'adjusted_ppl')
_ABSENT = object()


def _is_compared(
  name: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> bool:
  """Whether a difference in this field is one between two runs."""
  if name in (*_PLACES, *_IMPLIED, *(f'config.{m}' for m in _MEASURED)):
    return False
  if name.startswith(f'{_TASK_HASHES}.'):
    return name in before and name in now
  for analysis in _OF_ANALYSIS:
    if name.startswith(f'config.{analysis}.'):
      taken = (x.get('config.analyses', ()) for x in (before, now))
      return all(analysis in analyses for analyses in taken)
  return True


def _with_added(
  stored: dict[str, Any], identity: Mapping[str, Any]
) -> dict[str, Any]:
  """The identity with all that was or is now measured."""
  merged = {**stored, **identity}
  before, now = stored.get('config', {}), identity.get('config', {})
  lists = {
    name: list(dict.fromkeys([*before.get(name, ()), *now[name]]))
    for name in _MEASURED
    if name in now
  }
  if 'eval_steps' in lists:
    lists['eval_steps'].sort()
  kept = {
    name: before[name]
    for name in _OF_ANALYSIS
    if name in before and name in before.get('analyses', ())
  }
  if 'config' in identity:
    merged['config'] = {**before, **now, **lists, **kept}
  hashes = [x[_TASK_HASHES] for x in (stored, identity) if _TASK_HASHES in x]
  if hashes:
    merged[_TASK_HASHES] = dict(pair for h in hashes for pair in h.items())
  return merged


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
  if isinstance(value, dict):
    return {
      name: leaf
      for key, child in value.items()
      for name, leaf in _flat(child, f'{prefix}{key}.').items()
    }
  return {prefix.removesuffix('.'): value}
