r"""Figure 7 of the paper: ROME without the constraint of the second moment.

    python -m launch.run \
      --config=experiments/figure7.py:model=llama2_7b,method=rome_without_c \
      --workdir=runs/paper/llama2_7b_rome_without_c --data_root=data \
      --allow_code_execution
    python -m launch.sweep --config=experiments/figure7.py --root=runs/paper \
      -- --data_root=data --allow_code_execution

The runs of Figure 3, and LLaMA-2-7B with the identity in place of C.

The paper: without C all four benchmarks fall more, TyDiQA, CommonsenseQA and
MBPP most; after some 20 edits C hardly helps.
"""

from experiments import base, figure3
from me_jax import config


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...,method=rome' or 'method=rome_without_c'."""
  chosen = config.parse_arg(arg, model='llama2_7b', method='rome')
  model = chosen['model']
  return base.run_config(
    model,
    base.method(chosen['method'], model),
    tasks=base.FOUR,
    analyses=('weight_drift',),
    eval_steps=base.CURVE,
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """Figure 3's runs and the one without; `arg` may be 'model=...', for that
  model alone."""
  model = config.parse_arg(arg, model='')['model']
  without = model or 'llama2_7b'
  return [
    *figure3.sweep(arg),
    config.Cell(
      f'{without}_rome_without_c', f'model={without},method=rome_without_c'
    ),
  ]
