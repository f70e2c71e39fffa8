"""Seconds per ROME edit, beside plain PyTorch and beside the arithmetic.

  python -m bench.rome --facts=5

Both sides edit the same facts with the same token rows, in turn, in one
process, with all cores; the early stop is off, so that both do the same number
of evaluations. Needs the extra `parity` (torch). Without --second_moment both
leave out two triangular solves.
"""

import dataclasses
import json
import math
import os
import time

import jax
import numpy as np
import torch
from absl import app, flags

from bench import facts, rome_floor, torch_model, torch_rome
from me_jax import files, trees
from me_jax.config import RomeConfig
from me_jax.edits import (
  rome,
  rows,
  templates,
)
from me_jax.models import load

_LAYER = flags.DEFINE_integer('layer', 5, 'The edited layer.', lower_bound=0)
_FACTS = flags.DEFINE_integer(
  'facts', 5, 'How many facts are timed.', lower_bound=1
)

_SAME_LOSS = 0.05  # largest relative difference of the final losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """One fact. Times in seconds, compilation in none but `compile`.

  Attributes:
    fact: Prompt and target.
    tail_tokens: Real tokens that a step of our search runs.
    all_tokens: Real tokens that a step of PyTorch's runs.
    ours, torch: The whole edit: key pass, search, closed form.
    floor: `rome_floor.seconds` of the search.
    flops: Operations counted there.
    compile: What the first edit of this shape took longer; 0 if not the first.
    our_loss, torch_loss: At the last evaluation.
    load: Processes running at the time; above the cores, others disturb.
  """

  fact: str
  tail_tokens: int
  all_tokens: int
  ours: float
  torch: float
  floor: float
  flops: int
  compile: float
  our_loss: float
  torch_loss: float
  load: float

  @property
  def ratio(self) -> float:
    """How many times faster ours is."""
    return self.torch / self.ours

  @property
  def loss_difference(self) -> float:
    """Relative difference of the final losses."""
    return abs(self.our_loss / self.torch_loss - 1)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  versions = facts.all_cores()

  model = load.load_model(facts.MODEL.value)
  config = RomeConfig(
    layer=_LAYER.value,
    mom2_adjustment=facts.SECOND_MOMENT.value is not None,
    v_num_grad_steps=facts.STEPS.value,
    early_stop_loss=-math.inf,
  )
  factor = None
  if config.mom2_adjustment:
    factor = facts.factors(model, [config.layer])[config.layer]
  drawn = templates.draw_templates(
    model.config,
    model.params,
    model.tokenizer,
    length_params=config.context_template_length_params,
    seed=0,
  )
  timings = time_facts(
    model, config, factor, facts.pool()[: _FACTS.value], drawn
  )
  summary = {
    name: float(np.median([getattr(t, name) for t in timings]))
    for name in ('ours', 'torch', 'ratio', 'floor', 'loss_difference')
  }
  print(
    f'median: ours {summary["ours"]:.2f} s, PyTorch {summary["torch"]:.2f} s, '
    f'{summary["ratio"]:.2f} times faster; floor of the search '
    f'{summary["floor"]:.2f} s, ours {summary["ours"] / summary["floor"]:.2f} '
    'times that'
  )
  if facts.JSON.value:
    content = {
      'versions': versions,
      'median': summary,
      'facts': [dataclasses.asdict(t) for t in timings],
    }
    files.write_atomic(facts.JSON.value, json.dumps(content, indent=2) + '\n')
  # Written so that a NaN fails.
  worst = max((t.loss_difference for t in timings), key=_nan_last)
  if not worst <= _SAME_LOSS:
    raise SystemExit(
      f'The final losses differ by {worst:.1%}, more than {_SAME_LOSS:.0%}: '
      'the two sides did not do the same search.'
    )


def time_facts(model, config, factor, requests, drawn) -> list[Timing]:
  """Edits each fact with both, in turn; prints a line each."""
  leaves = trees.flatten(model.params)
  plain_model = torch_model.build_model(
    model.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
  )
  chol = None if factor is None else torch.from_numpy(factor.chol)
  settings = rome.search_config(config)
  warm_up = dataclasses.replace(settings, v_num_grad_steps=2)
  seen = set()
  timings = []
  print(
    'tokens tail/all     ours  PyTorch  ratio    floor  GFLOP/s  compile     '
    'loss ours/PyTorch  load'
  )
  for i, request in enumerate(requests):
    token_rows, _ = rows.build_rows(model.tokenizer, request, drawn)

    def ours(request=request):
      start = time.perf_counter()
      change, info = rome.edit_one(
        config,
        model.config,
        model.params,
        model.tokenizer,
        request,
        drawn,
        factor,
      )
      jax.block_until_ready(change)
      return time.perf_counter() - start, info['steps'][-1]['loss']

    def plain(settings=settings, token_rows=token_rows):
      start = time.perf_counter()
      found = torch_rome.edit(
        plain_model,
        token_rows,
        layer=config.layer,
        settings=settings,
        chol=chol,
      )
      return time.perf_counter() - start, float(found.loss[-1])

    shapes = tuple(array.shape for array in token_rows)
    first = None if shapes in seen else ours()[0]
    seen.add(shapes)
    plain(warm_up)
    # In turn, so that neither side always has the quieter machine.
    sides = [ours, plain]
    results = {side: side() for side in (sides if i % 2 == 0 else sides[::-1])}
    (our_seconds, our_loss), (torch_seconds, torch_loss) = (
      results[ours],
      results[plain],
    )
    work = rome_floor.search_work(
      model.config,
      token_rows,
      layer=config.layer,
      evaluations=config.v_num_grad_steps,
    )
    timing = Timing(
      fact=f'{request.text} {request.target_new}',
      tail_tokens=int((token_rows.lengths - token_rows.lookups).sum()),
      all_tokens=int(token_rows.lengths.sum()),
      ours=our_seconds,
      torch=torch_seconds,
      floor=rome_floor.seconds(work),
      flops=work.flops,
      compile=0.0 if first is None else first - our_seconds,
      our_loss=our_loss,
      torch_loss=torch_loss,
      load=os.getloadavg()[0],
    )
    timings.append(timing)
    print(_line(timing), flush=True)
  return timings


def _line(t: Timing) -> str:
  tokens = f'{t.tail_tokens}/{t.all_tokens}'
  rate = t.flops / t.floor / 1e9
  return (
    f'{tokens:>15} {t.ours:8.2f} {t.torch:8.2f} {t.ratio:6.2f} '
    f'{t.floor:8.2f} {rate:8.1f} {t.compile:8.2f} '
    f'{t.our_loss:10.5f} {t.torch_loss:10.5f} {t.load:5.1f}  {t.fact}'
  )


def _nan_last(x: float) -> tuple[bool, float]:
  return math.isnan(x), x


if __name__ == '__main__':
  app.run(main)
