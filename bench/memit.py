"""Seconds per MEMIT batch, beside searching its facts one by one in PyTorch.

  python -m bench.memit --batch_sizes=1,10,100

Both sides search targets for the same facts with the same token rows, in one
process, with all cores; the early stop is off, so that both do the same number
of evaluations. PyTorch runs the whole network at every step, one fact after
another, as published code does, and nothing else of MEMIT; ours does the whole
edit. Needs the extra `parity` (torch). A second moment (--second_moment) costs
as much as the identity.
"""

import dataclasses
import json
import math

import numpy as np
from absl import app, flags

from bench import facts, memit_speed
from me_jax import config as config_lib
from me_jax import files
from me_jax.config import MemitConfig
from me_jax.edits import (
  rows,
  second_moment_factor,
  templates,
)
from me_jax.models import load

_LAYERS = flags.DEFINE_list('layers', ['4', '5', '6', '7', '8'], 'Edited.')
_BATCH_SIZES = flags.DEFINE_list(
  'batch_sizes', ['1', '10', '100'], 'Numbers of facts timed as one batch.'
)
_COMPARED = flags.DEFINE_integer(
  'compared', 10, 'Facts searched in PyTorch, too; 0 for none.', lower_bound=0
)
_SEARCH_BATCH_SIZE = flags.DEFINE_integer(
  'search_batch_size', 16, 'Facts searched at once.', lower_bound=1
)

# Largest difference of final losses, of what the search takes off the loss.
_SAME_LOSS = 0.05


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  versions = facts.all_cores()

  model = load.load_model(facts.MODEL.value)
  config = MemitConfig(
    layers=tuple(map(int, _LAYERS.value)),
    mom2_update_weight=config_lib.memit_update_weight(model.config.mlp_dim),
    v_num_grad_steps=facts.STEPS.value,
    search_batch_size=_SEARCH_BATCH_SIZE.value,
    early_stop_loss=-math.inf,
  )
  factors = _factors(model, config.layers)
  sizes = sorted(map(int, _BATCH_SIZES.value))
  most = max(*sizes, _COMPARED.value)
  pool = facts.pool()
  if most > len(pool):
    raise app.UsageError(f'There are {len(pool)} facts, not {most}.')
  drawn = templates.draw_templates(
    model.config,
    model.params,
    model.tokenizer,
    length_params=config.context_template_length_params,
    seed=0,
  )
  requests = [
    rows.build_rows(model.tokenizer, r, drawn)[0] for r in pool[:most]
  ]

  print(memit_speed.HEADER)
  timings = []
  for size in sizes:
    timings.append(
      memit_speed.time_batch(model, config, factors, requests[:size])
    )
    print(memit_speed.line(timings[-1]), flush=True)
  content = {
    'versions': versions,
    'batches': [dataclasses.asdict(t) for t in timings],
  }
  if _COMPARED.value:
    content['compared'] = memit_speed.compare(
      model, config, factors, requests[: _COMPARED.value]
    )
  if facts.JSON.value:
    files.write_atomic(facts.JSON.value, json.dumps(content, indent=2) + '\n')
  # Written so that a NaN fails.
  if _COMPARED.value:
    worst = content['compared']['loss_difference']
    if not worst <= _SAME_LOSS:
      raise SystemExit(
        f'The final losses differ by {worst:.1%} of what the search takes off '
        f'them, more than {_SAME_LOSS:.0%}: the two sides did not do the same '
        'search.'
      )


def _factors(model, layers) -> dict[int, second_moment_factor.Factor]:
  if facts.SECOND_MOMENT.value is not None:
    return facts.factors(model, layers)
  identity = second_moment_factor.Factor(np.eye(model.config.mlp_dim))
  return dict.fromkeys(layers, identity)


if __name__ == '__main__':
  app.run(main)
