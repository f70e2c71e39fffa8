"""Training of MEND's networks on a model that stays as it is.

Mitchell et al., *Fast Model Editing at Scale* (2022), section 3.3. For each
example, with θ̃ the model after the edit that the networks make of its gradient,

    L = c_edit NLL(target | prompt; θ̃) + c_loc KL(θ ‖ θ̃; unrelated text)

The prompt is the edit's in other words, as the authors have it, or the edit's
own, or both (`MendConfig.outer`).

The factors of the gradient do not depend on the networks, so no second
derivative is needed, and θ̃ enters as low-rank terms of the layers from the
first edited one on: no edited kernel is formed, nor the gradient of one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.config import MendConfig
from me_jax.edits import mend_examples, mend_factors, mend_network, target_texts
from me_jax.edits.mend_examples import Group, Prepared
from me_jax.edits.mend_network import NetworkParams, Statistics
from me_jax.models import llama
from me_jax.models.config import ModelConfig
from me_jax.typing import Params


class TrainState(NamedTuple):
  """All that a step changes. A pytree.

  Attributes:
    params: Networks and step sizes.
    statistics: Of the token rows, by network.
    opt_state: Of the optimizer.
  """

  params: NetworkParams
  statistics: dict[str, Statistics]
  opt_state: Any


Scores = dict[str, jax.Array]
Update = Callable[[Params, TrainState, Group], tuple[TrainState, Scores]]
Validate = Callable[[Params, TrainState, Group], Scores]


def optimizer(config: MendConfig) -> optax.GradientTransformation:
  """Adam after clipping, with a step size of its own for those of edits."""
  steps = config.max_iters // config.accumulate

  def adam(lr: float) -> optax.GradientTransformation:
    if config.lr_schedule == 'cosine':
      return optax.adam(optax.cosine_decay_schedule(lr, steps))
    return optax.adam(lr)

  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.partition(
      {
        'networks': adam(config.lr),
        'edit_lrs': adam(config.alpha_lr),
      },
      {'networks': 'networks', 'edit_lrs': 'edit_lrs'},
    ),
  )


def init_state(config: MendConfig, model: ModelConfig) -> TrainState:
  """The state before the first step.

  Raises:
    ValueError: The model does not have the layers.
  """
  if not 0 <= config.layers[0] <= config.layers[-1] < model.num_layers:
    raise ValueError(
      f'method.layers must be in 0 ... {model.num_layers - 1}, got '
      f'{tuple(config.layers)}.'
    )
  params = mend_network.init_params(config, model)
  return TrainState(
    params,
    mend_network.init_statistics(config, model),
    optimizer(config).init(params),
  )


def make_update(
  config: MendConfig, model: ModelConfig, mesh: Mesh | None = None
) -> Update:
  """A compiled step: `update(base params, state, group) -> (state, scores)`.

  The step's examples are computed side by side, which is what accumulating
  them one by one comes to: the networks do not change in between, and each
  example has the running statistics up to itself. The state given is used up.
  Scores are means over the examples, before the step. On a mesh each device has
  all of the state.
  """
  tx = optimizer(config)

  def update(base, state, group):
    raw, _ = _raw_factors(config, model, base, group)
    statistics, used = mend_network.running_moments(state.statistics, raw)

    def loss(params):
      scores = edited_scores(config, model, base, params, used, raw, group)
      return scores['loss'], scores

    grads, scores = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    scores['grad_norm'] = optax.tree.norm(grads)
    return TrainState(params, statistics, opt_state), scores

  return jax.jit(
    update, donate_argnums=1, out_shardings=sharding.replicated(mesh)
  )


def make_validate(config: MendConfig, model: ModelConfig) -> Validate:
  """A compiled `validate(base params, state, group) -> scores` per fact.

  The statistics stay as they are. Arrays [E * batch].
  """

  def validate(base, state, group):
    raw, _ = _raw_factors(config, model, base, group)
    used = mend_network.frozen_moments(state.statistics, raw)
    return edited_scores(
      config, model, base, state.params, used, raw, group, per_fact=True
    )

  return jax.jit(validate)


def edited_scores(
  config: MendConfig,
  model: ModelConfig,
  base: Params,
  params: NetworkParams,
  used: dict[str, mend_network.Moments],
  raw: mend_factors.RawFactors,
  group: Group,
  *,
  per_fact: bool = False,
) -> Scores:
  """What the model is after each example's edit, without making one.

  Args:
    config: Hyper-parameters.
    model: The model's shape.
    base: Its weights.
    params: Networks and step sizes.
    used: What the factors are standardised with.
    raw: The factors of each example.
    group: The examples.
    per_fact: One value for each fact instead of means.

  Returns:
    `loss`, its parts `nll` and `kl` (unweighted), `locality` (share of answer
    tokens whose arg-max stays), and as far as they are asked `reliability` and
    `generalization` (share of target tokens that are the arg-max, after the
    edits' own prompts and after other wordings).
  """
  changes = mend_network.changes(params, used, raw, config.step_sign)
  examples = group.edit.lengths.shape[0] // config.batch
  asked = group.lengths.shape[0] // examples
  final, _ = mend_factors.tail(
    model,
    base,
    group.x,
    group.lengths,
    start=config.layers[0],
    interventions=mend_factors.low_rank_terms(changes, asked),
  )
  read = functools.partial(mend_factors.read_logits, model, base, final)
  mean = functools.partial(_by_fact, group, config.batch, per_fact)

  local = read(group.local)
  unedited = llama.logits(model, base, group.local_final)
  before, now = jax.nn.log_softmax(unedited), jax.nn.log_softmax(local)
  kl = (jnp.exp(before) * (before - now)).sum(axis=-1)
  right = lambda logits, targets: (logits.argmax(axis=-1) == targets).astype(
    jnp.float32
  )
  scores = {
    'kl': mean(group.local, kl),
    'locality': mean(group.local, right(local, unedited.argmax(axis=-1))),
  }
  nlls = {}
  for outer, reads, name in (
    ('same', group.own, 'reliability'),
    ('rephrase', group.rephrase, 'generalization'),
  ):
    if reads is not None:
      said = read(reads)
      scores[name] = mean(reads, right(said, reads.targets))
      nlls[outer] = mean(reads, mend_factors.nll(said, reads.targets))
  # Validation asks both, whatever the loss is of.
  scores['nll'] = (
    (nlls['same'] + nlls['rephrase']) / 2
    if config.outer == 'both'
    else nlls[config.outer]
  )
  scores['loss'] = config.c_edit * scores['nll'] + config.c_loc * scores['kl']
  return scores


def validation_groups(
  prepared: Sequence[Prepared], config: MendConfig
) -> list[Group]:
  """All whole examples of `prepared`, in groups of one size.

  The last group is filled up with the first examples.

  Raises:
    ValueError: There is not one whole example.
  """
  facts = len(prepared) // config.batch * config.batch
  if not facts:
    raise ValueError(
      f'Validation has {len(prepared)} facts, an example {config.batch}. Raise '
      'val_facts.'
    )
  size = min(config.accumulate * config.batch, facts)
  filled = [*prepared[:facts], *prepared[:size]]
  return [
    mend_examples.group(filled[i : i + size], batch=config.batch, outer='both')
    for i in range(0, facts, size)
  ]


def validate_all(
  validate: Validate,
  base: Params,
  state: TrainState,
  groups: Sequence[Group],
  facts: int,
) -> dict[str, float]:
  """Means over the first `facts` facts of `groups`, in float64."""
  found = [trees.to_host(validate(base, state, group)) for group in groups]
  return {
    name: float(
      np.concatenate([scores[name] for scores in found])[:facts].mean(
        dtype=np.float64
      )
    )
    for name in found[0]
  }


def facts_of_step(
  num_facts: int, config: MendConfig, iteration: int
) -> list[int]:
  """Indices of the facts that the step after `iteration` examples learns from.

  A function of the iteration alone, so that a resumed training sees the same.
  """
  count = config.accumulate * config.batch
  first = iteration * config.batch
  places = [divmod(i, num_facts) for i in range(first, first + count)]
  shuffled = {
    epoch: np.random.default_rng([config.seed, epoch]).permutation(num_facts)
    for epoch in {epoch for epoch, _ in places}
  }
  return [int(shuffled[epoch][at]) for epoch, at in places]


def _raw_factors(config, model, base, group):
  return mend_factors.raw_factors(
    model,
    base,
    group.edit_x,
    group.edit,
    layers=tuple(config.layers),
    batch=config.batch,
  )


def _by_fact(
  group: Group,
  batch: int,
  per_fact: bool,
  reads: target_texts.Reads,
  values: jax.Array,
) -> jax.Array:
  """The mean over a fact's tokens, and over facts if not `per_fact`."""
  facts = group.edit.lengths.shape[0]
  by_row = target_texts.by_row(reads, values, group.lengths.shape[0])
  if not per_fact:
    return by_row.sum() / facts
  # The rows of an example are its facts, once for each kind of text; only one
  # kind is read here, the others are 0.
  by_kind = by_row.reshape(facts // batch, -1, batch)
  return by_kind.sum(axis=1).reshape(facts)
