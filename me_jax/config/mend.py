"""Hyper-parameters of MEND and of the training of its networks."""

import dataclasses
from typing import Any

from me_jax.config.checks import ascending, at_least, one_of
from me_jax.config.run import ModelSource
from me_jax.typing import DTYPES


@dataclasses.dataclass(kw_only=True)
class MendConfig:
  """MEND's hyper-parameters; `mend_preset` fits them to a model.

  What an edit does follows from the first seven; the others are those of
  `launch.train_mend`, which made the networks.

  Attributes:
    name: Always 'mend'.
    layers: Layers whose gate, up and down projections are edited.
    rank: Of the layers of the gradient transform; at most its width.
    n_hidden: Layers before the last one.
    edit_lr: Step size of an edit before training, for every matrix.
    step_sign: 'minus' starts as a step down the edit's loss, 'plus' as a step
      up, as the authors' code does.
    network: File of the trained networks.
    max_length: Tokens; training leaves out examples with a longer text.
    lr: Adam's step size for the networks,
    alpha_lr: and for the step sizes of edits.
    lr_schedule: 'constant', or 'cosine', half a wave from these to 0 at
      `max_iters`.
    c_edit: Weight of the negative log-likelihood of the target,
    c_loc: and of the divergence on unrelated text.
    outer: What the target is asked with: the 'rephrase', the 'same' prompt as
      the edit's, or 'both', whose mean is taken.
    batch: Facts that one example writes at once.
    accumulate: Examples per step of Adam.
    clip: Largest norm of a gradient.
    max_iters: Examples at most,
    val_interval: from one validation to the next,
    patience: and without a better one, after which training ends; at the next
      validation, so at least `val_interval`.
    seed: Of the networks and the order of examples.
  """

  name: str = 'mend'
  layers: tuple[int, ...] = (29, 30, 31)
  rank: int = 1920
  n_hidden: int = 1
  edit_lr: float = 1e-4
  step_sign: str = 'minus'
  network: str = ''
  max_length: int = 40
  lr: float = 1e-6
  alpha_lr: float = 1e-4
  lr_schedule: str = 'constant'
  c_edit: float = 0.1
  c_loc: float = 1.0
  outer: str = 'rephrase'
  batch: int = 1
  accumulate: int = 10
  clip: float = 100.0
  max_iters: int = 100_000
  val_interval: int = 1_000
  patience: int = 20_000
  seed: int = 42

  def __post_init__(self):
    one_of('method.step_sign', self.step_sign, ('minus', 'plus'))
    one_of('method.lr_schedule', self.lr_schedule, ('constant', 'cosine'))
    one_of('method.outer', self.outer, ('rephrase', 'same', 'both'))
    for name in ('rank', 'batch', 'accumulate', 'max_iters', 'val_interval'):
      at_least(f'method.{name}', getattr(self, name), 1)
    at_least('method.n_hidden', self.n_hidden, 0)
    ascending('method.layers', self.layers)
    for name in ('val_interval', 'max_iters'):
      if getattr(self, name) % self.accumulate:
        raise ValueError(
          f'method.{name} must be a multiple of method.accumulate = '
          f'{self.accumulate}, got {getattr(self, name)}.'
        )
    if self.patience < self.val_interval:
      raise ValueError(
        f'method.patience = {self.patience} examples end before the first '
        f'validation, after method.val_interval = {self.val_interval}. Raise '
        'the one or lower the other.'
      )


def mend_preset(model: str, **changes: Any) -> MendConfig:
  """MEND for a model by name.

  The last three of its layers, as for LLaMA-2-7B. There the networks have rank
  1920 for a width of 15104, an eighth; small models have a sixteenth or less:
  rank 128 for 2112 already costs as much as the layers that are trained
  through.

  Args:
    model: The model; all but the small ones get the published values, which
      means layers 29 to 31 for the 40 of LLaMA-2-13B, too.
    **changes: Of other fields.
  """
  values = {
    'smollm2_135m': {'layers': (27, 28, 29), 'rank': 128},
    'tiny': {'layers': (1, 2, 3), 'rank': 6},
  }
  return MendConfig(**{**values.get(model, {}), **changes})


@dataclasses.dataclass(kw_only=True)
class MendTrainingConfig:
  """One training of MEND's networks, which a model's weights outlive.

  Attributes:
    model: Whose edits the networks are to make.
    dtype: As in `RunConfig`, and that of the runs that edit with them.
    method: Hyper-parameters.
    facts: Pools to learn from, by name, as in `FactsConfig`.
    evaluation: Pools that the networks will be judged by: what shares a subject
      or any prompt with these is neither learned from nor validated with.
    facts_per_pool: Facts drawn from each; 0 for all.
    val_facts: Facts of these set aside for validation; no subject or prompt of
      theirs is learned from.
  """

  model: ModelSource
  method: MendConfig
  dtype: str = 'float32'
  facts: tuple[str, ...] = ('zsre_train', 'counterfact_train')
  evaluation: tuple[str, ...] = ('zsre',)
  facts_per_pool: int = 0
  val_facts: int = 200

  def __post_init__(self):
    one_of('dtype', self.dtype, DTYPES)
    at_least('facts_per_pool', self.facts_per_pool, 0)
    at_least('val_facts', self.val_facts, 1)
