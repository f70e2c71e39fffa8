"""Workdirs as `launch.run` leaves them, with made-up numbers."""

import dataclasses
import json
import math
import pathlib

from me_jax import files, results
from me_jax.evals import statistics
from me_jax.reporting.measured_run import read_run
from me_jax.reporting.study import study

EDITS = (0, 1, 4, 10)
LETTERS = 'ABCDE'


@dataclasses.dataclass(kw_only=True)
class Made:
  """What is in a workdir.

  Attributes:
    method: Settings, the name first of all.
    model: Its name; the weights' hash is made from it.
    edits: Numbers of edits that are measured.
    num_edits: That the run is to make.
    size: Facts of an edit step.
    right: How many of 20 questions are right, by number of edits.
    ppl: By number of edits.
    analyses: 'weight_drift', 'saliency', 'adjusted_ppl'.
  """

  method: dict
  model: str = 'tiny'
  edits: tuple = EDITS
  num_edits: int = 10
  size: int = 1
  right: dict = dataclasses.field(
    default_factory=lambda: {0: 12, 1: 12, 4: 9, 10: 1}
  )
  ppl: dict = dataclasses.field(
    default_factory=lambda: {0: 20.0, 1: 21.0, 4: 40.0, 10: math.inf}
  )
  analyses: tuple = ()


