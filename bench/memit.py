"""Seconds per MEMIT batch, beside searching its facts one by one in PyTorch.

  python -m bench.memit --batch_sizes=1,10,100

Both sides search targets for the same facts with the same token rows, in one
process, with all cores; the early stop is off, so that both do the same number
of evaluations. PyTorch runs the whole network at every step, one fact after
another, as published code does, and nothing else of MEMIT; ours does the whole
edit. Needs the extra `parity` (torch).
"""

import dataclasses
import json
import math
import os
import pathlib
import platform

import jax
import numpy as np
import torch
import transformers
from absl import app, flags

from bench import memit_speed
from me_jax import config as config_lib
from me_jax import files
from me_jax.config import MemitConfig
from me_jax.data import facts as facts_lib
from me_jax.data import sources
from me_jax.edits import (
  rows,
  second_moment,
  second_moment_factor,
  templates,
)
from me_jax.models import load

_MODEL = flags.DEFINE_string('model', 'smollm2_135m', 'Name or path.')
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
_SOURCE = flags.DEFINE_enum(
  'source',
  'sample',
  facts_lib.fact_names(),
  'Where the facts come from; all but `sample` need --data_root. The more '
  'tokens follow the subject, the less a tail-only search can save.',
)
_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'Directory of the public data sets.'
)
_STEPS = flags.DEFINE_integer(
  'steps', 25, 'Evaluations of each search.', lower_bound=2
)
_SECOND_MOMENT = flags.DEFINE_string(
  'second_moment',
  None,
  'Directory of python -m launch.second_moment. Without it C is the identity, '
  'which costs the same.',
)
_JSON = flags.DEFINE_string('json', None, 'Also write the numbers here.')

# Largest difference of final losses, of what the search takes off the loss.
_SAME_LOSS = 0.05


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  threads = os.cpu_count() or 1
  torch.set_num_threads(threads)
  versions = {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'torch': torch.__version__,
    'transformers': transformers.__version__,
    'cores': threads,
    'torch threads': torch.get_num_threads(),
    'device': jax.devices()[0].device_kind,
  }
  print(', '.join(f'{name} {value}' for name, value in versions.items()))

  model = load.load_model(_MODEL.value)
  config = MemitConfig(
    layers=tuple(map(int, _LAYERS.value)),
    mom2_update_weight=config_lib.memit_update_weight(model.config.mlp_dim),
    v_num_grad_steps=_STEPS.value,
    search_batch_size=_SEARCH_BATCH_SIZE.value,
    early_stop_loss=-math.inf,
  )
  factors = _factors(model, config.layers)
  data = sources.DataSources(
    data_root=_DATA_ROOT.value and pathlib.Path(_DATA_ROOT.value)
  )
  sizes = sorted(map(int, _BATCH_SIZES.value))
  most = max(*sizes, _COMPARED.value)
  pool = facts_lib.load_facts(_SOURCE.value, data)
  if most > len(pool):
    raise app.UsageError(f'{_SOURCE.value} has {len(pool)} facts, not {most}.')
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
  if _JSON.value:
    files.write_atomic(_JSON.value, json.dumps(content, indent=2) + '\n')
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
  if _SECOND_MOMENT.value is None:
    identity = second_moment_factor.Factor(np.eye(model.config.mlp_dim))
    return dict.fromkeys(layers, identity)
  moments = {
    layer: second_moment.load(
      _SECOND_MOMENT.value, layer, {'weights': model.fingerprint}
    )
    for layer in layers
  }
  return {
    layer: second_moment_factor.load_factor(_SECOND_MOMENT.value, moment)
    for layer, moment in moments.items()
  }


if __name__ == '__main__':
  app.run(main)
