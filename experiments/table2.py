r"""Table 2 of the paper: what edits are worth, right after each and in the end.

    python -m launch.sweep --config=experiments/table2.py:model=llama2_7b \
      --root=runs/paper -- --data_root=data

Reliability and generalization, individual and sequential. The runs are those of
Table 1, whose benchmarks are left out here and are added by its own sweep.

The paper, LLaMA-2-7B after 100 edits: sequential reliability ROME 52.3, MEMIT
0.07, MEND 0, GRACE 99.8; individual 93.3, 87.7, 13.6, 99.8.
"""

import dataclasses

from experiments import table1
from me_jax import config

sweep = table1.sweep


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` as for Table 1."""
  return dataclasses.replace(table1.get_config(arg), tasks=('wikitext_ppl',))
