"""What programs that evaluate have in common."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from me_jax.config import EvalConfig
from me_jax.data.sources import DataSources
from me_jax.edits.editor import Editor
from me_jax.evals import registry
from me_jax.evals.task import Task, TaskContext
from me_jax.models.config import PRESETS
from me_jax.sandbox.execute import Sandbox
from me_jax.typing import Tokenizer


def sources(data_root: str | None) -> DataSources:
  """Where data are looked for."""
  path = lambda value: pathlib.Path(value) if value else None
  return DataSources(
    data_root=path(data_root), env_root=path(os.environ.get('ME_JAX_DATA'))
  )


def make_tasks(
  names: Sequence[str],
  *,
  model: str,
  tokenizer: Tokenizer | None,
  data: DataSources,
  settings: EvalConfig,
  allow_code_execution: bool,
  max_positions: int | None = None,
) -> list[Task]:
  """The tasks, ready to be asked of a model and scored.

  Raises:
    ValueError: There is no such task, one runs code and that is not allowed,
      or its window is longer than `max_positions`, the longest sequence that
      the model was trained for.
    RuntimeError: Code cannot be kept apart on this machine.
  """
  runs_code = [
    name for name in names if registry.base_name(name) in registry.RUNS_CODE
  ]
  if runs_code and not allow_code_execution:
    raise ValueError(
      f'{", ".join(runs_code)}: scoring runs programs that the model wrote. '
      'Add --allow_code_execution if this machine may do that, in a sandbox.'
    )
  sandbox = None
  if runs_code:
    sandbox = Sandbox()
    print(sandbox.walls, flush=True)
  context = TaskContext(
    sources=data,
    tokenizer=tokenizer,
    settings=settings,
    is_chat=is_chat(model, settings),
    sandbox=sandbox,
  )
  tasks = [registry.make_task(name, context) for name in names]
  for task in tasks:
    if max_positions and task.context.window > max_positions:
      raise ValueError(
        f'{task.name} has a window of {task.context.window} tokens, and '
        f'{model} was trained for {max_positions}: ask '
        f'{registry.base_name(task.name)}@{max_positions} instead.'
      )
  return tasks


def is_chat(model: str, settings: EvalConfig) -> bool:
  """Whether dialogues are put to the model in chat markup.

  What 'auto' means is known of the presets, by name or by hub id.
  """
  if settings.prompts == 'auto':
    return any(
      preset.is_chat
      for name, preset in PRESETS.items()
      if model in (name, preset.source)
    )
  return settings.prompts == 'chat'


def prompt_kind(model: str, settings: EvalConfig) -> str:
  """'chat' or 'base', as a run says and keeps it."""
  return 'chat' if is_chat(model, settings) else 'base'


def acting(editor: Editor | None) -> dict[str, Any]:
  """What a predictor needs for a method that acts in the forward pass."""
  if editor is None:
    return {}
  return {
    'interventions': editor.task_interventions or editor.interventions,
    'shown': editor.shown,
    'whole_prompts': editor.needs_whole_prompts,
  }
