r"""Figure 3 of the paper: three checkpoints under ROME.

    python -m launch.run --config=experiments/figure3.py:model=llama2_13b \
      --workdir=runs/paper/llama2_13b_rome_l5 --data_root=data \
      --allow_code_execution
    python -m launch.sweep --config=experiments/figure3.py --root=runs/paper \
      -- --data_root=data --allow_code_execution

MMLU, CommonsenseQA, TyDiQA and MBPP against the number of edits. Layer 5 of
each, as in the paper.

The paper: all three fall with the edits; the larger one keeps TyDiQA and MBPP
longer, and knowledge no better.
"""

from experiments import base
from me_jax import config

_CHECKPOINTS = ('llama2_7b', 'llama2_7b_chat', 'llama2_13b')


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  return base.run_config(
    model, base.rome(model), tasks=base.FOUR, eval_steps=base.CURVE
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """The checkpoints; `arg` may be 'model=...', for that alone."""
  model = config.parse_arg(arg, model='')['model']
  return [
    config.Cell(base.rome_name(m, base.place(m).rome), f'model={m}')
    for m in ([model] if model else _CHECKPOINTS)
  ]
