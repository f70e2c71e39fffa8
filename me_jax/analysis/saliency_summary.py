"""What the saliencies of many prompts and several seeds say together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from me_jax.analysis.saliency import Prompt, Saliency


class Flow(NamedTuple):
  """Means of a model's in-context saliency.

  Attributes:
    scores: float64 [3, layers], S_wp, S_pq and S_ww: means over the prompts of
      a seed, then over seeds.
    shares: float64 [3, layers], the same after each seed's three were divided
      by their sum: they add to 1 at every layer. NaN where all three are 0.
    crossover_layer: The first layer from which on S_pq exceeds S_wp up to the
      last; None if it does not at the last.
    late_pq_share: Mean share of S_pq over the last half of the layers.
    label_accuracy: Share of prompts whose right label has the highest logit;
      where a logit is NaN or infinite, none has.
    n: Prompts of all seeds.
  """

  scores: np.ndarray
  shares: np.ndarray
  crossover_layer: int | None
  late_pq_share: float
  label_accuracy: float
  n: int


def summarise(
  seeds: Sequence[tuple[Sequence[Prompt], Saliency]],
) -> Flow:
  """The means over what was measured with each seed.

  Raises:
    ValueError: There is no seed, or prompts and saliencies differ in number.
  """
  if not seeds:
    raise ValueError('Expected the saliencies of at least one seed, got none.')
  for prompts, found in seeds:
    if len(prompts) != len(found.scores):
      raise ValueError(
        f'{len(prompts)} prompts have {len(found.scores)} saliencies. Are they '
        'of one seed?'
      )
  means = np.stack([found.scores.mean(axis=0) for _, found in seeds])
  shares = shares_of(means).mean(axis=0)
  scores = means.mean(axis=0)
  accuracies = [
    np.mean(_chosen(found.label_logits) == [p.gold for p in prompts])
    for prompts, found in seeds
  ]
  return Flow(
    scores=scores,
    shares=shares,
    crossover_layer=crossover_layer(shares),
    late_pq_share=float(shares[1, shares.shape[1] // 2 :].mean()),
    label_accuracy=float(np.mean(accuracies)),
    n=sum(len(prompts) for prompts, _ in seeds),
  )


def _chosen(label_logits: np.ndarray) -> np.ndarray:
  """The label of each prompt, -1 for none."""
  finite = np.isfinite(label_logits).all(axis=1)
  return np.where(finite, label_logits.argmax(axis=1), -1)


def shares_of(scores: np.ndarray) -> np.ndarray:
  """float64 [..., 3, layers] divided by the sum of each three; NaN for 0."""
  with np.errstate(invalid='ignore'):
    return scores / scores.sum(axis=-2, keepdims=True)


def crossover_layer(shares: np.ndarray) -> int | None:
  """The first layer from which on S_pq exceeds S_wp, of [3, layers]."""
  behind = np.flatnonzero(~(shares[1] > shares[0]))
  first = int(behind[-1]) + 1 if len(behind) else 0
  return first if first < shares.shape[1] else None