def make(path: pathlib.Path, made: Made) -> pathlib.Path:
  """Writes the workdir."""
  layers = made.method.get('layers', [made.method.get('layer', 0)])
  config = {
    'model': {'name': made.model, 'path': ''},
    'method': made.method,
    'facts': {'name': 'zsre', 'seed': 0},
    'num_edits': made.num_edits,
    'edit_batch_size': made.size,
    'eval_steps': list(made.edits),
    'tasks': ['commonsenseqa', 'wikitext_ppl'],
    'limit': 20,
    'seed': 0,
  }
  identity = {
    'config': config,
    'weights': f'{made.model} weights',
    'facts': 'facts' * 12,
    'second_moments': {'5': 'moment' * 10},
  }
  notes = {'device': 'cpu', 'jax': '0.10.2', 'case_ids': ['a', 'b']}
  files.write_atomic(
    path / 'config.json', json.dumps({'identity': identity, 'notes': notes})
  )
  step = lambda n: math.ceil(n / made.size)
  rows, triangle = [], []
  for n in made.edits:
    rows += _rows(path.name, made, n, step(n), layers)
    for task, records in _scores(made, n).items():
      place = path / 'scores' / task / f'{step(n):06d}.jsonl'
      files.write_jsonl(place, records)
  last = max(made.edits)
  for t in range(step(last) + 1):
    measured = t in {step(n) for n in made.edits}
    for s in range(made.num_edits if t == 0 else min(t * made.size, last)):
      if measured or t == 1 + s // made.size:
        score = 0.2 if t == 0 else max(0.0, 1 - 0.05 * (t - 1 - s // made.size))
        triangle.append(
          {
            'edit_step': t,
            'fact': s,
            'case_id': f'case {s}',
            'state_fingerprint': str(t),
            'scores': {'rewrite_token': score, 'rephrase_token': score / 2},
          }
        )
  results.append_rows(path / 'results.jsonl', rows)
  files.write_jsonl(path / 'triangle.jsonl', triangle)
  for t in range(1, step(last) + 1):
    record = {
      'edit_step': t,
      'requests': [{'case_id': f'case {t}'}] * made.size,
      'seconds': 1.5 + t,
      'info': [
        {
          'case_id': f'case {t}',
          'lookup_position': 3,
          'boundary_merged': False,
          'relative_change_norm': 0.01 * t,
          'steps': [{'loss': 4.0}, {'loss': 0.1 / t}],
          'warnings': ['large'] if t > 8 else [],
        }
      ],
    }
    place = path / 'checkpoints' / str(t) / 'record' / 'metadata'
    files.write_atomic(place, json.dumps(record))
  return path


def evaluation(path: pathlib.Path, model: str = 'tiny') -> pathlib.Path:
  """A workdir of `launch.evaluate` of a model as it is."""
  made = Made(method={'name': 'unedited'}, model=model, edits=(0,), num_edits=0)
  make(path, made)
  rows = results.read_rows(path / 'results.jsonl')
  kept = [row for row in rows if row.task == 'commonsenseqa']
  config = json.loads((path / 'config.json').read_text())
  config['identity']['config']['tasks'] = ['commonsenseqa']
  files.write_atomic(path / 'config.json', json.dumps(config))
  (path / 'results.jsonl').unlink()
  (path / 'triangle.jsonl').unlink()
  results.append_rows(path / 'results.jsonl', kept)
  return path


def read(*paths: pathlib.Path):
  """The study of the workdirs."""
  return study([read_run(path) for path in paths])


def rome(**settings) -> dict:
  """Settings of ROME."""
  return {'name': 'rome', 'layer': 5, 'mom2_adjustment': True, **settings}


def _rows(run, made, n, step, layers):
  def row(task, metric, value, count=20, interval=(None, None)):
    return results.Row(
      run=run,
      method=made.method['name'],
      model=made.model,
      edit_step=step,
      num_edits=n,
      task=task,
      metric=metric,
      value=value,
      n=count,
      ci_low=interval[0],
      ci_high=interval[1],
      state=str(n),
    )

  right = made.right[n]
  low, high = statistics.wilson(right, 20)
  rows = [
    row('commonsenseqa', 'accuracy', 5.0 * right, 20, (100 * low, 100 * high)),
    *(
      row(
        'commonsenseqa', f'predicted_{letter}', 90.0 if letter == 'C' else 2.5
      )
      for letter in LETTERS
    ),
    row('commonsenseqa', 'predicted_empty', 0.0),
    row('wikitext_ppl', 'ppl', made.ppl[n]),
    row('edit', 'unedited_reliability', 20.0, n or 10, (10.0, 30.0)),
    row('edit', 'unedited_generalization', 10.0, n or 10, (5.0, 20.0)),
  ]
  if n:
    kept = 100.0 - 2.5 * n
    for when, value in (('sequential', kept), ('individual', 99.0)):
      interval = (value - 10, min(100.0, value + 10))
      rows += [
        row('edit', f'{when}_reliability', value, n, interval),
        row('edit', f'{when}_generalization', value / 2, n, (value / 3, value)),
      ]
    if made.method['name'] == 'grace':
      rows += [
        row('edit', 'num_keys', float(n)),
        row('edit', 'radius_median', made.method['eps'] / 2),
        row('edit', 'sequential_reliability_trigger_rate', 100.0),
        row('edit', 'sequential_generalization_trigger_rate', 5.0 * n),
        row('edit', 'sequential_locality_trigger_rate', 0.5 * n),
        row('commonsenseqa', 'trigger_rate', 3.0 * n),
      ]
  if 'weight_drift' in made.analyses and n:
    for i, layer in enumerate(layers):
      path = f'layers/{layer}/mlp/down_proj/kernel'
      drift = 1e-3 * n * (i + 1)
      rows += [
        row('weight_drift', f'pearson_r/{path}', 1 - drift, 4096),
        row('weight_drift', f'one_minus_r/{path}', drift, 4096),
        row('weight_drift', f'rel_fro/{path}', 2 * drift, 4096),
        row('weight_drift', f'sigma1_ratio/{path}', 1 + drift, 4096),
        row('weight_drift', f'max_abs/{path}', 0.5 + drift, 4096),
      ]
  if 'adjusted_ppl' in made.analyses:
    gone = n == 10
    value = math.nan if gone else 7.5 + 3 * n
    used = 0 if gone else 18
    interval = (None, None) if gone else (value - 1, value + 2)
    rows += [
      row('adjusted_ppl', 'adj_mean', value, used, interval),
      row('adjusted_ppl', 'adj_median', value, used),
      row('adjusted_ppl', 'rho_mean', math.nan if gone else 0.97, used),
      row('adjusted_ppl', 'n_excluded', float(20 - used)),
    ]
  if 'saliency' in made.analyses:
    for layer in range(6):
      pq = min(0.9, 0.1 + 0.12 * layer)
      for name, share in (('wp', 0.9 - pq), ('pq', pq), ('ww', 0.1)):
        rows.append(row('saliency', f's_{name}/{layer}', share / 100))
        rows.append(row('saliency', f'share_{name}/{layer}', share))
    rows += [
      row('saliency', 'late_pq_share', 0.6),
      row('saliency', 'label_accuracy', 75.0),
    ]
    if n == 0:
      rows.append(row('saliency', 'crossover_layer', 4.0))
  return rows


def _scores(made, n):
  def record(i, metrics, target=None):
    return {
      'doc_id': f'dev/{i}',
      'group': 'dev',
      'prompt_hash': str(i),
      'state_fingerprint': str(n),
      'nonfinite': False,
      'target': target,
      'filtered_resps': {},
      'metrics': metrics,
    }

  loss = math.log(made.ppl[n])
  return {
    'commonsenseqa': [
      record(i, {'accuracy': float(i < made.right[n])}, 'A') for i in range(20)
    ],
    'wikitext_ppl': [
      record(
        i, {'nll_per_token': loss + 0.01 * i if math.isfinite(loss) else 'inf'}
      )
      for i in range(10)
    ],
  }
