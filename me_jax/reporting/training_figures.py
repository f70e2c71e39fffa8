"""Figures of a training of MEND's networks."""

import functools
import itertools
import pathlib
from collections.abc import Sequence

from me_jax import files
from me_jax.edits import mend_loop
from me_jax.evals.task import Record
from me_jax.reporting.figure import Chart, Curve
from me_jax.reporting.measured_run import checked

SCORES = {
  'reliability': 'right, own prompts',
  'generalization': 'right, other wordings',
  'locality': 'as unedited, unrelated texts',
}
_LOSSES = {
  'loss': 'whole loss',
  'nll': 'negative log-likelihood of the target, nats',
  'kl': 'divergence on unrelated texts, nats',
}


def best(workdir: pathlib.Path) -> Record:
  """The validation of the least loss, whose networks are kept.

  Raises:
    FileNotFoundError: There is no curve.
    ValueError: It is damaged, or holds no validation.
  """
  found = [r for r in _read(workdir) if r['part'] == 'validation']
  if not found:
    raise ValueError(f'{workdir / mend_loop.CURVE} holds no validation yet.')
  return min(found, key=lambda record: record['loss'])


def _read(workdir: pathlib.Path) -> list[Record]:
  path = workdir / mend_loop.CURVE
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is not there. Expected the workdir of a launch.train_mend that '
      'has made a validation.'
    )
  return checked(files.read_jsonl(path), ('part', 'iteration', *_LOSSES), path)


def figures(workdir: pathlib.Path) -> list[Chart]:
  """Scores and losses over the course of the training in a workdir.

  Raises:
    FileNotFoundError: There is no curve.
    ValueError: It is damaged.
  """
  records = _read(workdir)
  chart = functools.partial(
    Chart,
    caption='At each validation: means over its facts, and over the examples '
    'trained on since the one before.',
    x_label='examples',
  )
  return [
    chart(
      name='training_scores',
      title='Single edits during the training of MEND',
      y_label='tokens, %',
      curves=_curves(records, SCORES, 100.0),
      y_low=0.0,
      y_high=100.0,
    ),
    chart(
      name='training_loss',
      title='Loss during the training of MEND',
      y_label='loss, log scale',
      curves=_curves(records, _LOSSES, 1.0),
      y_scale='log',
    ),
  ]


def _curves(
  records: Sequence[Record], panels: dict[str, str], scale: float
) -> list[Curve]:
  ends = [r['iteration'] for r in records if r['part'] == 'validation']
  curves = []
  for name, panel in panels.items():
    for part, label in (('validation', 'validation'), ('train', 'training')):
      points = {}
      for before, end in itertools.pairwise([0, *ends]):
        values = [
          scale * r[name]
          for r in records
          if r['part'] == part and before < r['iteration'] <= end and name in r
        ]
        if values:
          points[end] = sum(values) / len(values)
      if points:
        curves.append(
          Curve(
            panel=panel,
            label=label,
            x=list(points),
            y=list(points.values()),
          )
        )
  return curves
