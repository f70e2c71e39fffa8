"""Seconds per benchmark item: beside PyTorch, and with and without shortcuts.

  python -m bench.evaluation --part=mmlu --data_root=DATA \
    --subjects=abstract_algebra,high_school_european_history --torch_items=20
  python -m bench.evaluation --part=generate --data_root=DATA \
    --tasks=commonsenseqa,bbh --items=216 --torch_items=20
  python -m bench.evaluation --part=generate --data_root=DATA --tasks=bbh \
    --subjects=navigate,date_understanding --items=48 --torch_items=8
  python -m bench.evaluation --part=shortcuts --data_root=DATA \
    --tasks=mmlu,bbh,commonsenseqa --items=100
  python -m bench.evaluation --part=shortcuts --data_root=DATA \
    --tasks=mmlu,bbh,commonsenseqa --items=100 --run=runs/grace

Each row is printed, and written, as soon as it is measured. The parts `mmlu`
and `generate` need the extra `parity` (torch) and run on the CPU, both sides in
turn, in one process, with all cores. The program fails if an answer differs
that no near tie explains.
"""

import dataclasses
import functools
import json
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags

from bench.passes import MakeTask, Passes, settings
from launch import evaluation, log
from me_jax import files, rebuild, trees
from me_jax.config import EvalConfig
from me_jax.evals import registry
from me_jax.evals.mmlu import Mmlu
from me_jax.evals.mmlu_subjects import SUBJECTS
from me_jax.evals.task import Task, TaskContext
from me_jax.models import load

