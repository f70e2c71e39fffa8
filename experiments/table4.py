r"""Table 4 of the paper: what each method changes, shown by its first edit.

    python -m launch.sweep --config=experiments/table4.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data

The settings are in each run's config.json, what one edit changed in its
checkpoint and under `weight_drift`. The runs are the first steps of Table 1's.

The paper, LLaMA-2-7B: ROME edits the down-projection of layer 5, MEMIT those of
layers 4 to 8, MEND the MLPs of layers 29 to 31, GRACE acts at layer 30.
"""

import dataclasses

from experiments import table1
from me_jax import config

sweep = table1.sweep


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` as for Table 1."""
  return dataclasses.replace(
    table1.get_config(arg),
    tasks=(),
    analyses=('weight_drift',),
    eval_steps=(0, 1),
  )
