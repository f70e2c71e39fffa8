r"""Tables 1 and 2 of the paper: what 1, 10, 20 and 100 edits do to a model.

    python -m launch.run \
      --config=experiments/table1.py:method=rome,model=llama2_7b \
      --workdir=runs/table1_rome --data_root=data --allow_code_execution

TyDiQA is that of the nine official languages; whoever has OpenCompass's files
of all eleven says tydiqa in its place.

The paper, ROME on LLaMA-2-7B: after 100 edits MMLU falls from 46.8 to 25.5 and
sequential reliability from 80 to 52.3, while individual reliability stays at
93.3.
"""

import functools

from me_jax import config

_SMALL = {'smollm2_135m': 1536, 'tiny': 64}  # and the width of their keys
_LLAMA2 = ('llama2_7b', 'llama2_7b_chat', 'llama2_13b', 'vicuna_7b_v15')
_EIGHT = (
  'mmlu',
  'mbpp',
  'math',
  'bbh',
  'tydiqa_goldp',
  'c3',
  'commonsenseqa',
  'axb',
)
# A small model is near chance on letters: the last two have signal.
_FOR_SMALL = ('mmlu', 'commonsenseqa', 'commonsenseqa_cloze', 'wikitext_ppl')


def get_config(arg: str | None = None) -> config.RunConfig:
  """The run; `arg` is 'method=...,model=...' and, for MEMIT and EMMET,
  'preset=...'; for MEMIT on a model that has no name here also 'mlp_dim=...',
  the width of its MLP."""
  chosen = config.parse_arg(
    arg, method='rome', model='llama2_7b', preset='', mlp_dim=''
  )
  small = chosen['model'] in _SMALL
  methods = {
    'rome': lambda: config.RomeConfig(layer=5),
    'grace': lambda: _grace(small),
    'emmet': lambda: config.emmet_preset(chosen['preset'] or 'authors'),
    **{
      name: functools.partial(config.fine_tune_preset, name, chosen['model'])
      for name in ('ft_l', 'ft_l_constrained', 'ft_m')
    },
    # With the networks given as --config.method.network=FILE.
    'mend': lambda: config.mend_preset(chosen['model']),
    'memit': lambda: _memit(
      chosen['model'], chosen['preset'] or 'easyedit', chosen['mlp_dim']
    ),
  }
  if chosen['method'] not in methods:
    raise ValueError(
      f'method must be one of {", ".join(methods)}, got {chosen["method"]!r}.'
    )
  allowed = {'preset': ('memit', 'emmet'), 'mlp_dim': ('memit',)}
  for name, methods_with in allowed.items():
    if chosen[name] and chosen['method'] not in methods_with:
      raise ValueError(
        f'{name} is for {" and ".join(methods_with)} only, got '
        f'{name}={chosen[name]} and method={chosen["method"]}.'
      )
  return config.RunConfig(
    model=config.ModelSource(name=chosen['model']),
    method=methods[chosen['method']](),
    facts=config.FactsConfig(name='zsre'),
    second_moment=config.SecondMomentConfig(
      # 2,000 passages are some 250,000 tokens, 160 for each unit of the MLP.
      corpus='wikipedia_passages',
      n_samples=2_000,
      max_length=512,
    )
    if small
    else config.SecondMomentConfig(),
    num_edits=100,
    eval_steps=(0, 1, 10, 20, 50, 100),
    tasks=_FOR_SMALL if small else _EIGHT,
    limit=50 if small else 0,
  )


def _grace(small: bool) -> config.GraceConfig:
  """The paper's radius and layer; small models have 30 layers in all.

  Benchmarks of the paper's models look up every token they generate, as a
  harness does that knows nothing of prompts (hypothesis on its appendix C).
  """
  if small:
    return config.GraceConfig(layer=25)
  return config.GraceConfig(layer=30, task_query='every_new_token')


def _memit(model: str, preset: str, mlp_dim: str) -> config.MemitConfig:
  """Layers 4-8; λ as published for LLaMA-2, else by the model's width."""
  if model in _LLAMA2:
    return config.memit_preset(preset)
  width = int(mlp_dim or _SMALL.get(model, 0))
  if not width:
    raise ValueError(
      f'The λ of MEMIT belongs to the width of the MLP, and that of {model} is '
      'not known here: add mlp_dim=WIDTH.'
    )
  return config.memit_preset(
    preset, mom2_update_weight=config.memit_update_weight(width)
  )
