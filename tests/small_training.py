"""A short training of MEND on the model `tiny`: its config and its facts."""

import json

_CONFIG = """
from me_jax import config


def get_config(arg=None):
  del arg
  return config.MendTrainingConfig(
    model=config.ModelSource(name='tiny'),
    method=config.mend_preset(
      'tiny',
      layers=(3,),
      lr=1e-3,
      accumulate=2,
      max_iters=40,
      val_interval=4,
    ),
    val_facts=2,
  )
"""
_ZSRE = [
  {
    'src': f'Where is Site {i}?',
    'subject': f'Site {i}',
    'alt': None,
    'answers': [f'Rome{i}'],
    'rephrase': f'Site {i} is in',
    'loc': f'Who was Ann {i}?',
    'loc_ans': 'A poet',
  }
  for i in range(5)
]
# Asks what the last of the others asks, too.
_JUDGED = [
  {**_ZSRE[4], 'src': 'Who owns Site 9?', 'subject': 'Site 9', 'alt': 'Ann'}
]
_COUNTERFACT = [
  {
    'case_id': i,
    'prompt': f'The home of Bob {i} is',
    'subject': f'Bob {i}',
    'target_new': f'Oslo{i}',
    'ground_truth': 'Rome',
    'rephrase_prompt': f'Bob {i} lives in',
    'locality_prompt': f'The home of Cyd {i} is',
    'locality_ground_truth': 'Bari',
  }
  for i in range(4)
]


def write(root):
  """Both into a directory: `config.py`, and what --data_root needs."""
  (root / 'config.py').write_text(_CONFIG)
  for name, records in (
    ('zsre/zsre_train.json', _ZSRE),
    ('zsre/zsre_mend_eval_portability_gpt4.json', _JUDGED),
    ('counterfact/counterfact-train.json', _COUNTERFACT),
  ):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps(records))
