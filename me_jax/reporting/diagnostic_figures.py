"""What the records of the edit steps say: losses, norms, seconds."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from me_jax.evals.task import Record
from me_jax.reporting.figure import Chart, Curve
from me_jax.reporting.measured_run import MeasuredRun
from me_jax.reporting.run_figures import file_name
from me_jax.reporting.study import Study

# Numbers that are no quantities.
_NO_QUANTITIES = frozenset(
  {
    'boundary_merged',
    'edit_id',
    'entry',
    'lookup_disagrees',
    'lookup_position',
    'nearest',
    'reedit',
  }
)
_NAMES = {
  'first_loss': 'loss before the search, nats',
  'final_loss': 'loss at its end, nats',
  'loss': 'loss, nats',
  'relative_change_norm': '‖ΔW‖ / ‖W‖ of the edit',
  'change_norm': '‖ΔW‖ of the edit',
  'seconds': 'seconds per edit step',
  'search_steps': 'steps of the search',
  'delta_norm': 'norm of the change at the layer',
  'start_norm': 'norm of its output before',
  'value_norm': 'norm of the value',
  'key_norm': 'norm of the key',
  'key_cosine': 'cosine of key and update direction',
  'num_keys': 'keys in the codebook',
  'nearest_distance': 'distance to the nearest key',
}
_FIRST = ('final_loss', 'loss', 'relative_change_norm', 'seconds')
_WIDE = 100.0  # largest over smallest value from which an axis is logarithmic


def figures(study: Study) -> Iterator[Chart | None]:
  """One per run."""
  for run in study.runs:
    name = f'diagnostics_{file_name(study, run)}'
    yield diagnostics(run, study.labels[run], name)


def diagnostics(run: MeasuredRun, label: str, name: str) -> Chart | None:
  """Every quantity that the method recorded, by edit step."""
  points: dict[str, dict[int, float]] = {}
  for record in run.records:
    for field, value in quantities(record).items():
      points.setdefault(field, {})[record['edit_step']] = value
  fields = [f for f in _FIRST if f in points]
  fields += [f for f in points if f not in fields]
  curves, scales = [], {}
  for field in fields:
    values = list(points[field].values())
    # What never changes is a setting.
    if len(set(values)) == 1 and len(values) > 1:
      continue
    panel = _NAMES.get(field, field.replace('_', ' '))
    curves.append(Curve(panel=panel, label='', x=list(points[field]), y=values))
    smallest = min(values)
    if smallest > 0 and max(values) / smallest > _WIDE:
      scales[panel] = 'log'
  if not curves:
    return None
  return Chart(
    name=name,
    title=f'Each edit: {label}',
    caption='What the method recorded of every edit step; of a step that '
    'writes several facts, or changes several matrices, the mean.',
    x_label='edit step',
    y_label='',
    curves=curves,
    y_scale=scales,
  )


def quantities(record: Record) -> dict[str, float]:
  """The finite numbers of an edit step's record, means over its facts."""
  found: dict[str, list[float]] = {}
  for info in record.get('info') or ():
    flat = dict(_numbers(info))
    losses = [s['loss'] for s in info.get('steps') or () if 'loss' in s]
    if losses:
      flat |= {'first_loss': losses[0], 'search_steps': len(losses)}
      flat.setdefault('final_loss', losses[-1])
    for name, value in flat.items():
      if _is_number(value):
        found.setdefault(name, []).append(value)
  means = {name: float(np.mean(values)) for name, values in found.items()}
  if _is_number(record.get('seconds')):
    means['seconds'] = float(record['seconds'])
  return means


def _numbers(info: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """Numbers by name; of numbers by matrix, or lists by layer, the means."""
  for name, value in info.items():
    if name in _NO_QUANTITIES or name == 'steps':
      continue
    if isinstance(value, Mapping):
      values = [v for v in value.values() if _is_number(v)]
      if values:
        yield name, float(np.mean(values))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
      inner: dict[str, list[float]] = {}
      for entry in value:
        for key, number in entry.items():
          if key != 'layer' and _is_number(number):
            inner.setdefault(key, []).append(number)
      for key, values in inner.items():
        yield key, float(np.mean(values))
    elif _is_number(value):
      yield name, float(value)


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )
