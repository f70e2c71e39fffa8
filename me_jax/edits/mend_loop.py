"""The loop of MEND's training: steps, validation, checkpoints, the best kept.

At every validation, in this order, the best networks so far, the curve and the
state of the training go to the disk. A killed training goes on from its last
validation, one that SIGTERM stopped from the step that it was at. It sees the
same examples in the same order and ends with the same networks, to the bit.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from me_jax import event_log, files, preemption, processes, sharding, trees
from me_jax.config import MendConfig
from me_jax.edits import mend_examples, mend_file, mend_training
from me_jax.edits.mend_examples import Example, Preparer
from me_jax.edits.mend_file import Trained
from me_jax.edits.mend_training import TrainState
from me_jax.models.language_model import LanguageModel
from me_jax.progress import Progress
from me_jax.training_checkpoints import TrainingCheckpoints

NETWORK = 'network.safetensors'
CURVE = 'curve.jsonl'
EVENTS = 'events.out.tfevents.0.mend'


@dataclasses.dataclass(kw_only=True)
class Training:
  """One training and all that it needs.

  Attributes:
    config: Hyper-parameters.
    model: The model, whose weights stay as they are.
    training: Examples to learn from.
    validation: Examples of other facts.
    directory: For `NETWORK`, `CURVE`, `EVENTS` and the checkpoints.
    notes: JSON values to store with the networks.
    kept_bytes: Host memory for what enters the first edited layer.
    report: Called after each validation.
  """

  config: MendConfig
  model: LanguageModel
  training: Sequence[Example]
  validation: Sequence[Example]
  directory: pathlib.Path
  notes: dict[str, Any]
  kept_bytes: int
  report: Callable[[int, dict[str, float]], None] = lambda iteration, scores: (
    None
  )


@dataclasses.dataclass(kw_only=True)
class _Best:
  """The best validation so far."""

  iteration: int = 0
  loss: float = math.inf


def train(job: Training) -> dict[str, Any]:
  """Trains to the end, or from where a killed training was.

  Returns:
    The record of the best validation.

  Raises:
    FloatingPointError: The loss is not finite.
    ValueError: What is in the directory is damaged or of another shape.
    FileNotFoundError: The best networks of a training that goes on, or that
      is over, are not there.
    OSError: The disk is full.
    SystemExit: Stopped by SIGTERM (see `preemption`); it resumes.
  """
  config, model = job.config, job.model
  mesh = sharding.mesh_of(model.params)
  drawn = mend_training.init_state(config, model.config)
  state = sharding.replicate(processes.as_on_first(drawn), mesh)
  checkpoints = TrainingCheckpoints(job.directory / 'checkpoints')
  try:
    iteration, best = 0, _Best()
    if found := checkpoints.restore(state):
      iteration, state, record = found
      state = sharding.replicate(state, mesh)
      best = _Best(**record['best'])
      _check_there(job.directory / NETWORK, best)
    curve = _Curve(job.directory, iteration)
    return _Loop(job, checkpoints, curve, best).run(iteration, state)
  finally:
    checkpoints.close()


class _Loop:
  """The compiled functions of a training, and its course."""

  def __init__(
    self,
    job: Training,
    checkpoints: TrainingCheckpoints,
    curve: '_Curve',
    best: _Best,
  ):
    self._job, self._checkpoints, self._curve = job, checkpoints, curve
    self._best = best
    config, model = job.config, job.model
    self._prepare = Preparer(
      model.config, model.params, config.layers[0], job.kept_bytes
    )
    self._mesh = sharding.mesh_of(model.params)
    self._update = mend_training.make_update(config, model.config, self._mesh)
    self._validate = mend_training.make_validate(config, model.config)

  def run(self, iteration: int, state: TrainState) -> dict[str, Any]:
    """Until the last iteration, or until patience has run out."""
    job, config = self._job, self._job.config
    prepared = []
    for example in job.validation:
      preemption.stop_if_told()
      prepared.append(self._prepare(example))
    groups = [
      mend_examples.deal(group, self._mesh)
      for group in mend_training.validation_groups(prepared, config)
    ]
    facts = len(prepared) // config.batch * config.batch
    with Progress(config.max_iters, 'training', 'examples') as progress:
      progress(iteration)
      while iteration < config.max_iters and not self._is_out(iteration):
        state, scores = self._step(state, iteration)
        iteration += config.accumulate
        self._curve.add('train', iteration, scores)
        is_told = preemption.is_told()
        if (
          iteration % config.val_interval == 0 or iteration == config.max_iters
        ):
          self._validate_and_save(iteration, state, groups, facts)
        elif is_told:
          self._save(iteration, state)
        progress(iteration)
        if is_told:
          preemption.stop()
    return self._curve.validation(self._best.iteration)

  def _is_out(self, iteration: int) -> bool:
    # Ends at validations only: what came after one would not be stored.
    config = self._job.config
    validated = iteration - iteration % config.val_interval
    return validated - self._best.iteration >= config.patience

  def _step(self, state, iteration):
    job, config = self._job, self._job.config
    indices = mend_training.facts_of_step(len(job.training), config, iteration)
    group = mend_examples.group(
      [self._prepare(job.training[i]) for i in indices],
      batch=config.batch,
      outer=config.outer,
    )
    state, scores = self._update(
      job.model.params, state, mend_examples.deal(group, self._mesh)
    )
    scores = {name: float(v) for name, v in trees.to_host(scores).items()}
    _check_finite(iteration, scores)
    return state, scores

  def _validate_and_save(self, iteration, state, groups, facts) -> None:
    job, config = self._job, self._job.config
    scores = mend_training.validate_all(
      self._validate, job.model.params, state, groups, facts
    )
    _check_finite(iteration, scores)
    edit_lrs = trees.to_host(state.params['edit_lrs'])
    scores |= {
      'edit_lr_min': float(edit_lrs.min()),
      'edit_lr_max': float(edit_lrs.max()),
    }
    self._curve.add('validation', iteration, scores)
    job.report(iteration, scores)
    if scores['loss'] < self._best.loss:
      self._best = _Best(iteration=iteration, loss=scores['loss'])
      trained = Trained(
        trees.to_host(state.params),
        trees.to_host(state.statistics),
        job.model.fingerprint,
        mend_file.settings(config),
        {**job.notes, 'iteration': iteration, 'validation': scores},
      )
      processes.from_first(
        lambda: mend_file.save(job.directory / NETWORK, trained)
      )
    self._save(iteration, state)

  def _save(self, iteration, state) -> None:
    processes.from_first(self._curve.write)
    self._checkpoints.save(
      iteration, state, {'best': dataclasses.asdict(self._best)}
    )


def _check_there(network: pathlib.Path, best: _Best) -> None:
  # Checkpoints hold the newest networks only.
  if best.iteration and not processes.from_first(network.is_file):
    raise FileNotFoundError(
      f'{network} is missing. It held the best networks, those after '
      f'{best.iteration} examples, which nothing else keeps. Put it back, or '
      'train again in an empty directory.'
    )


def _check_finite(iteration: int, scores: dict[str, float]) -> None:
  for name, value in scores.items():
    if not math.isfinite(value):
      raise FloatingPointError(
        f'After {iteration} examples {name} is {value}. Lower method.lr or '
        'method.alpha_lr and start in an empty directory.'
      )


class _Curve:
  """The scores of all steps and validations, on the disk."""

  def __init__(self, directory: pathlib.Path, iteration: int):
    """Takes up the curve where the training goes on."""
    self._directory = directory
    stored = processes.from_first(lambda: files.read_jsonl(directory / CURVE))
    self._records = [r for r in stored if r['iteration'] <= iteration]

  def add(self, part: str, iteration: int, scores: dict[str, float]) -> None:
    self._records.append({'part': part, 'iteration': iteration, **scores})

  def validation(self, iteration: int) -> dict[str, Any]:
    """The record of one validation."""
    for record in self._records:
      if (record['part'], record['iteration']) == ('validation', iteration):
        return record
    raise ValueError(
      f'{self._directory / CURVE} has no validation after {iteration} '
      'examples, but the checkpoint has. Restore the file, or start again in '
      'an empty directory.'
    )

  def write(self) -> None:
    files.write_jsonl(self._directory / CURVE, self._records)
    event_log.write(
      self._directory / EVENTS,
      [
        (
          record['iteration'],
          {
            f'{record["part"]}/{name}': value
            for name, value in record.items()
            if name not in ('part', 'iteration')
          },
        )
        for record in self._records
      ],
    )
