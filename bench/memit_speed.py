"""A MEMIT batch, timed, beside the searches of its facts in PyTorch."""

import dataclasses
import os
import resource
import time

import jax
import numpy as np

from bench import torch_model, torch_rome
from me_jax import trees
from me_jax.edits import batched_values, memit, memit_solve, packing

HEADER = (
  'facts   search    write   s/fact  compile  tokens real/padded '
  'temporary MB  process MB  load'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
  """One batch. Times in seconds, compilation in none but `compile`.

  Attributes:
    facts: How many.
    search: Targets of all.
    write: Keys, residuals and solves of all layers.
    compile: What the first time took longer.
    tail_tokens: Real tokens that a step of the search runs.
    padded_tokens: With padding; of the largest group that is searched at once.
    temporary_mb: Memory of the largest group's search beyond the weights.
    peak_mb: Of the whole process so far.
    load: Processes running at the time; above the cores, others disturb.
  """

  facts: int
  search: float
  write: float
  compile: float
  tail_tokens: int
  padded_tokens: int
  temporary_mb: float
  peak_mb: float
  load: float

  @property
  def seconds(self) -> float:
    """The whole edit."""
    return self.search + self.write


def time_batch(model, config, factors, requests) -> Timing:
  """The second of two edits with `requests`, less the search for words."""
  first, second = (edit(model, config, factors, requests) for _ in range(2))
  group = requests[: config.search_batch_size]
  packed = packing.pack(group)
  compiled = batched_values.search.lower(
    model.config,
    model.params,
    packed,
    batched_values.wanted(group, packed),
    layer=config.layers[-1],
    search_config=memit.search_config(config),
  ).compile()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return Timing(
    facts=len(requests),
    search=second.search,
    write=second.write,
    compile=first.search + first.write - second.search - second.write,
    tail_tokens=sum(int((r.lengths - r.lookups).sum()) for r in group),
    padded_tokens=len(packed.ids) * packed.tail_slots.size,
    temporary_mb=compiled.memory_analysis().temp_size_in_bytes / 1e6,
    peak_mb=peak * 1.048576,
    load=os.getloadavg()[0],
  )


@dataclasses.dataclass(frozen=True)
class Edited:
  """Seconds of both halves of an edit, and losses [N, evaluations]."""

  search: float
  write: float
  losses: np.ndarray


def edit(model, config, factors, requests) -> Edited:
  """One MEMIT edit of all `requests`."""
  start = time.perf_counter()
  found = batched_values.find_targets(
    model.config,
    model.params,
    requests,
    layer=config.layers[-1],
    search_config=memit.search_config(config),
    batch_size=config.search_batch_size,
  )
  middle = time.perf_counter()
  shares = memit.write_targets(
    config,
    model.config,
    model.params,
    requests,
    np.stack([target.z for target in found]),
    lambda layer, keys: memit_solve.solve(
      keys, factors[layer], config.mom2_update_weight
    ),
    layers=config.layers,
    case_ids=[str(i) for i in range(len(requests))],
  )
  jax.block_until_ready([share.change for share in shares])
  end = time.perf_counter()
  losses = [t.search.nll + t.search.kl + t.search.weight_decay for t in found]
  return Edited(middle - start, end - middle, np.stack(losses))


def compare(model, config, factors, requests) -> dict[str, float]:
  """Our edit of all `requests` against PyTorch's searches, in turn."""
  leaves = trees.flatten(model.params)
  plain_model = torch_model.build_model(
    model.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
  )
  settings = memit.search_config(config)
  module = plain_model.model.layers[config.layers[-1]]

  def plain(settings, requests):
    start = time.perf_counter()
    histories = [
      torch_rome.search(plain_model, r, module=module, settings=settings)[2]
      for r in requests
    ]
    return time.perf_counter() - start, np.stack([h[:, 0] for h in histories])

  plain(dataclasses.replace(settings, v_num_grad_steps=2), requests[:1])
  edit(model, config, factors, requests)
  before = edit(model, config, factors, requests)
  torch_seconds, torch_losses = plain(settings, requests)
  after = edit(model, config, factors, requests)
  ours = (before.search + before.write + after.search + after.write) / 2
  gained = torch_losses[:, 0] - torch_losses[:, -1]
  apart = np.abs(after.losses[:, -1] - torch_losses[:, -1])
  result = {
    'facts': len(requests),
    'ours': ours,
    'our_search': (before.search + after.search) / 2,
    'torch_search': torch_seconds,
    'ratio': torch_seconds / ours,
    'loss_difference': float((apart / gained).max()),
    'load': os.getloadavg()[0],
  }
  print(
    f'{len(requests)} facts: ours, one batch, whole edit {ours:.2f} s '
    f'(search {result["our_search"]:.2f} s); PyTorch, searches alone, one '
    f'after another {torch_seconds:.2f} s; {result["ratio"]:.2f} times '
    f'faster; load {result["load"]:.1f}; final losses within '
    f'{result["loss_difference"]:.2%}'
  )
  return result


def line(t: Timing) -> str:
  """The row under `HEADER`."""
  tokens = f'{t.tail_tokens}/{t.padded_tokens}'
  return (
    f'{t.facts:5} {t.search:8.2f} {t.write:8.2f} {t.seconds / t.facts:8.2f} '
    f'{t.compile:8.2f} {tokens:>19} {t.temporary_mb:12.0f} '
    f'{t.peak_mb:11.0f} {t.load:5.1f}'
  )
