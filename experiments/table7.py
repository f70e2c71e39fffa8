r"""Table 7 of the paper: the layer of GRACE.

    python -m launch.run \
      --config=experiments/table7.py:model=llama2_7b,layer=10 \
      --workdir=runs/paper/llama2_7b_grace_l10_eps10 --data_root=data \
      --allow_code_execution
    python -m launch.sweep --config=experiments/table7.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data --allow_code_execution

eps = 10. How far prompts are from the nearest key comes with the edit scores.

The paper, LLaMA-2-7B: CommonsenseQA 8.7 at layer 10, 39.7 at 20, 46.4 at 30.
"""

from experiments import base, table6
from me_jax import config

_EPS = 10


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...,layer=...'."""
  chosen = config.parse_arg(arg, model='llama2_7b', layer='20')
  return table6.get_config(
    f'model={chosen["model"]},layer={chosen["layer"]},eps={_EPS}'
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """The layers; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  return [
    config.Cell(
      base.grace_name(model, layer, _EPS), f'model={model},layer={layer}'
    )
    for layer in base.place(model).grace_sweep
  ]
