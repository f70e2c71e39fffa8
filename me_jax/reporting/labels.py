"""What methods, tasks and runs are called in tables and figures."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from me_jax.evals import registry
from me_jax.reporting.measured_run import UNEDITED, MeasuredRun

# As the paper writes them.
TASKS = {
  'mmlu': 'MMLU',
  'mbpp': 'MBPP',
  'math': 'MATH',
  'bbh': 'BBH',
  'tydiqa': 'TyDiQA',
  'c3': 'C3',
  'commonsenseqa': 'CommonsenseQA',
  'axb': 'AX-b',
  'commonsenseqa_cloze': 'CommonsenseQA (cloze)',
  'commonsenseqa_whole': 'CommonsenseQA (uncut)',
  'mmlu_cloze': 'MMLU (cloze)',
  'tydiqa_goldp': 'TyDiQA-GoldP',
  'math_plain': 'MATH (single braces)',
  'math_own_exemplars': 'MATH (own exemplars)',
  'sst2_icl': 'SST-2 in context',
  'wikitext_ppl': 'WikiText-2 perplexity',
  'sample_ppl': 'sample perplexity',
}
_METHODS = {
  'rome': 'ROME',
  'memit': 'MEMIT',
  'emmet': 'EMMET',
  'mend': 'MEND',
  'grace': 'GRACE',
  'ft_l': 'FT-L',
  'ft_l_constrained': 'FT-L, constrained',
  'ft_m': 'FT-M',
  UNEDITED: 'unedited',
}
_VARIANTS = {'r_rome': 'R-ROME', 'p_rome': 'P-ROME'}
# Neither moves a number of an edit, or is said elsewhere.
_NOT_TOLD = {'method/name', 'method/network', 'method/variant'}
_MOST_SETTINGS = 3


def task_name(task: str) -> str:
  """'MMLU', or 'MMLU@4096' in another window."""
  base, at, window = task.partition('@')
  return f'{TASKS.get(base, base)}{at}{window}'


def task_order(tasks: Sequence[str]) -> list[str]:
  """The paper's eight in its order, each followed by its variants."""
  benchmarks = list(registry.BENCHMARKS)

  def key(task: str) -> tuple[int, bool, str]:
    base = registry.base_name(task)
    family = [b for b in benchmarks if base == b or base.startswith(f'{b}_')]
    place = benchmarks.index(family[0]) if family else len(benchmarks)
    return place, base != task or base not in benchmarks, task

  return sorted(dict.fromkeys(tasks), key=key)


def task_digits(task: str) -> int:
  """Digits after the point: two for a perplexity."""
  return 2 if is_perplexity(task) else 1


def is_perplexity(task: str) -> bool:
  return registry.base_name(task).endswith('ppl')


def method_name(method: Mapping[str, Any]) -> str:
  """As the paper writes it; ROME's key direction is always said."""
  name = method['name']
  shown = _VARIANTS.get(method.get('variant', ''), _METHODS.get(name, name))
  if name == 'rome' and not method.get('mom2_adjustment', True):
    shown += ' w/o C'
  return shown


def layers_name(layers: Sequence[int]) -> str:
  """'layer 5', 'layers 4–8' or 'layers 4, 8'."""
  if len(layers) == 1:
    return f'layer {layers[0]}'
  if list(layers) == list(range(layers[0], layers[-1] + 1)):
    return f'layers {layers[0]}–{layers[-1]}'
  return f'layers {", ".join(map(str, layers))}'


def flat_settings(value: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The leaves of nested settings by path, as 'method/layer'."""
  leaves: dict[str, Any] = {}
  for key, child in value.items():
    if isinstance(child, Mapping):
      leaves |= flat_settings(child, f'{prefix}{key}/')
    else:
      leaves[f'{prefix}{key}'] = child
  return leaves


def run_labels(runs: Sequence[MeasuredRun]) -> list[str]:
  """A name for each run: its method, the settings in which it differs from
  others of its method and model, its model if there are several, and its
  directory if nothing else tells it from another."""
  several_models = len({run.model for run in runs}) > 1
  labels = []
  for run in runs:
    kin = [r for r in runs if (_kind(r)) == _kind(run)]
    parts = [method_name(run.method), *differences(run, kin)]
    label = ', '.join(parts)
    labels.append(f'{label} on {run.model}' if several_models else label)
  for place in ('name', None):
    labels = [
      label
      if labels.count(label) == 1
      else f'{label} ({run.path.name if place else run.path})'
      for label, run in zip(labels, runs, strict=True)
    ]
  return labels


def _kind(run: MeasuredRun) -> tuple[str, str]:
  return method_name(run.method), run.model


def differences(
  run: MeasuredRun,
  kin: Sequence[MeasuredRun],
  without: Collection[str] = (),
) -> list[str]:
  """The settings of an edit in which the run differs from some of its kin.

  Args:
    run: Whose values.
    kin: The runs that it is told from.
    without: Settings that are not named, as 'method/layer'.
  """
  settings = [edit_settings(r) for r in kin]
  names = dict.fromkeys(name for found in settings for name in found)
  different = [
    name
    for name in names
    if any(found.get(name) != settings[0].get(name) for found in settings)
  ]
  own = edit_settings(run)
  told = [
    _setting(name, own[name])
    for name in different
    if name in own and name not in _NOT_TOLD and name not in without
  ]
  return told[:_MOST_SETTINGS]


def edit_settings(run: MeasuredRun) -> dict[str, Any]:
  """What its edits depend on beside the model, by path."""
  names = ('method', 'edit_batch_size', 'facts', 'second_moment', 'seed')
  found = {n: run.config[n] for n in names if n in run.config}
  # Runs from before there was a choice were float32.
  return flat_settings({**found, 'dtype': run.config.get('dtype', 'float32')})


def _setting(name: str, value: Any) -> str:
  short = name.rpartition('/')[2]
  if short in ('layer', 'layers') and value not in ((), []):
    return layers_name([value] if isinstance(value, int) else value)
  if short == 'eps':
    return f'ε = {value:g}'
  if short == 'edit_batch_size':
    return f'batch size {value}'
  return f'{short} = {value}'
