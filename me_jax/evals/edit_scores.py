"""What became of the facts: reliability, generalization, locality.

A fact is asked by its own prompt (`rewrite`), in other words (`rephrase`), and
by prompts that have nothing to do with it (`locality`). The last are compared
twice: with what the unedited model says (`agreement`), and with the truth
(`specificity`). Scores are shares in per cent, the mean over facts of the mean
over a fact's prompts:

* `token`: tokens that are the arg-max under teacher forcing;
* `exact`: all of them are;
* `generated`: tokens of a greedy continuation that are the same;
* `trigger_rate`, of editors that choose where they act: prompts of which they
  change what is said under teacher forcing.

Of such editors there are also `nearest_distance_<kind>_q10`, `_q50` and `_q90`,
over all prompts of a kind: how far the nearest is that the editor knows, in
units of what it compares.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from me_jax.data.request import EditRequest
from me_jax.data.token_ids import joint_ids
from me_jax.evals import statistics
from me_jax.evals.task import Metric, Record
from me_jax.typing import (
  GenerateRequest,
  ModelState,
  Predictor,
  ScoreRequest,
  Tokenizer,
)

Scores = dict[str, float]  # 0 to 1; '<kind>_<score>'
# From a model state and texts to records with `triggered`, maybe `distance`.
Lookups = Callable[
  [ModelState, Sequence[ScoreRequest]], Sequence[Mapping[str, Any]]
]
_QUANTILES = (10, 50, 90)
NAMES = {
  'rewrite': 'reliability',
  'rephrase': 'generalization',
  'agreement': 'locality_agreement',
  'specificity': 'locality_specificity',
}


class Said(TypedDict):
  """Token ids that a model gives where an answer is expected.

  Attributes:
    forced: Arg-max at each answer position, under teacher forcing.
    free: Greedy continuation, at most as long as the answer.
  """

  forced: list[int]
  free: list[int]


class FactScores(NamedTuple):
  """One fact on one model state.

  Attributes:
    scores: By name, e.g. 'rewrite_token'.
    locality: What was said to each locality prompt; what the unedited model
      said defines agreement.
    nonfinite: Target tokens whose log-probability is NaN or infinite.
    lookups: By kind of prompt, what the editor says of each; empty for editors
      that do not choose where they act.
  """

  scores: Scores
  locality: list[Said]
  nonfinite: int
  lookups: dict[str, list[Record]]


class _Prompt(NamedTuple):
  fact: int
  kind: str
  context: tuple[int, ...]
  target: tuple[int, ...]


def score_facts(
  tokenizer: Tokenizer,
  predictor: Predictor,
  state: ModelState,
  requests: Sequence[EditRequest],
  unedited: Sequence[list[Said]] | None,
  lookups: Lookups | None = None,
) -> list[FactScores]:
  """Scores of each request on a model state.

  Args:
    tokenizer: The model's tokenizer.
    predictor: Who answers.
    state: With which weights.
    requests: The facts.
    unedited: `locality` of each fact on the unedited model; None if this is
      the unedited model.
    lookups: Of an editor that chooses where it acts, see `Editor`; None for
      others.
  """
  prompts = [
    prompt
    for fact, request in enumerate(requests)
    for prompt in _prompts(tokenizer, fact, request)
  ]
  texts = [
    ScoreRequest(context=p.context, continuations=(p.target,)) for p in prompts
  ]
  scored = dict(predictor.score(state, texts))
  generated = predictor.generate(
    state,
    [
      GenerateRequest(prompt=p.context, max_new_tokens=len(p.target))
      for p in prompts
    ],
  )
  free = {index: result.tokens.tolist() for index, result in generated}

  values: list[dict[str, list[float]]] = [{} for _ in requests]
  locality: list[list[Said]] = [[] for _ in requests]
  nonfinite = [0] * len(requests)
  for i, p in enumerate(prompts):
    said = Said(forced=scored[i].greedy[0].tolist(), free=free[i])
    truth = Said(forced=list(p.target), free=list(p.target))
    nonfinite[p.fact] += int((~np.isfinite(scored[i].logprobs[0])).sum())
    expected = {p.kind: truth}
    if p.kind == 'locality':
      before = unedited[p.fact][len(locality[p.fact])] if unedited else said
      expected = {'agreement': before, 'specificity': truth}
      locality[p.fact].append(said)
    for kind, reference in expected.items():
      for name, value in _compare(said, reference, len(p.target)).items():
        values[p.fact].setdefault(f'{kind}_{name}', []).append(value)
  looked: list[dict[str, list[Record]]] = [{} for _ in requests]
  if lookups:
    found = lookups(state, texts)
    for p, record in zip(prompts, found, strict=True):
      name = f'{p.kind}_trigger_rate'
      values[p.fact].setdefault(name, []).append(float(record['triggered']))
      looked[p.fact].setdefault(p.kind, []).append(record)
  return [
    FactScores(
      {name: float(np.mean(v)) for name, v in values[fact].items()},
      locality[fact],
      nonfinite[fact],
      looked[fact],
    )
    for fact in range(len(requests))
  ]


def _compare(said: Said, reference: Said, length: int) -> Scores:
  right = np.equal(said['forced'], reference['forced'])
  # Both may have ended early; where neither goes on, they are the same.
  padded = lambda ids: np.array([*ids, *[-1] * (length - len(ids))])
  same = padded(said['free']) == padded(reference['free'])
  return {
    'token': float(right.mean()),
    'exact': float(right.all()),
    'generated': float(same.mean()),
  }


def metrics(
  edit_step: int,
  facts_until: Sequence[int],
  triangle: Mapping[tuple[int, int], Mapping[str, Any]],
  step_of_fact: Sequence[int],
) -> list[Metric]:
  """Edit scores at one step: individual, sequential, and unedited beside them.

  *Individual* is the mean over facts of the score right after the fact's own
  edit, *sequential* of the score after `edit_step`, *unedited* of the score
  at step 0, which is what comes for free.

  Args:
    edit_step: The step t to report.
    facts_until: Facts written by then; at t = 0 all facts of the run.
    triangle: Scores of fact s after step t, by (t, s).
    step_of_fact: The step that wrote each fact.
  """
  when = {'unedited': lambda fact: 0}
  if edit_step:
    when = {
      'sequential': lambda fact: edit_step,
      'individual': lambda fact: step_of_fact[fact],
      **when,
    }
  found = []
  for prefix, step in when.items():
    cells = [triangle[step(fact), fact] for fact in facts_until]
    for key in dict.fromkeys(name for cell in cells for name in cell):
      values = np.array([100 * cell[key] for cell in cells if key in cell])
      low, high = _interval(values)
      found.append(
        Metric(
          name=f'{prefix}_{metric_name(key)}',
          value=float(values.mean()),
          n=len(values),
          ci_low=low,
          ci_high=high,
        )
      )
  return found


def distances(
  lookups: Sequence[Mapping[str, Sequence[Record]]],
) -> list[Metric]:
  """Quantiles of the distances in `FactScores.lookups`; none of prompts for
  which there is nothing near or far."""
  found = []
  for kind in dict.fromkeys(kind for fact in lookups for kind in fact):
    records = [record for fact in lookups for record in fact.get(kind, ())]
    values = [r['distance'] for r in records if r.get('distance') is not None]
    for q in _QUANTILES if values else ():
      name, value = f'nearest_distance_{kind}_q{q}', np.percentile(values, q)
      found.append(Metric(name=name, value=float(value), n=len(values)))
  return found


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
  """Wilson's where every fact is all right or all wrong, else a bootstrap.

  One fact that is partly right has no spread to resample.
  """
  if np.isin(values, (0.0, 100.0)).all():
    right = int((values == 100.0).sum())
    low, high = statistics.wilson(right, len(values))
    return 100 * low, 100 * high
  if len(values) == 1:
    return None, None
  return statistics.bootstrap(
    lambda totals: totals[:, 0] / totals[:, 1],
    np.stack([values, np.ones_like(values)], axis=1),
  )


def metric_name(key: str) -> str:
  """'rewrite_token' -> 'reliability', 'rephrase_exact' ->
  'generalization_exact'; the token score is the plain name."""
  kind, _, score = key.partition('_')
  name = NAMES.get(kind, kind)
  return name if score == 'token' else f'{name}_{score}'


def _prompts(tokenizer: Tokenizer, fact: int, request: EditRequest):
  texts = [('rewrite', request.text, request.target_new)]
  texts += [
    ('rephrase', p, request.target_new) for p in request.rephrase_prompts
  ]
  texts += [('locality', p.prompt, p.answer) for p in request.locality_prompts]
  for kind, text, target in texts:
    ids = joint_ids(tokenizer, text, target)
    yield _Prompt(fact, kind, ids.prompt, ids.target)
