r"""Figure 5 of the paper: MEMIT's batch size.

    python -m launch.run \
      --config=experiments/figure5.py:model=llama2_7b,batch_size=100 \
      --workdir=runs/paper/llama2_7b_memit_l4-8_b100 --data_root=data
    python -m launch.sweep --config=experiments/figure5.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data

CommonsenseQA against the number of edited facts, up to 1,000, one line a batch
size; the first 100 are the facts of the other experiments. Subjects may come
again, or there would be no 1,000; of facts about one subject the later ones
stand.

The paper, LLaMA-2-7B: at equal numbers of facts larger batches do less harm.
"""

from experiments import base
from me_jax import config

_BATCH_SIZES = (1, 10, 100, 1000)
_POINTS = (1, 10, 20, 50, 100, 200, 500, 1000)


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'model=...,batch_size=...'."""
  chosen = config.parse_arg(arg, model='llama2_7b', batch_size='1')
  model, size = chosen['model'], int(chosen['batch_size'])
  return base.run_config(
    model,
    base.memit(model),
    tasks=('commonsenseqa',),
    num_edits=1000,
    edit_batch_size=size,
    eval_steps=(0, *(n for n in _POINTS if n % size == 0)),
    facts=config.FactsConfig(name='zsre', subjects='any'),
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """The batch sizes; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  name = base.memit_name(model, *base.place(model).memit)
  return [
    config.Cell(f'{name}_b{size}', f'model={model},batch_size={size}')
    for size in _BATCH_SIZES
  ]
