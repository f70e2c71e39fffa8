r"""Table 6 of the paper: the radius of GRACE's keys.

    python -m launch.run \
      --config=experiments/table6.py:model=llama2_7b,eps=5 \
      --workdir=runs/paper/llama2_7b_grace_l20_eps5 --data_root=data \
      --allow_code_execution
    python -m launch.sweep --config=experiments/table6.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data --allow_code_execution

Layer 20, not the 30 of Table 1. Trigger rates, number of keys and radii come
with the scores.

The paper, LLaMA-2-7B: from eps = 1 to 20 generalization rises from 30.2 to 97.3
and CommonsenseQA falls from 44.1 to 12.1.
"""

from experiments import base
from me_jax import config

_EPS = (1, 5, 10, 20)
_LAYER = 20


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...,eps=...,layer=...'."""
  chosen = config.parse_arg(arg, model='llama2_7b', eps='1', layer=str(_LAYER))
  model = chosen['model']
  return base.run_config(
    model,
    base.grace(model, chosen['layer'], chosen['eps']),
    tasks=(*base.FOUR, 'wikitext_ppl') if base.is_small(model) else base.FOUR,
    eval_steps=(0, 100),
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """The radii; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  layer = min(_LAYER, base.place(model).grace_sweep[-1])
  return [
    config.Cell(
      base.grace_name(model, layer, eps),
      f'model={model},eps={eps},layer={layer}',
    )
    for eps in _EPS
  ]
