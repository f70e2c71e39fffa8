"""What a run would do, without doing it."""

from collections.abc import Sequence

from launch import evaluation
from me_jax import sequential
from me_jax.config import RunConfig
from me_jax.data.request import EditRequest
from me_jax.data.sources import DataSources
from me_jax.evals.registry import make_task
from me_jax.evals.subset import subset
from me_jax.evals.task import TaskContext
from me_jax.models import load
from me_jax.typing import GenerateRequest


def describe(
  config: RunConfig, requests: Sequence[EditRequest], sources: DataSources
) -> str:
  """Edit steps, measured states, and items and tokens of each task."""
  steps = len(sequential.batches(requests, config.edit_batch_size))
  states = sequential.eval_steps(config)
  lines = [
    f'Plan: {config.method.name} on {config.model.name}',
    f'  {len(requests)} facts in {steps} edit steps, checkpoint after each',
    f'  {len(states)} states measured, after edit steps '
    f'{", ".join(map(str, states))}',
    '  task                    items   prompt tokens   generated at most',
  ]
  tokenizer = load.load_tokenizer(config.model.name, path=config.model.path)
  context = TaskContext(
    sources=sources,
    tokenizer=tokenizer,
    settings=config.evals,
    is_chat=evaluation.is_chat(config.model.name, config.evals),
  )
  for name in config.tasks:
    task = make_task(name, context)
    items = subset(task.items(), config.limit or None, config.seed)
    prompt = new = 0
    for item in items:
      request = task.request(item)
      if isinstance(request, GenerateRequest):
        prompt += len(request.prompt)
        new += request.max_new_tokens
      else:
        prompt += len(request.context) + sum(map(len, request.continuations))
    lines.append(f'  {name:22} {len(items):6,} {prompt:15,} {new:19,}')
  lines.append('  per state; edit scores come on top')
  return '\n'.join(lines)
