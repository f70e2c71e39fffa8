r"""The paper's questions asked of a small model, on a processor.

    python -m launch.second_moment --layers=4,5,6,7,8,15,25 --n_samples=1000 \
      --max_length=512 --corpus=wikipedia_passages --data_root=DATA \
      --directory=runs/second_moments
    python -m launch.sweep --config=experiments/study.py --root=runs/study \
      --jobs=2 -- --data_root=DATA --second_moments=runs/second_moments
    python -m launch.document --root=runs/study \
      --template=docs/results/smollm2_135m.template.md \
      --output=docs/results/smollm2_135m.md

Four methods over the same 100 facts; then, over the first 50 of them and with
one thing changed at a time, ROME's layer and its second moment, MEMIT's batch
size and GRACE's radius. The grids of the tables and figures hold more of each,
at other sizes under the same names: these runs want a --root of their own.

The paper, LLaMA-2-7B: weight editors forget and ruin the model, GRACE keeps
both and does not generalise.
"""

import dataclasses

from experiments import base
from me_jax import config

_EPS = (5, 10, 20)
_BATCH_SIZES = (10, 50)
_PASSAGES = 1_000  # some 130,000 tokens, 87 for each unit of the MLP
_LIMIT = 10  # windows of WikiText, answers, and sentences of SST-2
_VARIED_EDITS = 50  # facts of a run in which something is changed
_USUAL = {'layer': '', 'batch_size': '1', 'eps': '1'}


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'method=...,model=...' and for ROME 'layer=15', for MEMIT
  'batch_size=...', for GRACE 'eps=...'."""
  chosen = config.parse_arg(arg, method='rome', model='smollm2_135m', **_USUAL)
  name, model = chosen['method'], chosen['model']
  for setting, taker in (('layer', 'rome'), ('eps', 'grace')):
    if chosen[setting] != _USUAL[setting] and name != taker:
      raise ValueError(
        f'{setting} is for {taker} only, got {setting}={chosen[setting]} and '
        f'method={name}.'
      )
  makers = {
    'rome': lambda: base.rome(model, chosen['layer']),
    'memit': lambda: base.memit(model),
    'grace': lambda: base.grace(model, eps=chosen['eps']),
  }
  method = makers.get(name, lambda: base.method(name, model))()
  is_varied = name not in base.METHODS or any(
    chosen[setting] != usual for setting, usual in _USUAL.items()
  )
  varied = {'num_edits': _VARIED_EDITS, 'eval_steps': (0, _VARIED_EDITS)}
  # GRACE leaves the weights alone.
  of_weights = () if name == 'grace' else ('weight_drift', 'saliency')
  return base.run_config(
    model,
    method,
    tasks=('wikitext_ppl', 'commonsenseqa_whole'),
    edit_batch_size=int(chosen['batch_size']),
    analyses=(*of_weights, 'adjusted_ppl'),
    limit=_LIMIT,
    saliency=config.SaliencyConfig(limit=_LIMIT, seeds=(42,)),
    second_moment=dataclasses.replace(
      base.second_moment(model), n_samples=_PASSAGES
    ),
    **(varied if is_varied else {}),
  )


def sweep(arg: str | None = None) -> list[config.Cell]:
  """All of them, what matters most first; `arg` may be 'model=...'."""
  model = config.parse_arg(arg, model='smollm2_135m')['model']
  at = base.place(model)
  made = lambda name, settings: config.Cell(name, f'model={model},{settings}')
  return [
    *(cell for name in base.METHODS for cell in base.cells(model, name)),
    *(
      made(base.grace_name(model, at.grace, eps), f'method=grace,eps={eps}')
      for eps in _EPS
    ),
    made(f'{model}_rome_without_c', 'method=rome_without_c'),
    *(
      made(base.rome_name(model, layer), f'method=rome,layer={layer}')
      for layer in at.rome_sweep[2::2]  # middle and deep: 15, 25
    ),
    *(
      made(
        f'{base.memit_name(model, *at.memit)}_b{size}',
        f'method=memit,batch_size={size}',
      )
      for size in _BATCH_SIZES
    ),
  ]
