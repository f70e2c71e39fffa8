"""Compares two models, or one before and after its edits, item by item.

    python -m launch.compare runs/rome runs/memit
    python -m launch.compare runs/rome@1 runs/rome@20 --tasks=mmlu,bbh --items
    python -m launch.compare runs/rome

A state is a workdir and an edit step, `DIRECTORY@STEP`; without the step it is
the last one measured. A single workdir is compared with itself unedited: every
measured step with step 0. Reads the stored scores only.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import app, flags

from me_jax import files
from me_jax.evals import comparison
from me_jax.evals.task import Record

_TASKS = flags.DEFINE_list(
  'tasks', [], 'Which tasks, as mmlu,bbh; all that both states have if empty.'
)
_ITEMS = flags.DEFINE_bool(
  'items', False, 'List the items that flipped, with both predictions.'
)

_LEGEND = """\
Scores on the items that both states answered: in per cent, `nll_per_token` in
nats. For MMLU, BBH and TyDiQA the mean of the groups' means. p: two-sided, of
McNemar's exact test where answers are right or wrong, else of the paired
bootstrap (of the sign test where a loss is infinite). p (Holm): adjusted for
all tasks of its table.
"""
_SHOWN = 60  # characters of a prediction


class State(NamedTuple):
  """A workdir after an edit step."""

  workdir: pathlib.Path
  step: int

  def __str__(self) -> str:
    return f'{self.workdir}@{self.step}'


def main(argv: list[str]) -> None:
  try:
    if len(argv) not in (2, 3):
      raise ValueError(
        f'expected one or two of DIRECTORY or DIRECTORY@STEP, got {argv[1:]}.'
      )
    for before, after in _pairs(argv[1:]):
      print(f'## {before} -> {after}\n\n{_report(before, after)}')
    print(_LEGEND)
  except (OSError, ValueError) as e:
    sys.exit(f'Error: {e}')


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[State, State]]:
  """The states to compare."""
  named = [_parse(argument) for argument in arguments]
  if len(named) == 2:
    before, after = (_state(workdir, step) for workdir, step in named)
    yield before, after
    return
  [(workdir, step)] = named
  unedited = _state(workdir, 0)
  if step is not None:
    later = [_state(workdir, step).step]
  else:
    later = [s for s in _measured(workdir) if s > 0]
  if later in ([], [0]):
    raise ValueError(
      f'{unedited} is the unedited model itself: name another step or a second '
      f'workdir to compare it with. Measured steps: '
      f'{_listed(_measured(workdir))}.'
    )
  for s in later:
    yield unedited, State(workdir, s)


def _parse(argument: str) -> tuple[pathlib.Path, int | None]:
  path, at, step = argument.rpartition('@')
  if at and step.isdecimal() and not pathlib.Path(argument).exists():
    return pathlib.Path(path), int(step)
  return pathlib.Path(argument), None


def _state(workdir: pathlib.Path, step: int | None) -> State:
  measured = _measured(workdir)
  if step is None:
    return State(workdir, measured[-1])
  if step not in measured:
    raise ValueError(
      f'{workdir} has no scores after edit step {step}. Measured steps: '
      f'{_listed(measured)}.'
    )
  return State(workdir, step)


def _measured(workdir: pathlib.Path) -> list[int]:
  """The edit steps with scores of any task, in order."""
  if not workdir.is_dir():
    raise FileNotFoundError(f'{workdir} is not a directory.')
  found = {int(path.stem) for path in workdir.glob('scores/*/[0-9]*.jsonl')}
  if not found:
    raise FileNotFoundError(
      f'{workdir} has no scores (scores/TASK/STEP.jsonl). They come with '
      'samples: run an evaluation, or python -m launch.score.'
    )
  return sorted(found)


def _scores(state: State) -> Mapping[str, pathlib.Path]:
  """The score files by task, in alphabetical order."""
  found = state.workdir.glob(f'scores/*/{state.step:06d}.jsonl')
  return {path.parent.name: path for path in sorted(found)}


def _report(before: State, after: State) -> str:
  first, second = _scores(before), _scores(after)
  both = [task for task in first if task in second]
  chosen = _TASKS.value or both
  if missing := [task for task in chosen if task not in both]:
    raise ValueError(
      f'{before} and {after} have no scores of {", ".join(missing)} in common. '
      f'They have: {_listed(both)}.'
    )
  if not chosen:
    raise ValueError(
      f'{before} and {after} have no task in common: {_listed(list(first))} '
      f'there, {_listed(list(second))} here.'
    )
  scores = {
    task: (files.read_jsonl(first[task]), files.read_jsonl(second[task]))
    for task in chosen
  }
  parts = [
    comparison.table(
      comparison.holm(
        [comparison.compare(a, b, task) for task, (a, b) in scores.items()]
      )
    )
  ]
  if not _TASKS.value and (alone := first.keys() ^ second.keys()):
    parts.append(f'Only one of them has: {_listed(sorted(alone))}.\n')
  if _ITEMS.value:
    parts += [_flips(task, a, b) for task, (a, b) in scores.items()]
  return '\n'.join(filter(None, parts))


def _flips(task: str, before: Sequence[Record], after: Sequence[Record]) -> str:
  """The flipped items, one a line; '' if there are none."""
  lines = []
  titles = ('right to wrong', 'wrong to right')
  for title, found in zip(
    titles, comparison.flips(before, after, task), strict=True
  ):
    if found:
      lines.append(f'\n{task}, {title} ({len(found)}):\n')
    lines += [
      f'- {flip.doc_id}: {_shown(flip.before)} -> {_shown(flip.after)}, right '
      f'is {_shown(flip.target)}'
      for flip in found
    ]
  return '\n'.join([*lines, '']) if lines else ''


def _shown(value: object) -> str:
  """Escaped and cut: a text of a model may hold anything."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'{text[: _SHOWN - 3]}...'


def _listed(values: Sequence[object]) -> str:
  return ', '.join(map(str, values)) or 'none'


def _flags(argv: Sequence[str]) -> list[str]:
  """The arguments that are no flags; ends the process if a flag is wrong."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as e:
    sys.exit(f'Error: {e}')


if __name__ == '__main__':
  app.run(main, flags_parser=_flags)
