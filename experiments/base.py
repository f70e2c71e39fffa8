"""What the paper's experiments have in common: models, methods, schedules.

Layers are indices from 0. The paper's are those of LLaMA-2-7B and its default
for all checkpoints; a small model is edited at the same indices where it has
them, else at its last but one.
"""

from typing import NamedTuple

from me_jax import config
from me_jax.config import Cell

MAIN = (0, 1, 10, 20, 50, 100)  # the paper's, and 50
CURVE = (0, 1, 10, 14, 20, 30, 50, 75, 100)
EIGHT = (
  'mmlu',
  'mbpp',
  'math',
  'bbh',
  'tydiqa_goldp',
  'c3',
  'commonsenseqa',
  'axb',
)
FOUR = ('mmlu', 'commonsenseqa', 'tydiqa_goldp', 'mbpp')
# A model below 1B is near chance on letters: the last two have signal.
FOR_SMALL = ('mmlu', 'commonsenseqa', 'commonsenseqa_cloze', 'wikitext_ppl')
METHODS = ('rome', 'memit', 'mend', 'grace')
_LLAMA2 = ('llama2_7b', 'llama2_7b_chat', 'llama2_13b', 'vicuna_7b_v15')
_FINE_TUNING = ('ft_l', 'ft_l_constrained', 'ft_m')


class Place(NamedTuple):
  """Where a model is edited.

  Attributes:
    mlp_dim: Width of the MLP; 0 where published values belong to the model.
    rome: The layer of ROME.
    memit: The layers of MEMIT.
    grace: The layer of GRACE.
    rome_sweep: Layers that ROME is tried at.
    memit_sweep: First and last layers of MEMIT's windows.
    grace_sweep: Layers that GRACE is tried at.
  """

  mlp_dim: int = 0
  rome: int = 5
  memit: tuple[int, int] = (4, 8)
  grace: int = 30
  rome_sweep: tuple[int, ...] = (5, 10, 15, 20, 25, 30)
  memit_sweep: tuple[tuple[int, int], ...] = (
    (4, 8),
    (9, 13),
    (14, 18),
    (19, 23),
    (25, 29),
  )
  grace_sweep: tuple[int, ...] = (10, 20, 30)


_PLACES = {
  'smollm2_135m': Place(
    mlp_dim=1536,
    grace=25,
    rome_sweep=(5, 10, 15, 20, 25, 28),
    memit_sweep=((4, 8), (9, 13), (14, 18), (19, 23), (24, 28)),
    grace_sweep=(10, 20, 25),
  ),
  'tiny': Place(
    mlp_dim=64,
    rome=1,
    memit=(1, 2),
    grace=2,
    rome_sweep=(1, 2),
    memit_sweep=((1, 2),),
    grace_sweep=(1, 2),
  ),
}


def place(model: str) -> Place:
  """Where that model is edited; LLaMA-2-7B's for one without a name here."""
  return _PLACES.get(model, Place())


def is_small(model: str) -> bool:
  """Whether the grid is cut to what a processor can do."""
  return model in _PLACES


def run_config(model: str, method, *, tasks, **changes) -> config.RunConfig:
  """100 ZsRE facts, one after another, and 50 items a task on small models.

  Args:
    model: A preset, a hub id, or a directory or GGUF file.
    method: Its config.
    tasks: For a model of the paper.
    **changes: Of other fields.
  """
  small = is_small(model)
  values = {
    'facts': config.FactsConfig(name='zsre'),
    'num_edits': 100,
    'eval_steps': MAIN,
    'tasks': tuple(t for t in tasks if t not in EIGHT or t in FOR_SMALL)
    if small
    else tuple(tasks),
    'limit': 50 if small else 0,
    'adjusted_ppl': config.AdjustedPerplexityConfig(
      # The paper's scorer has the vocabulary of LLaMA-2.
      scorer=config.ModelSource(name=model if small else 'vicuna_7b_v15')
    ),
    'saliency': config.SaliencyConfig(
      **({'limit': 20, 'seeds': (42,)} if small else {})
    ),
    'second_moment': second_moment(model),
  }
  return config.RunConfig(
    model=config.ModelSource(name=model), method=method, **{**values, **changes}
  )


def second_moment(model: str) -> config.SecondMomentConfig:
  """Of which text; 2,000 passages are 250,000 tokens, 160 for each unit of the
  MLP of SmolLM2-135M."""
  if not is_small(model):
    return config.SecondMomentConfig()
  return config.SecondMomentConfig(
    corpus='wikipedia_passages', n_samples=2_000, max_length=512
  )


