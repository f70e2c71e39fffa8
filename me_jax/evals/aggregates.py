"""From samples to the numbers of a task, each with n and an interval."""

from collections.abc import Mapping, Sequence

import numpy as np

from me_jax.evals import statistics
from me_jax.evals.task import Metric, Record


def share(name: str, count: int, n: int) -> Metric:
  """`count` of `n` in per cent, with its Wilson interval."""
  low, high = statistics.wilson(count, n)
  return Metric(
    name=name,
    value=100 * count / n,
    n=n,
    ci_low=100 * low,
    ci_high=100 * high,
  )


def mean(name: str, samples: Sequence[Record], metric: str) -> Metric:
  """Mean of a metric in per cent: Wilson's interval if it only says right or
  wrong, else a bootstrap over items."""
  values = _values(samples, metric)
  if np.isin(values, (0, 1)).all():
    return share(name, int(values.sum()), len(values))
  data = np.stack([values, np.ones_like(values)], axis=1)
  low, high = statistics.bootstrap(lambda t: t[:, 0] / t[:, 1], data)
  return Metric(
    name=name,
    value=100 * float(values.mean()),
    n=len(values),
    ci_low=100 * low,
    ci_high=100 * high,
  )


def means(samples: Sequence[Record]) -> list[Metric]:
  """`mean` of every metric that the samples have."""
  return [mean(name, samples, name) for name in samples[0]['metrics']]


def macro_mean(
  name: str,
  samples: Sequence[Record],
  metric: str,
  groups: Sequence[str],
  kind: str = 'groups',
) -> Metric:
  """Mean of the group means in per cent, with a stratified bootstrap.

  A mean over some of the groups only is called `{name}_of_{n}_{kind}`.
  """
  by_group = _by_group(samples)
  present = [by_group[g] for g in groups if g in by_group]
  if len(present) < len(groups):
    name = f'{name}_of_{len(present)}_{kind}'
  value, low, high = statistics.macro_mean(
    [_values(members, metric) for members in present]
  )
  return Metric(
    name=name,
    value=100 * value,
    n=sum(map(len, present)),
    ci_low=100 * low,
    ci_high=100 * high,
  )


def macro_means(
  task: str,
  samples: Sequence[Record],
  groups: Sequence[str],
  *,
  complete: bool,
) -> list[Metric]:
  """For every metric the macro mean, then the mean of each group, called
  `{metric}_{group}`.

  Raises:
    ValueError: `complete`, and a group has no sample.
  """
  check_groups(task, samples, groups if complete else ())
  names = list(samples[0]['metrics'])
  by_group = _by_group(samples)
  return [
    *(macro_mean(name, samples, name, groups) for name in names),
    *(
      mean(f'{name}_{group}', by_group[group], name)
      for name in names
      for group in groups
      if group in by_group
    ),
  ]


def check_groups(
  task: str, samples: Sequence[Record], required: Sequence[str]
) -> None:
  """Returns if every required group has a sample.

  Raises:
    ValueError: Names those that have none.
  """
  missing = sorted(set(required) - {s['group'] for s in samples})
  if missing:
    raise ValueError(
      f'{task}: no samples of {len(missing)} of {len(required)} groups: '
      f'{", ".join(missing)}. Run them, or set a limit.'
    )


def spread(
  samples: Sequence[Record], letters: Sequence[str], reading: str
) -> list[Metric]:
  """How often each letter was the answer.

  It tells a model that knows from one that always says the same.
  """
  answers = [s['filtered_resps'][reading] for s in samples]
  return [
    share(f'predicted_{letter}', answers.count(letter), len(answers))
    for letter in letters
  ]


def empty_share(samples: Sequence[Record], reading: str) -> Metric:
  """Answers from which nothing could be read, in per cent."""
  empty = sum(s['filtered_resps'][reading] == '' for s in samples)
  return share('predicted_empty', empty, len(samples))


def nonfinite(samples: Sequence[Record]) -> Metric:
  """The number of answers in which a score or logit was not finite."""
  return Metric(
    name='n_nonfinite',
    value=float(sum(s['nonfinite'] for s in samples)),
    n=len(samples),
  )


def lookups(samples: Sequence[Record]) -> list[Metric]:
  """What a method that acts in the forward pass did; nothing for others.

  `trigger_rate` is the share of items in which it acts on the prompt or on
  what the unedited model went on with, `token_trigger_rate` that of the tokens
  at which it looks there, with an interval over items; `copied` is the share of
  items that got the unedited answer.
  """
  found = [s['lookups'] for s in samples if 'lookups' in s]
  if not found:
    return []
  metrics = [
    share('trigger_rate', sum(f['acting'] > 0 for f in found), len(found)),
    share('copied', sum('copied_from' in s for s in samples), len(samples)),
  ]
  tokens = np.array([[f['acting'], f['asked']] for f in found], float)
  tokens = tokens[tokens[:, 1] > 0]
  if len(tokens):
    acting, asked = tokens.sum(axis=0)
    low, high = statistics.bootstrap(lambda t: t[:, 0] / t[:, 1], tokens)
    metrics.append(
      Metric(
        name='token_trigger_rate',
        value=100 * float(acting / asked),
        n=len(tokens),
        ci_low=100 * low,
        ci_high=100 * high,
      )
    )
  return metrics


def _values(samples: Sequence[Record], metric: str) -> np.ndarray:
  return np.array([s['metrics'][metric] for s in samples], np.float64)


def _by_group(samples: Sequence[Record]) -> Mapping[str, list[Record]]:
  by_group: dict[str, list[Record]] = {}
  for sample in samples:
    by_group.setdefault(sample['group'], []).append(sample)
  return by_group
