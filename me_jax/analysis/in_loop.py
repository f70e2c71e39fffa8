"""What is analysed of each measured state of a run, by name.

An analysis gives the rows of its table; what they are means of goes into the
run's directory first.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence

import numpy as np

from me_jax import files, sharding, trees
from me_jax.analysis import (
  adjusted_perplexity,
  answers,
  saliency,
  saliency_prompts,
  saliency_summary,
  weight_drift,
)
from me_jax.config import AdjustedPerplexityConfig, RunConfig, SaliencyConfig
from me_jax.data.sources import DataSources
from me_jax.edits import registry
from me_jax.edits.editor import Editor
from me_jax.evals import samples, sst2_icl
from me_jax.evals.generation_task import GenerationTask
from me_jax.evals.task import Metric, Task
from me_jax.models import load
from me_jax.models.language_model import LanguageModel
from me_jax.typing import Params
from me_jax.workdir import Workdir

# Which edit step, and the weights after it.
Measure = Callable[[int, Params], list[Metric]]

_ANSWERED = 'commonsenseqa_whole'


def make(
  config: RunConfig,
  *,
  model: LanguageModel,
  editor: Editor,
  tasks: Sequence[Task],
  sources: DataSources,
  workdir: Workdir,
) -> dict[str, Measure]:
  """The analyses that the run asks for, by name.

  Args:
    config: The run's.
    model: At step 0.
    editor: The run's.
    tasks: The run's, whose answers are stored before an analysis begins.
    sources: Where SST-2 is.
    workdir: Where answers are and details go.

  Raises:
    ValueError: An analysis does not see what the method does.
    FileNotFoundError: A file is nowhere.
  """
  makers = {
    'weight_drift': lambda: _weight_drift(model, editor),
    'saliency': lambda: _saliency(config.saliency, model, sources, workdir),
    'adjusted_ppl': lambda: _adjusted_ppl(
      config.adjusted_ppl,
      model,
      next(task for task in tasks if task.name == _ANSWERED),
      workdir,
      config.seed,
    ),
  }
  if 'saliency' in config.analyses and registry.acts_in_forward(
    dataclasses.asdict(config.method)
  ):
    raise ValueError(
      f'The analysis saliency reads weights, and {config.method.name} leaves '
      'them alone: it would measure the unedited model. Take it out.'
    )
  return {name: makers[name]() for name in config.analyses}


def _weight_drift(model: LanguageModel, editor: Editor) -> Measure:
  """Of every kernel that the method edits; nothing of a method that edits none,
  nor before the first edit."""
  kernel_of = lambda params, path: trees.to_host(trees.get(params, path))
  reference = functools.cache(
    lambda path: weight_drift.reference(kernel_of(model.params, path))
  )

  def measure(step: int, params: Params) -> list[Metric]:
    found = []
    for path in editor.edited_paths if step else ():
      kernel = kernel_of(params, path)
      drift = weight_drift.of_kernels(reference(path), kernel)
      for name, value in drift._asdict().items():
        if name != 'dtype':
          found.append(
            Metric(name=f'{name}/{path}', value=value, n=kernel.size)
          )
    return found

  return measure


def _saliency(
  config: SaliencyConfig,
  model: LanguageModel,
  sources: DataSources,
  workdir: Workdir,
) -> Measure:
  """Keeps `analysis/saliency/STEP.npz`: raw scores [seeds, prompts, 3, layers],
  label logits, losses, gold labels, lengths and label positions."""
  prompts = [
    saliency_prompts.read_prompts(
      sources, model.tokenizer, seed=seed, limit=config.limit or None
    )
    for seed in config.seeds
  ]
  labels = saliency_prompts.label_words(model.tokenizer, sst2_icl.LABELS)
  run = saliency.saliency(
    model.config,
    label_ids=labels.ids,
    loss=config.loss,
    exclude_bos=config.exclude_bos,
    batch_size=config.batch_size,
  )

  def measure(step: int, params: Params) -> list[Metric]:
    found = [run(params, of_seed) for of_seed in prompts]
    arrays = {
      'scores': [f.scores for f in found],
      'label_logits': [f.label_logits for f in found],
      'losses': [f.losses for f in found],
      'gold': [[p.gold for p in of_seed] for of_seed in prompts],
      'lengths': [[len(p.ids) for p in of_seed] for of_seed in prompts],
      'label_positions': [
        [p.label_positions for p in of_seed] for of_seed in prompts
      ],
      'seeds': config.seeds,
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    path = workdir.analysis('saliency', step, 'npz')
    files.write_atomic(path, content.getvalue())
    flow = saliency_summary.summarise(list(zip(prompts, found, strict=True)))
    return _flow_metrics(flow)

  return measure


def _flow_metrics(flow: saliency_summary.Flow) -> list[Metric]:
  metric = functools.partial(Metric, n=flow.n)
  found = [
    metric(name='label_accuracy', value=100 * flow.label_accuracy),
    metric(name='late_pq_share', value=flow.late_pq_share),
  ]
  if flow.crossover_layer is not None:
    found.append(metric(name='crossover_layer', value=flow.crossover_layer))
  for prefix, values in (('s', flow.scores), ('share', flow.shares)):
    for of_set, name in zip(values, ('wp', 'pq', 'ww'), strict=True):
      found += [
        metric(name=f'{prefix}_{name}/{layer}', value=float(value))
        for layer, value in enumerate(of_set)
      ]
  return found


def _adjusted_ppl(
  config: AdjustedPerplexityConfig,
  model: LanguageModel,
  task: GenerationTask,
  workdir: Workdir,
  seed: int,
) -> Measure:
  """Keeps `analysis/adjusted_ppl/STEP.jsonl`: a line per answer."""

  @functools.cache
  def scorer() -> LanguageModel:
    # A judge is float32. The unedited model of the run may be it, and is there
    # already.
    source = config.scorer
    is_own = source.name == model.name and not source.path
    if is_own and model.config.dtype == 'float32':
      return model
    mesh = sharding.mesh_of(model.params)
    return load.load_model(source.name, path=source.path, mesh=mesh)

  def measure(step: int, params: Params) -> list[Metric]:
    del params
    judge = scorer()
    read = answers.from_samples(
      task,
      samples.read_samples(
        workdir.samples(task.name, step), state_fingerprint=None
      ),
      scorer=judge.tokenizer,
      context=config.context,
    )
    judged, found = adjusted_perplexity.adjusted_perplexity(
      judge, read, config, seed=seed
    )
    files.write_jsonl(
      workdir.analysis('adjusted_ppl', step, 'jsonl'),
      [adjusted_perplexity.record(j, config) for j in judged],
    )
    return _perplexity_metrics(found)

  return measure


def _perplexity_metrics(
  found: adjusted_perplexity.AdjustedPerplexity,
) -> list[Metric]:
  """NaN where no answer is long enough."""
  value = lambda x: float('nan') if x is None else x
  metric = functools.partial(Metric, n=found.n_used)
  return [
    metric(
      name='adj_mean',
      value=value(found.adj_mean),
      ci_low=found.ci_low,
      ci_high=found.ci_high,
    ),
    metric(name='adj_median', value=value(found.adj_median)),
    metric(name='adj_geomean', value=value(found.adj_geomean)),
    metric(name='ppl_mean', value=value(found.ppl_mean)),
    metric(name='rho_mean', value=value(found.rho_mean)),
    *(
      metric(name=f'adj_mean_n{n}', value=value(x))
      for n, x in enumerate(found.adj_mean_by_n, 1)
    ),
    metric(name='n_excluded', value=found.n_excluded),
  ]
