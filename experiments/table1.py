r"""Table 1 of the paper: what 1, 10, 20 and 100 edits do to general abilities.

    python -m launch.run \
      --config=experiments/table1.py:method=rome,model=llama2_7b \
      --workdir=runs/table1_rome --data_root=data --allow_code_execution
    python -m launch.sweep --config=experiments/table1.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data --allow_code_execution

The same runs hold Table 2. TyDiQA is that of the nine official languages;
whoever has OpenCompass's files of all eleven says tydiqa in its place.

The paper, LLaMA-2-7B: ROME takes MMLU from 46.8 to 25.5 after 100 edits, MEMIT
and MEND take all else to 0, and GRACE leaves everything as it is.
"""

from experiments import base
from me_jax import config


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'method=...,model=...' and, for MEMIT and EMMET,
  'preset=...'; for MEMIT on a model that has no name here also 'mlp_dim=...',
  the width of its MLP."""
  chosen = config.parse_arg(
    arg, method='rome', model='llama2_7b', preset='', mlp_dim=''
  )
  method = base.method(
    chosen['method'], chosen['model'], chosen['preset'], chosen['mlp_dim']
  )
  tasks = base.FOR_SMALL if base.is_small(chosen['model']) else base.EIGHT
  return base.run_config(chosen['model'], method, tasks=tasks)


def sweep(arg: str | None = None) -> list[config.Cell]:
  """The four methods; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='llama2_7b')['model']
  return [cell for name in base.METHODS for cell in base.cells(model, name)]
