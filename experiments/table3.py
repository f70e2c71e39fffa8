r"""Table 3 of the paper: adjusted perplexity of what ROME leaves of a model.

    python -m launch.run \
      --config=experiments/table3.py:model=llama2_7b,layer=5 \
      --workdir=runs/paper/llama2_7b_rome_l5 --data_root=data
    python -m launch.sweep --config=experiments/table3.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data

Vicuna-7B-v1.5 reads the answers to CommonsenseQA, which are not cut where they
are decided; another scorer is --config.adjusted_ppl.scorer.name=MODEL. Small
models are judged by themselves, unedited.

The paper, LLaMA-2-7B, layer 5: 7.63 after one edit, 14.29 after 20, 14.04 after
100; layer 30: 1444.29; '/' where no answer is long enough.
"""

from experiments import base
from me_jax import config


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...,layer=...'."""
  chosen = config.parse_arg(arg, model='llama2_7b', layer='')
  model = chosen['model']
  return base.run_config(
    model,
    base.rome(model, chosen['layer']),
    tasks=('commonsenseqa_whole',),
    analyses=('adjusted_ppl',),
    eval_steps=base.CURVE,
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """ROME at each layer; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  return [
    config.Cell(base.rome_name(model, layer), f'model={model},layer={layer}')
    for layer in base.place(model).rome_sweep
  ]
