r"""Figure 6 of the paper: how far edited weights are from what they were.

    python -m launch.run \
      --config=experiments/figure6.py:model=llama2_7b,layer=5 \
      --workdir=runs/paper/llama2_7b_rome_l5 --data_root=data
    python -m launch.sweep --config=experiments/figure6.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data

Pearson's R between the edited matrix and the original against the number of
edits, ROME at six layers; with it the relative change, the ratio of the largest
singular values and the largest entry.

The paper, LLaMA-2-7B: close to 1 below 15 edits, then falling, more slowly for
layers 20, 25 and 30.
"""

from experiments import base, table3
from me_jax import config

sweep = table3.sweep


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...,layer=...'."""
  chosen = config.parse_arg(arg, model='llama2_7b', layer='')
  model = chosen['model']
  return base.run_config(
    model,
    base.rome(model, chosen['layer']),
    tasks=(),
    analyses=('weight_drift',),
    eval_steps=base.CURVE,
  )
