"""What the programs that time edits have in common: flags, facts, versions."""

import os
import pathlib
import platform
from collections.abc import Sequence

import jax
import torch
import transformers
from absl import flags

from me_jax.data import facts as facts_lib
from me_jax.data import sources
from me_jax.data.request import EditRequest
from me_jax.edits import second_moment, second_moment_factor
from me_jax.edits.second_moment_factor import Factor
from me_jax.models.language_model import LanguageModel

MODEL = flags.DEFINE_string('model', 'smollm2_135m', 'Name or path.')
_SOURCE = flags.DEFINE_enum(
  'source',
  'sample',
  facts_lib.fact_names(),
  'Where the facts come from; all but `sample` need --data_root. The more '
  'tokens follow the subject, the less a tail-only search can save.',
)
_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'Directory of the public data sets.'
)
STEPS = flags.DEFINE_integer(
  'steps', 25, 'Evaluations of each search.', lower_bound=2
)
SECOND_MOMENT = flags.DEFINE_string(
  'second_moment',
  None,
  'Directory of python -m launch.second_moment. Without it C is the identity.',
)
JSON = flags.DEFINE_string('json', None, 'Also write the numbers here.')


def all_cores() -> dict[str, str | int]:
  """Lets PyTorch use all cores, as JAX does; prints and returns versions."""
  threads = os.cpu_count() or 1
  torch.set_num_threads(threads)
  versions = {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'torch': torch.__version__,
    'transformers': transformers.__version__,
    'cores': threads,
    'torch threads': torch.get_num_threads(),
    'device': jax.devices()[0].device_kind,
  }
  print(', '.join(f'{name} {value}' for name, value in versions.items()))
  return versions


def pool() -> list[EditRequest]:
  """All facts of the source that the flags name."""
  root = _DATA_ROOT.value and pathlib.Path(_DATA_ROOT.value)
  data = sources.DataSources(data_root=root)
  return list(facts_lib.load_facts(_SOURCE.value, data))


def factors(model: LanguageModel, layers: Sequence[int]) -> dict[int, Factor]:
  """Of the second moments of layers, in the directory that the flags name."""
  directory = SECOND_MOMENT.value
  identity = {'weights': model.fingerprint}
  return {
    layer: second_moment_factor.load_factor(
      directory, second_moment.load(directory, layer, identity)
    )
    for layer in layers
  }
