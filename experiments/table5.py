r"""Table 5 of the paper: the eight benchmarks, on the unedited model.

    python -m launch.run --config=experiments/table5.py:model=llama2_7b \
      --workdir=runs/paper/llama2_7b_unedited --data_root=data \
      --allow_code_execution

Items, metrics and modes are in the rows; `python -m launch.evaluate
--list_tasks` prints them without a model. Nothing is measured after the one
edit that a run must make.

The paper, LLaMA-2-7B: MMLU 46.8, MBPP 18.2, MATH 3.4, BBH 38.4, TyDiQA 26.8, C3
32.1, CommonsenseQA 49.6, AX-b 45.9.
"""

import dataclasses

from experiments import base
from me_jax import config


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` may be 'model=...'. All eight, of small models, too."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  run = base.run_config(
    model, base.grace(model), tasks=(), num_edits=1, eval_steps=(0,)
  )
  return dataclasses.replace(run, tasks=base.EIGHT)


def sweep(arg: str | None = None) -> list[config.Cell]:
  """One run; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  return [config.Cell(f'{model}_unedited', f'model={model}')]
