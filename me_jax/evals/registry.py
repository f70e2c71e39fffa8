"""The tasks by name."""

import difflib
from collections.abc import Callable, Mapping

from me_jax.data.sources import DataSources
from me_jax.evals.commonsenseqa import CommonsenseQa
from me_jax.evals.commonsenseqa_cloze import CommonsenseQaCloze
from me_jax.evals.mmlu import Mmlu
from me_jax.evals.perplexity import sample_ppl, wikitext_ppl
from me_jax.evals.task import Task
from me_jax.typing import Tokenizer

TASKS: Mapping[str, Callable[[Tokenizer, DataSources], Task]] = {
  'commonsenseqa': CommonsenseQa,
  'commonsenseqa_cloze': CommonsenseQaCloze,
  'mmlu': Mmlu,
  'sample_ppl': sample_ppl,
  'wikitext_ppl': wikitext_ppl,
}


def make_task(name: str, tokenizer: Tokenizer, sources: DataSources) -> Task:
  """The task called `name`.

  Raises:
    ValueError: There is none; names the nearest.
  """
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, cutoff=0.4) or sorted(TASKS)
    raise ValueError(
      f'No task is called {name!r}. Did you mean {", ".join(near)}?'
    )
  return TASKS[name](tokenizer, sources)
