"""What a report of these runs could show and does not, and how to get it."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from me_jax.reporting.study import Study

_NEEDED: Mapping[str, str] = {
  'table1': 'a run that measures benchmarks',
  'table2': 'a run that edits',
  'table3': 'a run with adjusted perplexity (task adjusted_ppl)',
  'table6': 'runs of GRACE with several radii',
  'table7': 'runs of GRACE at several layers',
  'figure3': 'runs of ROME on several models',
  'figure4': 'runs of one method at several layers, with CommonsenseQA',
  'figure5': 'runs of MEMIT with several batch sizes, with CommonsenseQA',
  'figure6': 'a run with weight drift (task weight_drift)',
  'figure7': 'runs of ROME with and without the second moment of keys',
  'figure8': 'a run with saliency (task saliency)',
}


class Missing(NamedTuple):
  """A table or figure of the paper that is not there.

  Attributes:
    what: Its name.
    needs: What it is made from.
    command: Which makes that.
  """

  what: str
  needs: str
  command: str


def missing(study: Study, made: Collection[str]) -> list[Missing]:
  """The paper's tables and figures that the runs do not fill.

  Args:
    study: The runs.
    made: Names of the tables and figures that were made.
  """
  model = study.models[0] if study.models else 'smollm2_135m'
  # Of several models: the config knows which.
  arg = lambda name: '' if name == 'figure3' else f':model={model}'
  title: Callable[[str], str] = lambda name: (
    f'{name[:-1].capitalize()} {name[-1]}'
  )
  return [
    Missing(
      title(name),
      needs,
      f'python -m launch.sweep --config=experiments/{name}.py{arg(name)} '
      '--root=runs',
    )
    for name, needs in _NEEDED.items()
    if name not in made
  ]