_PART = flags.DEFINE_enum(
  'part',
  None,
  ('mmlu', 'generate', 'shortcuts'),
  'What is measured: MMLU beside four full texts in PyTorch, tasks answered in '
  'writing beside generate of transformers, or what each shortcut saves.',
  required=True,
)
_MODEL = flags.DEFINE_string('model', 'smollm2_135m', 'Name or path.')
_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'Directory of the public data sets.'
)
_SUBJECTS = flags.DEFINE_list(
  'subjects',
  [],
  'Of MMLU, for --part=mmlu; for the others, the only groups of the tasks to '
  'be asked, e.g. two tasks of BBH with as many items each as in a whole '
  'evaluation.',
)
_TASKS = flags.DEFINE_list('tasks', [], 'For the other parts.')
_ITEMS = flags.DEFINE_integer(
  'items',
  0,
  'Items of each task or subject, a seeded subset; 0 for all.',
  lower_bound=0,
)
_TORCH_ITEMS = flags.DEFINE_integer(
  'torch_items',
  0,
  'PyTorch answers only so many items of each subject (the first ones) or '
  'task (evenly spread); 0 for all. Seconds per item are compared.',
  lower_bound=0,
)
_LAYER = flags.DEFINE_integer(
  'layer',
  5,
  'For --part=shortcuts: the edited layer; what is below it is not computed '
  'again for the next state.',
  lower_bound=0,
)
_RUN = flags.DEFINE_string(
  'run',
  None,
  'For --part=shortcuts: a finished run of GRACE, whose last state is asked '
  'with the unedited answers that it leaves as they are copied, and without.',
)
_ALL_OFF = flags.DEFINE_bool(
  'all_off', False, 'For --part=shortcuts: also without all of them at once.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Also write the numbers here, as JSON.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  log.show_warnings()
  part, limit = _PART.value, _ITEMS.value or None
  _check_flags()
  edited = rebuild.edited_state(_RUN.value) if _RUN.value else None
  model = edited.model if edited else load.load_model(_MODEL.value)
  if edited and edited.editor is None:
    raise app.UsageError(
      f'--run={_RUN.value}: the edits of {edited.method} are in the weights, '
      'so that no answer stays as it is.'
    )
  if _LAYER.value >= model.config.num_layers:
    raise app.UsageError(
      f'--layer={_LAYER.value}: {model.name} has {model.config.num_layers} '
      'layers, counted from 0.'
    )
  versions = _versions() | {
    'model': model.name,
    'weights': model.fingerprint[:12],
  }
  print(', '.join(f'{name} {value}' for name, value in versions.items()))
  passes = Passes(
    model,
    sources=evaluation.sources(_DATA_ROOT.value),
    is_chat=evaluation.is_chat(model.name, EvalConfig()),
    layer=_LAYER.value,
    edited=edited,
  )
  parts = {'mmlu': _mmlu, 'generate': _generate, 'shortcuts': _shortcuts}
  # What is measured is seen at once, also through a pipe.
  sys.stdout.reconfigure(line_buffering=True)
  rows, unexplained = [], []
  for row, failures in parts[part](passes, limit):
    rows.append(row)
    unexplained += failures
    if _OUTPUT.value:
      content = {
        'part': part,
        'versions': versions,
        'flags': {
          flag.name: flag.value
          for flag in (
            _SUBJECTS,
            _TASKS,
            _ITEMS,
            _TORCH_ITEMS,
            _LAYER,
            _RUN,
            _ALL_OFF,
          )
        },
        'rows': rows,
      }
      files.write_atomic(_OUTPUT.value, json.dumps(content, indent=2) + '\n')
  if unexplained:
    raise SystemExit(
      f'{len(unexplained)} answers differ though nothing was nearly tied: '
      f'{", ".join(unexplained[:20])}.'
    )


# Rows as JSON, each with the items whose answers differ without a near tie.
Rows = Iterator[tuple[dict[str, Any], list[str]]]


def _mmlu(passes: Passes, limit: int | None) -> Rows:
  # Only this part and the next need PyTorch.
  from bench import mmlu_speed

  plain_model = _plain_model(passes.model)
  print(mmlu_speed.HEADER)
  timings = []
  for index, subject in enumerate(_SUBJECTS.value):
    timing = mmlu_speed.time_subject(
      passes,
      plain_model,
      subject,
      limit=limit,
      torch_items=_TORCH_ITEMS.value or None,
      torch_first=index % 2 == 1,
    )
    timings.append(timing)
    print(mmlu_speed.line(timing), *mmlu_speed.details(timing), sep='\n')
    yield (
      _row(timing, ratio=timing.ratio),
      [d.doc_id for d in timing.differences if not d.is_near_tie],
    )
  total = mmlu_speed.overall(timings)
  print(mmlu_speed.line(total))
  yield _row(total, ratio=total.ratio), []


def _generate(passes: Passes, limit: int | None) -> Rows:
  from bench import generation_speed

  plain_model = _plain_model(passes.model)
  makers = _makers(passes, 'gen')
  print(generation_speed.HEADER)
  for index, make in enumerate(makers):
    timing = generation_speed.time_task(
      passes,
      plain_model,
      make,
      limit=limit,
      torch_items=_TORCH_ITEMS.value or None,
      torch_first=index % 2 == 1,
    )
    print(generation_speed.line(timing))
    yield _row(timing, ratio=timing.ratio), timing.unexplained


def _shortcuts(passes: Passes, limit: int | None) -> Rows:
  from bench import shortcuts

  makers = _makers(passes, 'gen', 'ppl')
  print(shortcuts.HEADER)
  for name, make in zip(_TASKS.value, makers, strict=True):
    for timing in shortcuts.time_task(
      passes,
      make,
      limit=limit,
      with_all_off=_ALL_OFF.value,
    ):
      print(shortcuts.line(timing))
      differ = [d.doc_id for d in timing.differences if not d.is_near_tie]
      yield (
        _row(timing, factor=timing.factor, cpu_factor=timing.cpu_factor),
        [f'{name} without {timing.without}: {d}' for d in differ],
      )


def _makers(passes: Passes, *modes: str) -> list[MakeTask]:
  """The tasks of the flag.

  What is wrong with one of them is an error now, not after hours.
  """
  makers = []
  for name in _TASKS.value:
    make = functools.partial(_make_task, name)
    task = passes.task(make, settings())
    if task.mode not in modes:
      raise app.UsageError(
        f'--part={_PART.value}: {name} is told by likelihoods, nothing is '
        'generated.'
      )
    try:
      groups = {item.group for item in task.items()}
    except (OSError, ValueError) as e:
      raise SystemExit(f'Error: {e}') from e
    if missing := set(_SUBJECTS.value) - groups:
      raise app.UsageError(
        f'--subjects: {name} has no {", ".join(sorted(missing))}.'
      )
    makers.append(make)
  return makers


def _make_task(name: str, context: TaskContext) -> Task:
  """The task, of which only the groups of the flag are asked."""
  task = registry.make_task(name, context)
  if not _SUBJECTS.value:
    return task
  if isinstance(task, Mmlu):
    return dataclasses.replace(task, subjects=tuple(_SUBJECTS.value))
  items = [i for i in task.items() if i.group in _SUBJECTS.value]
  return dataclasses.replace(task, docs=lambda: items, macro_over=())


def _check_flags() -> None:
  """Returns if the flags go together."""
  part = _PART.value
  wanted, given = (
    (_SUBJECTS, SUBJECTS) if part == 'mmlu' else (_TASKS, registry.TASKS)
  )
  if not wanted.value:
    raise app.UsageError(f'--part={part} needs --{wanted.name}.')
  unknown = [n for n in wanted.value if registry.base_name(n) not in given]
  if unknown:
    raise app.UsageError(
      f'--{wanted.name}: unknown {", ".join(unknown)}. There are '
      f'{", ".join(given)}.'
    )
  if _RUN.value and (_ALL_OFF.value or part != 'shortcuts'):
    raise app.UsageError('--run is for --part=shortcuts, without --all_off.')
  if part != 'shortcuts' and jax.default_backend() != 'cpu':
    raise app.UsageError(
      'PyTorch runs on the CPU here, and both sides must run on the same '
      'device. Set JAX_PLATFORMS=cpu.'
    )


def _versions() -> dict[str, Any]:
  """What a time depends on; sets the threads of PyTorch."""
  cores = _cores()
  found = {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'cores': cores,
    'device': jax.devices()[0].device_kind,
  }
  if _PART.value != 'shortcuts':
    import torch
    import transformers

    torch.set_num_threads(cores)
    found |= {
      'torch': torch.__version__,
      'torch threads': torch.get_num_threads(),
      'transformers': transformers.__version__,
    }
  return found


def _cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not everywhere
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _plain_model(model: load.LanguageModel) -> Any:
  """PyTorch's model with the same weights."""
  from bench import torch_model

  leaves = trees.flatten(model.params)
  return torch_model.build_model(
    model.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
  )


def _row(timing: Any, **properties: float) -> dict[str, Any]:
  return dataclasses.asdict(timing) | properties


if __name__ == '__main__':
  app.run(main)