def rome(model: str, layer: str | int = '', **changes) -> config.RomeConfig:
  """At the model's layer, or another."""
  found = place(model).rome if layer == '' else int(layer)
  if model == 'tiny':  # Its tokens are bytes: five hold no word.
    changes['context_template_length_params'] = ((10, 5),)
  return config.RomeConfig(layer=found, **changes)


def memit(
  model: str, layers: str = '', preset: str = '', mlp_dim: str = ''
) -> config.MemitConfig:
  """At the model's layers or others, 'FIRST-LAST'; lambda as published for
  LLaMA-2, else by the width of the MLP."""
  at = place(model)
  first, last = map(int, layers.split('-')) if layers else at.memit
  changes = {'layers': tuple(range(first, last + 1))}
  if model not in _LLAMA2:
    width = int(mlp_dim or at.mlp_dim)
    if not width:
      raise ValueError(
        f'The λ of MEMIT belongs to the width of the MLP, and that of {model} '
        'is not known here: add mlp_dim=WIDTH.'
      )
    changes['mom2_update_weight'] = config.memit_update_weight(width)
  return config.memit_preset(preset or 'easyedit', **changes)


def grace(
  model: str, layer: str | int = '', eps: str | float = 1.0
) -> config.GraceConfig:
  """At the model's layer, or another.

  Benchmarks of the paper's models look up every token they generate, as a
  harness does that knows nothing of prompts (hypothesis on its appendix C).
  """
  found = place(model).grace if layer == '' else int(layer)
  values = {} if is_small(model) else {'task_query': 'every_new_token'}
  return config.GraceConfig(layer=found, eps=float(eps), **values)


def method(name: str, model: str, preset: str = '', mlp_dim: str = ''):
  """A method by its name, at the model's layers.

  `preset` is for MEMIT and EMMET; `mlp_dim` for MEMIT on a model that has no
  name here.

  Raises:
    ValueError: There is no such method, or it does not take the setting.
  """
  makers = {
    'rome': lambda: rome(model),
    'rome_without_c': lambda: rome(model, mom2_adjustment=False),
    'memit': lambda: memit(model, preset=preset, mlp_dim=mlp_dim),
    'grace': lambda: grace(model),
    # With the networks given as --config.method.network=FILE.
    'mend': lambda: config.mend_preset(model),
    'emmet': lambda: config.emmet_preset(preset or 'authors'),
    **{
      # Bound now, since the name changes.
      name: lambda name=name: config.fine_tune_preset(name, model)
      for name in _FINE_TUNING
    },
  }
  if name not in makers:
    raise ValueError(
      f'method must be one of {", ".join(makers)}, got {name!r}.'
    )
  for setting, value, takers in (
    ('preset', preset, ('memit', 'emmet')),
    ('mlp_dim', mlp_dim, ('memit',)),
  ):
    if value and name not in takers:
      raise ValueError(
        f'{setting} is for {" and ".join(takers)} only, got '
        f'{setting}={value} and method={name}.'
      )
  return makers[name]()


def cells(model: str, name: str) -> list[Cell]:
  """A method at the model's layers: the run and, before it, the training of
  MEND's networks."""
  arg = f'method={name},model={model}'
  if name != 'mend':
    return [Cell(_name(model, name), arg)]
  training = f'{model}_mend_training'
  return [
    Cell(
      training,
      f'model={model}',
      module='launch.train_mend',
      config='experiments/train_mend.py',
    ),
    Cell(
      f'{model}_mend',
      arg,
      flags=(
        f'--config.method.network={{root}}/{training}/network.safetensors',
      ),
      after=(training,),
    ),
  ]


def _name(model: str, name: str) -> str:
  """Of the run of a method at the model's layers. Where a layer is tried among
  others, it is that of the grid, so that one run serves both."""
  at = place(model)
  return {
    'rome': rome_name(model, at.rome),
    'memit': memit_name(model, *at.memit),
    'grace': grace_name(model, at.grace, 1),
  }.get(name, f'{model}_{name}')


def rome_name(model: str, layer: int) -> str:
  """Of the run of ROME at a layer."""
  return f'{model}_rome_l{layer}'


def memit_name(model: str, first: int, last: int) -> str:
  """Of the run of MEMIT at a window of layers, one fact a step."""
  return f'{model}_memit_l{first}-{last}'


def grace_name(model: str, layer: int, eps: float) -> str:
  """Of the run of GRACE at a layer with a radius."""
  return f'{model}_grace_l{layer}_eps{eps:g}'
