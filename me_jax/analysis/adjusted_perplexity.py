"""Whether an edited model still writes language (Table 3 of the paper).

Lin et al., *Navigating the Dual Facets* (2024): another model, V, reads what
the edited model answered. With the first m tokens y_1 ... y_m of an answer y to
c, and rho the share of distinct n-grams among all n-grams of y,

    PPL(y) = exp(-1/m sum_k log p_V(y_k | c, y_<k))
    Adj(y) = PPL(y) exp(1 - rho)

and a table holds the mean of Adj over the answers of at least m tokens.

The paper calls rho the repetitive ratio, but it is 1 where nothing repeats: the
factor lies in [1, e), so a loop that V finds likely stays below e times its low
perplexity. Therefore the perplexity and rho themselves, the median and the
geometric mean, and n = 1 ... 4 stand beside it. Numbers compare only where the
same answers are long enough: see `n_used`.

Log-probabilities are float32, all else is float64, and nothing is clipped.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from me_jax.analysis.answers import Answer
from me_jax.config import AdjustedPerplexityConfig
from me_jax.config.adjusted_perplexity import NGRAMS
from me_jax.evals import statistics
from me_jax.generation import LlamaPredictor
from me_jax.models.language_model import LanguageModel
from me_jax.typing import ModelState, Predictor, ScoreRequest


class Judged(NamedTuple):
  """One answer.

  Attributes:
    item_id: What was answered.
    n_tokens: Tokens of the answer.
    ppl: Of its first tokens; None if it is too short to be judged.
    rhos: rho for n = 1 ... 4; None where it has no n-gram.
  """

  item_id: str
  n_tokens: int
  ppl: float | None
  rhos: tuple[float | None, ...]

  def adj(self, n: int) -> float | None:
    """Adjusted perplexity with n-grams of that length; None if too short."""
    return None if self.ppl is None else self.ppl * factor(self.rhos[n - 1])


class AdjustedPerplexity(NamedTuple):
  """All answers of one model; None where none is long enough.

  Attributes:
    n_used: Answers that are judged.
    n_excluded: Answers that are too short.
    adj_mean: The paper's number.
    ci_low: Lower end of its 95 % bootstrap interval.
    ci_high: Upper end.
    adj_median: Median of Adj.
    adj_geomean: Its geometric mean.
    ppl_mean: Mean of PPL.
    rho_mean: Mean of rho.
    adj_mean_by_n: Mean of Adj with n-grams of length 1 ... 4.
  """

  n_used: int
  n_excluded: int
  adj_mean: float | None
  ci_low: float | None
  ci_high: float | None
  adj_median: float | None
  adj_geomean: float | None
  ppl_mean: float | None
  rho_mean: float | None
  adj_mean_by_n: tuple[float | None, ...]


def adjusted_perplexity(
  scorer: LanguageModel,
  answers: Sequence[Answer],
  config: AdjustedPerplexityConfig,
  *,
  seed: int = 0,
) -> tuple[list[Judged], AdjustedPerplexity]:
  """Every answer as the scorer finds it, and all together.

  Args:
    scorer: V.
    answers: In its token ids; see `answers.py`.
    config: Settings; which scorer they name is not looked at.
    seed: Of the bootstrap interval.

  Raises:
    FloatingPointError: The scorer gives likelihoods that are not finite.
    ValueError: An answer is too long for it.
  """
  predictor = LlamaPredictor(scorer.config, scorer.tokenizer)
  judged = judge(predictor, ModelState(scorer.params), answers, config)
  return judged, summarise(judged, config, seed=seed)


def judge(
  predictor: Predictor,
  state: ModelState,
  answers: Sequence[Answer],
  config: AdjustedPerplexityConfig,
) -> list[Judged]:
  """Every answer as a model finds it. Raises as `adjusted_perplexity`."""
  m = config.min_tokens
  chosen = [i for i, a in enumerate(answers) if len(a.tokens) >= m]
  requests = [
    ScoreRequest(
      context=answers[i].context, continuations=(answers[i].tokens[:m],)
    )
    for i in chosen
  ]
  ppls: dict[int, float] = {}
  for index, result in predictor.score(state, requests):
    [logprobs] = result.logprobs
    mean = np.mean(logprobs, dtype=np.float64)
    if not np.isfinite(mean):
      raise FloatingPointError(
        f'Item {answers[chosen[index]].item_id!r}: the scorer gives '
        'likelihoods that are not finite. It must be a sound model.'
      )
    ppls[chosen[index]] = float(np.exp(-mean))
  read = slice(None) if config.ngram_scope == 'answer' else slice(m)
  return [
    Judged(
      a.item_id,
      len(a.tokens),
      ppls.get(i),
      tuple(ngram_ratio(a.tokens[read], n) for n in NGRAMS),
    )
    for i, a in enumerate(answers)
  ]


def summarise(
  judged: Sequence[Judged],
  config: AdjustedPerplexityConfig,
  *,
  seed: int = 0,
) -> AdjustedPerplexity:
  """All answers together; `seed` is that of the bootstrap interval."""
  used = [j for j in judged if j.ppl is not None]
  excluded = len(judged) - len(used)
  if not used:
    nothing = (None,) * 7
    return AdjustedPerplexity(0, excluded, *nothing, (None,) * len(NGRAMS))
  by_n = np.array([[j.adj(n) for n in NGRAMS] for j in used])
  adj = by_n[:, NGRAMS.index(config.ngram_n)]
  low, high = statistics.bootstrap(
    lambda totals: totals[:, 0] / totals[:, 1],
    np.stack([adj, np.ones_like(adj)], axis=1),
    seed=seed,
  )
  return AdjustedPerplexity(
    n_used=len(used),
    n_excluded=excluded,
    adj_mean=float(adj.mean()),
    ci_low=low,
    ci_high=high,
    adj_median=float(np.median(adj)),
    adj_geomean=float(np.exp(np.log(adj).mean())),
    ppl_mean=float(np.mean([j.ppl for j in used])),
    rho_mean=float(np.mean([j.rhos[config.ngram_n - 1] for j in used])),
    adj_mean_by_n=tuple(by_n.mean(axis=0).tolist()),
  )


def record(judged: Judged, config: AdjustedPerplexityConfig) -> dict[str, Any]:
  """One line of JSON: item_id, n_tokens, qualified, ppl20 (named after the
  number of scored tokens), rho_n1 ... rho_n4, adj."""
  return {
    'item_id': judged.item_id,
    'n_tokens': judged.n_tokens,
    'qualified': judged.ppl is not None,
    f'ppl{config.min_tokens}': judged.ppl,
    **{f'rho_n{n}': judged.rhos[n - 1] for n in NGRAMS},
    'adj': judged.adj(config.ngram_n),
  }


def ngram_ratio(tokens: Sequence[int], n: int) -> float | None:
  """rho: distinct n-grams over all n-grams, in (0, 1]; None if there is none.

  1 - rho is seq-rep-n of Welleck et al. 2019.
  """
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  return len(set(grams)) / len(grams) if grams else None


def factor(rho: float) -> float:
  """exp(1 - rho), in [1, e)."""
  return float(np.exp(1 - rho))
