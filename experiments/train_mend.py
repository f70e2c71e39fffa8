r"""Training of MEND's networks for one model.

    python -m launch.train_mend \
      --config=experiments/train_mend.py:model=smollm2_135m \
      --workdir=runs/train_mend --data_root=data

The published values, for a training of days on an accelerator; for a small
model values with which half an hour of one core gets somewhere. There the
loss is also of the edit's own prompt: with other wordings alone, validation had
84 % of the target's tokens right after these and 74 % after the own prompt. The
step size falls: held, the scores of one validation were up to 17 points from
those of the next.
"""

from me_jax import config

_FACTS = ('zsre_train', 'counterfact_train')


def get_config(arg: str | None = None) -> config.MendTrainingConfig:
  """The training; `arg` may be 'model=...'."""
  chosen = config.parse_arg(arg, model='smollm2_135m')
  small = chosen['model'] in ('smollm2_135m', 'tiny')
  method = config.mend_preset(chosen['model'])
  if small:
    method = config.mend_preset(
      chosen['model'],
      lr=1e-4,
      alpha_lr=3e-5,
      lr_schedule='cosine',
      max_length=24,
      outer='both',
      max_iters=12_000,
      val_interval=1_000,
    )
  return config.MendTrainingConfig(
    model=config.ModelSource(name=chosen['model']),
    method=method,
    facts=_FACTS,
    facts_per_pool=2_500 if small else 0,
    val_facts=100 if small else 200,
  )
