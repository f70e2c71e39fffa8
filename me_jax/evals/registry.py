"""The tasks by name."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping

from me_jax.evals.axb import axb
from me_jax.evals.bbh import bbh
from me_jax.evals.c3 import c3
from me_jax.evals.commonsenseqa import commonsenseqa, commonsenseqa_whole
from me_jax.evals.commonsenseqa_cloze import commonsenseqa_cloze
from me_jax.evals.math import math, math_own_exemplars, math_plain
from me_jax.evals.mbpp import mbpp
from me_jax.evals.mmlu import mmlu
from me_jax.evals.mmlu_cloze import mmlu_cloze
from me_jax.evals.perplexity import sample_ppl, wikitext_ppl
from me_jax.evals.sst2_icl import sst2_icl
from me_jax.evals.task import Task, TaskContext
from me_jax.evals.tydiqa import tydiqa, tydiqa_goldp

# The paper's eight, in the order of its Table 1.
BENCHMARKS: Mapping[str, Callable[[TaskContext], Task]] = {
  'mmlu': mmlu,
  'mbpp': mbpp,
  'math': math,
  'bbh': bbh,
  'tydiqa': tydiqa,
  'c3': c3,
  'commonsenseqa': commonsenseqa,
  'axb': axb,
}
TASKS: Mapping[str, Callable[[TaskContext], Task]] = {
  **BENCHMARKS,
  'commonsenseqa_cloze': commonsenseqa_cloze,
  'commonsenseqa_whole': commonsenseqa_whole,
  'math_own_exemplars': math_own_exemplars,
  'math_plain': math_plain,
  'mmlu_cloze': mmlu_cloze,
  'sample_ppl': sample_ppl,
  'sst2_icl': sst2_icl,
  'tydiqa_goldp': tydiqa_goldp,
  'wikitext_ppl': wikitext_ppl,
}
# Items of the complete public files.
OFFICIAL_ITEMS: Mapping[str, int] = {
  'axb': 1104,
  'bbh': 6511,
  'c3': 1825,
  'commonsenseqa': 1221,
  'commonsenseqa_cloze': 1221,
  'commonsenseqa_whole': 1221,
  'math': 5000,
  'math_own_exemplars': 5000,
  'math_plain': 5000,
  'mbpp': 500,
  'mmlu': 14_042,
  'mmlu_cloze': 14_042,
  'sst2_icl': 872,
  'tydiqa': 6322,
  'tydiqa_goldp': 5077,
}
# Texts in windows of their own.
_NO_WINDOW = frozenset({'sample_ppl', 'wikitext_ppl'})
# Scoring these runs programs that the model wrote.
RUNS_CODE = frozenset({'mbpp'})


def base_name(name: str) -> str:
  """The name of a task without its window: 'bbh' of 'bbh@4096'."""
  return name.partition('@')[0]


def make_task(name: str, context: TaskContext) -> Task:
  """The task called `name`.

  'bbh@4096' is the task 'bbh' in a window of 4,096 tokens instead of 2,048; it
  keeps the longer name, for its scores are not comparable.

  Raises:
    ValueError: There is none; names the nearest.
  """
  base, at, window = name.partition('@')
  if base not in TASKS or (at and not window.isdigit()):
    near = difflib.get_close_matches(name, TASKS, cutoff=0.4) or sorted(TASKS)
    raise ValueError(
      f'No task is called {name!r}. Did you mean {", ".join(near)}? A window '
      'other than 2,048 tokens is written as mmlu@4096.'
    )
  if not at:
    return TASKS[base](context)
  if base in _NO_WINDOW:
    raise ValueError(
      f'{base} reads its text in windows of 512 tokens, whatever the window of '
      f'prompts: {name!r} would be the same under another name.'
    )
  task = TASKS[base](dataclasses.replace(context, window=int(window)))
  return dataclasses.replace(task, name=name)
