"""A model in memory as EleutherAI's lm-evaluation-harness sees models.

Needs the package `lm_eval` (extra `lm-eval`). Tokenisation, truncation and the
cutting of outputs are those of the harness's own Hugging Face model.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import tqdm
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import (
  handle_stop_sequences,
  normalize_gen_kwargs,
  postprocess_generated_text,
)

from me_jax.models.tokenizer import FastTokenizer
from me_jax.prefixes import shared_lengths
from me_jax.typing import GenerateRequest, ModelState, Predictor, ScoreRequest

# (strings for the harness's log or None, context ids, continuation ids)
_Pair = tuple[tuple[str, str] | None, list[int], list[int]]

# Continuations of one context share a row up to this many tokens, or up to
# twice the context: beyond, attention costs more than the context saves.
_SHORT_ROW = 256

# Generation settings that cannot change a greedy output.
_GREEDY = frozenset(
  ('do_sample', 'max_gen_toks', 'min_p', 'temperature', 'top_k', 'top_p')
  + ('until', 'use_cache')
)


class MeJaxLM(TemplateLM):
  """An `lm_eval` model: one state of a model behind a `Predictor`.

  `with_state` gives the same model after an edit; nothing is compiled anew.
  """

  def __init__(
    self,
    predictor: Predictor,
    state: ModelState,
    tokenizer: FastTokenizer,
    *,
    max_length: int,
    max_gen_toks: int = 256,
  ):
    """Binds what is in memory.

    Args:
      predictor: Answers the requests; batches are its affair.
      state: The weights, and what the editing method carries along.
      tokenizer: The model's.
      max_length: The window: at most so many tokens are fed. The harness's own
        Hugging Face model takes the `max_position_embeddings` of the model.
      max_gen_toks: New tokens where a task sets no limit.
    """
    super().__init__()
    self._predictor = predictor
    self._state = state
    self._tokenizer = tokenizer
    self.max_length = max_length
    self.max_gen_toks = max_gen_toks

  def with_state(self, state: ModelState) -> 'MeJaxLM':
    """The same model in another state; shares all else."""
    other = copy.copy(self)
    other._state = state
    return other

  @property
  def eot_token_id(self) -> int:
    """The token that ends a text."""
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    """What stands in for an empty context: BOS, or EOS if there is no BOS."""
    bos = self._tokenizer.roles.get('bos_token')
    if bos is None:
      return self.eot_token_id
    return self._tokenizer.backend.token_to_id(bos)

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None
  ) -> list[int]:
    """Ids of `string`.

    Args:
      string: Any text.
      add_special_tokens: By default those that the tokenizer adds, unless the
        text brings its own prefix token.
    """
    if add_special_tokens is None:
      add_special_tokens = not string.startswith(
        self._text_of(self.prefix_token_id)
      )
    return self._tokenizer.backend.encode(
      string, add_special_tokens=add_special_tokens
    ).ids

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihood of each whole text, in windows that predict every token
    once; the first one is conditioned on the prefix token."""
    windows = [
      (i, *utils.make_disjoint_window(window))
      for i, request in enumerate(requests)
      for window in utils.get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      )
    ]
    answers = self._loglikelihood_tokens(
      [(None, context, continuation) for _, context, continuation in windows],
      disable_tqdm=disable_tqdm,
    )
    totals = [0.0] * len(requests)
    for (i, _, _), (logprob, _) in zip(windows, answers, strict=True):
      totals[i] += logprob
    return totals

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """Greedy continuations, cut before the first stop string.

    Raises:
      ValueError: A request asks for sampling, beams or another setting that
        would change a greedy output, or leaves no room for a prompt.
    """
    settings = [self._generation_settings(r.args[1]) for r in requests]
    prompts = [
      self.tok_encode(r.args[0]) or [self.prefix_token_id] for r in requests
    ]
    rooms = [self.max_length - limit for _, limit in settings]
    cut = [tuple(ids[-room:]) for ids, room in zip(prompts, rooms, strict=True)]
    self._warn_of_cuts(prompts, cut)
    asked = [
      GenerateRequest(
        prompt=prompt,
        max_new_tokens=limit,
        decided=lambda text, until=until: any(s in text for s in until),
        shared=shared,
      )
      for prompt, (until, limit), shared in zip(
        cut, settings, shared_lengths(cut), strict=True
      )
    ]
    outputs, nonfinite = [''] * len(requests), 0
    with tqdm.tqdm(
      total=len(requests), disable=disable_tqdm, desc='generate_until'
    ) as bar:
      for i, result in self._predictor.generate(self._state, asked):
        outputs[i] = self._cut(result.tokens, result.text, settings[i][0])
        nonfinite += result.stop_reason == 'nonfinite'
        bar.update()
    if nonfinite:
      logging.warning(
        '%d of %d outputs end at a logit that is NaN or infinite.',
        nonfinite,
        len(requests),
      )
    return outputs

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> NoReturn:
    """Raises NotImplementedError: there is no chat format here."""
    del chat_history, add_generation_prompt
    raise NotImplementedError(_NO_CHAT)

  @property
  def tokenizer_name(self) -> NoReturn:
    """Raises NotImplementedError: asked for chat templates only."""
    raise NotImplementedError(_NO_CHAT)

  def set_cache_hook(self, cache_hook: CacheHook) -> NoReturn:
    """Raises ValueError: the harness's response cache knows no states."""
    del cache_hook
    raise ValueError(
      'use_cache is refused: the response cache of lm_eval is keyed by the '
      'request alone, so it would answer for this state of the model with the '
      'outputs of another. Leave use_cache out; cache_requests, which holds '
      'prompts only, may be used.'
    )

  def _loglikelihood_tokens(
    self, requests: list[_Pair], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Sum of log-probabilities of each continuation, and whether greedy
    decoding would produce it."""
    pairs = [self._fit(context, rest) for _, context, rest in requests]
    self._warn_of_cuts([r[1] for r in requests], [p[0] for p in pairs])
    groups = _groups(pairs, self.max_length)
    contexts = [pairs[group[0]][0] for group in groups]
    asked = [
      ScoreRequest(
        context=context,
        continuations=tuple(pairs[i][1] for i in group),
        shared=shared,
      )
      for group, context, shared in zip(
        groups, contexts, shared_lengths(contexts), strict=True
      )
    ]
    answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    with tqdm.tqdm(
      total=len(requests), disable=disable_tqdm, desc='loglikelihood'
    ) as bar:
      for j, result in self._predictor.score(self._state, asked):
        for i, logprobs, greedy in zip(
          groups[j], result.logprobs, result.greedy, strict=True
        ):
          answers[i] = (
            float(np.sum(logprobs, dtype=np.float64)),
            bool(np.array_equal(greedy, pairs[i][1])),
          )
        bar.update(len(groups[j]))
    nonfinite = sum(not np.isfinite(logprob) for logprob, _ in answers)
    if nonfinite:
      logging.warning(
        '%d of %d log-likelihoods are NaN or infinite. lm_eval ranks NaN '
        'first, so the scores of these items mean nothing.',
        nonfinite,
        len(answers),
      )
    return answers

  def _fit(
    self, context: Sequence[int], continuation: Sequence[int]
  ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both within the window, cut on the left. The last token is not fed."""
    if not context or not continuation:
      raise ValueError(
        'A context and its continuation need at least one token each, got '
        f'{len(context)} and {len(continuation)}. Does the task have an empty '
        'choice, or a context of white space only?'
      )
    if len(continuation) > self.max_length:
      raise ValueError(
        f'A continuation of {len(continuation)} tokens exceeds max_length, '
        f'{self.max_length}.'
      )
    kept = context[-(self.max_length + 1 - len(continuation)) :]
    return tuple(kept), tuple(continuation)

  def _generation_settings(
    self, settings: dict[str, Any]
  ) -> tuple[list[str], int]:
    """Stop strings and the number of new tokens."""
    normal = normalize_gen_kwargs(settings, self.max_gen_toks)
    limit = normal['max_gen_toks']
    if normal['do_sample']:
      raise ValueError(
        f'Only greedy decoding is supported, the task asks for {settings}. '
        "Give simple_evaluate gen_kwargs='do_sample=False,temperature=0'."
      )
    other = normal.keys() - _GREEDY
    if normal.get('num_beams') == 1:
      other -= {'num_beams'}
    if other:
      raise ValueError(
        f'Unsupported generation settings {sorted(other)} in {settings}; '
        f'supported are {sorted(_GREEDY)}.'
      )
    if not 0 < limit < self.max_length:
      raise ValueError(
        f'max_gen_toks must be between 1 and max_length - 1, that is '
        f'{self.max_length - 1}, got {limit}. Set it with gen_kwargs.'
      )
    until = handle_stop_sequences(
      normal['until'], eos=self._text_of(self.eot_token_id)
    )
    return [stop for stop in until if stop], limit

  def _cut(self, tokens: np.ndarray, text: str, stops: list[str]) -> str:
    """The output before what stopped it."""
    # A special token is not in the text, where `decided` looks for it.
    special = self._tokenizer.special_ids & {
      self._tokenizer.backend.token_to_id(stop) for stop in stops
    }
    at = np.flatnonzero(np.isin(tokens, list(special)))
    if len(at):
      text = self._tokenizer.decode(tokens[: at[0]].tolist())
    return postprocess_generated_text(text, stops, think_end_token=None)

  def _warn_of_cuts(
    self, whole: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]
  ) -> None:
    cut = sum(len(a) > len(b) for a, b in zip(whole, kept, strict=True))
    if cut:
      logging.warning(
        '%d of %d prompts do not fit the window of %d tokens and lose their '
        'beginning.',
        cut,
        len(whole),
        self.max_length,
      )

  def _text_of(self, token_id: int) -> str:
    return self._tokenizer.backend.id_to_token(token_id)


_NO_CHAT = (
  'Chat templates are not supported: the prompt of the task is what the model '
  'reads. Leave apply_chat_template out, or write the format into the '
  'doc_to_text of the task.'
)


def _groups(
  pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], max_length: int
) -> list[list[int]]:
  """Indices of pairs whose contexts are equal and fit into one row."""
  by_context: dict[tuple[int, ...], list[int]] = {}
  for i, (context, _) in enumerate(pairs):
    by_context.setdefault(context, []).append(i)
  groups = []
  for context, indices in by_context.items():
    limit = min(max_length, max(_SHORT_ROW, 2 * len(context)))
    size = limit  # so that the first one opens a group
    for i in indices:
      continuation = pairs[i][1]
      if size + len(continuation) > limit:
        groups.append([])
        size = len(context)
      groups[-1].append(i)
      size += len(continuation)
  return groups
