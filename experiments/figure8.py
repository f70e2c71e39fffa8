r"""Figure 8 of the paper: how information flows in context.

    python -m launch.run \
      --config=experiments/figure8.py:model=llama2_7b,method=rome,layers=15 \
      --workdir=runs/paper/llama2_7b_rome_l15 --data_root=data
    python -m launch.sweep --config=experiments/figure8.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data

Saliency of attention on SST-2 with a demonstration of each class, before any
edit and after 100, for ROME at six layers and MEMIT at its own.

The paper, LLaMA-2-7B unedited: text to label words (S_wp) leads in layers 0 to
5, label words to the target (S_pq) from layer 6 on.
"""

import dataclasses

from experiments import base, figure4
from me_jax import config


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` as for Figure 4."""
  return dataclasses.replace(
    figure4.get_config(arg),
    tasks=(),
    analyses=('saliency',),
    eval_steps=(0, 100),
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """ROME's layers and MEMIT's window; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  own = base.memit_name(model, *base.place(model).memit)
  return [
    cell
    for cell in figure4.sweep(f'model={model}')
    if 'method=rome' in cell.arg or cell.name == own
  ]
