"""Look-ups through the engines against plain passes over whole texts."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from me_jax.config import GraceConfig
from me_jax.edits import codebook as codebook_lib
from me_jax.edits import grace_lookup
from me_jax.edits.grace import grace
from me_jax.edits.grace_lookup import GraceState
from me_jax.engines.lower_layers import Activations
from me_jax.generation import LlamaPredictor
from me_jax.models import llama
from me_jax.typing import (
  CONTEXT_END,
  LAST,
  NEW,
  OTHER,
  PROMPT_END,
  Fed,
  GenerateRequest,
  ModelState,
  ScoreRequest,
)

LAYER = 1
SITES = (f'layers/{LAYER}/mlp/key', f'layers/{LAYER}/mlp/out')
POLICIES = ('last_prompt', 'every_new_token', 'last_input', 'fixed_last_edit')
TOLERANCE = 2e-5  # float32
_LONGEST = 24
FIXED = 6  # where the prompt of the latest edit ended


def _ids(text):
  return tuple(text.encode())


@pytest.fixture(scope='module')
def small(tiny):
  layers = {name: tiny.params['layers'][name] for name in ('0', '1', '2')}
  return dataclasses.replace(
    tiny,
    config=dataclasses.replace(tiny.config, num_layers=3),
    params={**tiny.params, 'layers': layers},
  )


@pytest.fixture(scope='module')
def state(small):
  """Entries that about half of all tokens hit, with values that matter."""
  ids = np.array(_ids('To be or not to be'))
  taps = plain_model.forward(
    small.config, small.params, ids, stop=LAYER + 1, taps=SITES[:1]
  ).taps
  keys = taps[SITES[0]][0, ::2]
  count = len(keys)
  rng = np.random.default_rng(0)
  book = codebook_lib.empty(64, 32, 16)
  put = lambda rows, new: rows.at[:count].set(jnp.asarray(new, jnp.float32))
  book = book._replace(
    keys=put(book.keys, keys),
    values=put(book.values, 3 * rng.normal(size=(count, 32))),
    radii=put(book.radii, rng.uniform(2.0, 4.0, size=count)),
    count=jnp.int32(count),
  )
  return ModelState(
    small.params, GraceState(book, jnp.int32(count), jnp.int32(FIXED))
  )


@functools.cache
def _predictor_of(config, tokenizer, policy, rule, layer, activations):
  editor = grace(
    GraceConfig(layer=layer, query=policy, replacement=rule), config, tokenizer
  )
  return LlamaPredictor(
    config,
    tokenizer,
    interventions=editor.interventions,
    whole_prompts=editor.needs_whole_prompts,
    activations=Activations(layer, 1 << 24) if activations else None,
  )


@pytest.fixture(scope='module')
def predictor(small):
  def make(policy='last_prompt', rule='replace_last', activations=False):
    return _predictor_of(
      small.config, small.tokenizer, policy, rule, LAYER, activations
    )

  return make


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, book, ids, regions):
  """Logits [T, V] of one text by one pass, and which tokens hit. `regions` is
  [T, T]: from each query to the tokens whose output it decides about."""
  found = {}

  def fn(output, key):
    gaps = key[0, :, None] - book.keys[None]
    distances = jnp.linalg.norm(gaps, axis=-1)
    distances = jnp.where(
      jnp.arange(len(book.keys)) < book.count, distances, 1e9
    )
    nearest = distances.argmin(axis=-1)
    hits = regions.any(axis=1) & (distances.min(axis=-1) <= book.radii[nearest])
    found['hits'] = hits
    decides = regions & hits[:, None]
    value = book.values[nearest[decides.argmax(axis=0)]]
    return jnp.where(decides.any(axis=0)[:, None], value, output[0])[None]

  x = plain_model.forward(config, params, ids, interventions={SITES[1]: fn}).x
  return llama.logits(config, params, x[0]), found['hits']


def _whole(small, state, ids, replaced):
  """`_logits` of a text, and the queries that hit; `replaced` is from queries
  to tokens.

  All passes have the same length: what comes after a token cannot reach it.
  """
  padded = np.array([*ids, *[0] * (_LONGEST - len(ids))])
  regions = np.zeros((_LONGEST, _LONGEST), bool)
  for query, region in replaced.items():
    regions[query, list(region)] = True
  logits, hits = _logits(
    small.config, state.params, state.editor.codebook, padded, regions
  )
  return np.asarray(logits)[: len(ids)], np.flatnonzero(hits).tolist()


def _queries(policy, num_prompt, total, is_alone):
  """Which tokens of a whole text ask that is scored, all but its last fed."""
  last = total - 2
  # The end of a context is no candidate's own.
  ends = [last] if last >= num_prompt or is_alone else []
  return {
    'last_prompt': [num_prompt - 1],
    'every_new_token': ends,
    'last_input': ends,
    'fixed_last_edit': [FIXED] if last >= FIXED else ends,
  }[policy]


def _expected_scores(small, state, request, policy, rule='replace_last'):
  scores, all_hits = [], []
  is_alone = len(request.continuations) == 1
  for tokens in request.continuations:
    ids, n = (*request.context, *tokens), len(request.context)
    replaced = {
      q: {
        'replace_last': [q],
        'replace_prompt': range(q),
        'replace_all': range(len(ids)),
      }[rule]
      for q in _queries(policy, n, len(ids), is_alone)
    }
    logits, hits = _whole(small, state, ids, replaced)
    logprobs = np.asarray(jax.nn.log_softmax(logits))[n - 1 : -1]
    scores.append(logprobs[np.arange(len(tokens)), list(tokens)])
    all_hits += [h for h in hits if h < len(ids) - 1]
  return scores, len(all_hits)


REQUESTS = [
  ScoreRequest(context=_ids(context), continuations=tuple(map(_ids, ends)))
  for context, ends in [
    ('To be o', ('r no', 'r not', 'x')),
    ('To be or not to', ('?', '!')),
    ('To', (' be', ' be or not')),
    ('What a piece', (' of', 'y')),
    ('To be or n', ('ot', 'o')),
    ('To be or n', ('o',)),
    ('To b', ('e',)),
    ('To be', (' or not',)),
  ]
]


def _ordered(results, count):
  by_index = dict(results)
  return [by_index[i] for i in range(count)]


# Which tokens ask


@pytest.mark.parametrize(
  'policy, expected',
  [
    ('last_prompt', [0, 0, 1, 1, 0, 0, 0]),
    ('every_new_token', [0, 0, 0, 1, 1, 1, 1]),
    ('last_input', [0, 0, 0, 1, 1, 1, 1]),
    ('fixed_last_edit', [0, 1, 0, 1, 1, 0, 1]),
  ],
)
def test_queries(policy, expected):
  kinds = [OTHER, OTHER, CONTEXT_END, PROMPT_END, NEW, LAST, LAST]
  positions = [0, FIXED, *[FIXED - 1] * 2, FIXED + 9, FIXED + 2, FIXED - 1]
  fed = Fed(jnp.array([kinds]), jnp.array([positions]))
  asks = grace_lookup.queries(policy, fed, jnp.int32(FIXED))
  assert asks.astype(int).tolist() == [expected]


def test_a_long_prompt_does_not_ask_twice():
  fed = Fed(
    jnp.array([[OTHER, OTHER, PROMPT_END]]),
    jnp.array([[FIXED - 1, FIXED, FIXED + 1]]),
  )
  asks = grace_lookup.queries('fixed_last_edit', fed, jnp.int32(FIXED))
  assert asks.tolist() == [[False, True, False]]


def test_unknown_names():
  fed = Fed(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
  with pytest.raises(ValueError, match="no query policy 'last'"):
    grace_lookup.queries('last', fed, jnp.int32(0))
  with pytest.raises(ValueError, match="no replacement rule 'last'"):
    grace_lookup.replaced('last', fed.positions, fed.positions)


def test_half_precision_stays(state):
  fed = Fed(jnp.array([[OTHER, PROMPT_END]]), jnp.array([[0, 1]]))
  keys = state.editor.codebook.keys[None, :2].astype(jnp.bfloat16)
  output = jnp.zeros((1, 2, 32), jnp.bfloat16)
  found = grace_lookup.intervene(
    state.editor, output, keys, fed, policy='last_prompt', rule='replace_last'
  )
  assert found.dtype == jnp.bfloat16 and not found[0, 0].any()
  value = state.editor.codebook.values[1].astype(jnp.bfloat16)
  np.testing.assert_array_equal(found[0, 1], value)


# Scores


@pytest.mark.parametrize(
  'policy, activations',
  [
    *((policy, False) for policy in POLICIES),
    ('last_prompt', True),
    ('last_input', True),
    ('fixed_last_edit', True),
  ],
)
def test_scores_equal_whole_passes(
  small, state, predictor, policy, activations
):
  """Contexts of all lengths, alone and behind a prefix, in one batch."""
  asker = predictor(policy, activations=activations)
  requests = [
    *REQUESTS,
    # The fixed position lies in the prefix of the last two.
    dataclasses.replace(REQUESTS[0], shared=4),
    dataclasses.replace(REQUESTS[1], shared=8),
    dataclasses.replace(REQUESTS[4], shared=8),
  ]
  num_hits = 0
  for _ in range(1 + activations):  # computed, then kept
    found = _ordered(asker.score(state, requests), len(requests))
    for request, result in zip(requests, found, strict=True):
      scores, hits = _expected_scores(small, state, request, policy)
      num_hits += hits
      for a, b in zip(result.logprobs, scores, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
  assert num_hits > 0


def test_hits_move_scores_and_misses_do_not(small, state, predictor):
  """The comparison above has something to see."""
  plain = LlamaPredictor(small.config, small.tokenizer)
  bases = _ordered(plain.score(state, REQUESTS), len(REQUESTS))
  found = _ordered(predictor().score(state, REQUESTS), len(REQUESTS))
  moved = []
  for request, result, base in zip(REQUESTS, found, bases, strict=True):
    _, hits = _expected_scores(small, state, request, 'last_prompt')
    change = np.abs(result.logprobs[0] - base.logprobs[0]).max()
    assert (change > 0.01) if hits else (change < TOLERANCE)
    moved.append(bool(hits))
  assert {True, False} == set(moved)


@pytest.mark.parametrize('rule', ['replace_prompt', 'replace_all'])
def test_rules_that_replace_prompts(small, state, predictor, rule):
  asker = predictor(rule=rule)
  # The predictor knows that nothing may be shared.
  requests = [*REQUESTS, dataclasses.replace(REQUESTS[1], shared=9)]
  found = _ordered(asker.score(state, requests), len(requests))
  for request, result in zip(requests, found, strict=True):
    expected, _ = _expected_scores(small, state, request, 'last_prompt', rule)
    for a, b in zip(result.logprobs, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_letters_behind_one_context(small, state, predictor):
  """Four answers of one token each see what was put out before them."""
  request = ScoreRequest(
    context=_ids('To be or not to'),
    continuations=tuple(map(_ids, 'ABCD')),
    score_context=True,
  )
  ((_, found),) = predictor().score(state, [request])
  expected, hits = _expected_scores(small, state, request, 'last_prompt')
  assert hits == 4
  np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=TOLERANCE)
  # What the context itself is given is not touched: it ends there.
  ((_, base),) = LlamaPredictor(small.config, small.tokenizer).score(
    state, [request]
  )
  np.testing.assert_allclose(
    found.context_logprobs, base.context_logprobs, rtol=0, atol=TOLERANCE
  )


# Texts

DECODING = ('last_prompt', 'every_new_token', 'fixed_last_edit')

PROMPTS = (
  'To be o',
  'To be or no',
  'T',
  'To be or not to',
  'What a piece',
  'To be or n',
)
NEW_TOKENS = 6


def _continue(small, state, prompt, policy, rule):
  """Greedy tokens, each by a whole pass, and how often there was a hit."""
  ids, n, num_hits = list(prompt), len(prompt), 0
  end = n - 1
  first = min(FIXED, end) if policy == 'fixed_last_edit' else end
  region = {
    'replace_last': [first],
    'replace_prompt': range(end),
    'replace_all': range(n),
  }[rule]
  for _ in range(NEW_TOKENS):
    replaced = {first: region}
    if policy != 'last_prompt':
      replaced |= {q: [q] for q in range(n, len(ids))}
    logits, hits = _whole(small, state, ids, replaced)
    num_hits = len(hits)
    ids.append(int(logits[-1].argmax()))
  return ids[n:], num_hits


@pytest.mark.parametrize(
  'policy, rule',
  [
    *((policy, 'replace_last') for policy in DECODING),
    ('last_prompt', 'replace_prompt'),
    ('last_prompt', 'replace_all'),
  ],
)
def test_decoding_equals_whole_passes(small, state, predictor, policy, rule):
  prompts = [_ids(p) for p in PROMPTS]
  request = lambda p, shared=0: GenerateRequest(
    prompt=p, max_new_tokens=NEW_TOKENS, shared=shared
  )
  requests = [
    *map(request, prompts),
    request(prompts[1], 5),
    request(prompts[3], 8),
  ]
  found = _ordered(
    predictor(policy, rule).generate(state, requests), len(requests)
  )
  expected = {p: _continue(small, state, p, policy, rule) for p in prompts}
  for r, result in zip(requests, found, strict=True):
    assert result.tokens.tolist() == expected[r.prompt][0]
  hits = [n for _, n in expected.values()]
  assert max(hits) > 0
  if policy != 'last_prompt':
    assert max(hits) > 1  # generated tokens were replaced, too


def test_policies_differ(state, predictor):
  """Else the comparison above would see little."""
  requests = [
    GenerateRequest(prompt=_ids(p), max_new_tokens=NEW_TOKENS) for p in PROMPTS
  ]
  texts = {
    policy: tuple(
      tuple(r.tokens.tolist())
      for r in _ordered(
        predictor(policy).generate(state, requests), len(requests)
      )
    )
    for policy in DECODING
  }
  assert len(set(texts.values())) == 3


@pytest.mark.parametrize('shared', [0, 5])
def test_scores_equal_what_is_generated(state, predictor, shared):
  """Under `last_prompt`: what is generated is the arg-max of what is scored."""
  prompts = [_ids(p) for p in PROMPTS if len(p) > shared]
  (asker, count) = predictor(), len(prompts)
  texts = _ordered(
    asker.generate(
      state,
      [
        GenerateRequest(prompt=p, max_new_tokens=5, shared=shared)
        for p in prompts
      ],
    ),
    count,
  )
  scores = _ordered(
    asker.score(
      state,
      [
        ScoreRequest(
          context=p, continuations=(tuple(t.tokens.tolist()),), shared=shared
        )
        for p, t in zip(prompts, texts, strict=True)
      ],
    ),
    count,
  )
  for text, score in zip(texts, scores, strict=True):
    assert len(text.tokens) == 5
    np.testing.assert_array_equal(score.greedy[0], text.tokens)


def test_a_batch_equals_one_at_a_time(state, predictor):
  together = _ordered(predictor().score(state, REQUESTS), len(REQUESTS))
  for request, result in zip(REQUESTS, together, strict=True):
    ((_, alone),) = predictor().score(state, [request])
    for a, b in zip(result.logprobs, alone.logprobs, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_an_empty_codebook_changes_nothing(small, state, predictor):
  book = state.editor.codebook._replace(count=jnp.int32(0))
  empty = ModelState(state.params, state.editor._replace(codebook=book))
  plain = LlamaPredictor(small.config, small.tokenizer)
  for policy in ('last_prompt', 'fixed_last_edit'):
    found = _ordered(predictor(policy).score(empty, REQUESTS), len(REQUESTS))
    bases = _ordered(plain.score(empty, REQUESTS), len(REQUESTS))
    for a, b in zip(found, bases, strict=True):
      for x, y in zip(a.logprobs, b.logprobs, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE)


def test_entries_do_not_trace_again(small, state):
  """Only a larger codebook does."""
  names = collections.Counter()
  editor = grace(GraceConfig(layer=LAYER), small.config, small.tokenizer)
  asker = LlamaPredictor(
    small.config,
    small.tokenizer,
    interventions=editor.interventions,
    shown=editor.shown,
    on_trace=lambda name: names.update([name]),
  )
  ask = GenerateRequest(prompt=_ids('To be'), max_new_tokens=3)
  seen = []
  for count in (0, 1, 7):
    book = state.editor.codebook._replace(count=jnp.int32(count))
    now = ModelState(state.params, state.editor._replace(codebook=book))
    list(asker.score(now, REQUESTS[:1]))
    list(asker.generate(now, [ask]))
    seen.append(dict(names))
  assert seen[0]['score'] == seen[0]['decode'] == 1
  assert seen[0] == seen[1] == seen[2]
  grow = lambda tree: jax.tree.map(
    lambda x: jnp.pad(x, ((0, 16), *((0, 0),) * (x.ndim - 1))) if x.ndim else x,
    tree,
  )
  # The log of many edits of one prompt is nothing to a look-up.
  book = state.editor.codebook
  book = book._replace(log=grow(book.log))
  longer = ModelState(state.params, state.editor._replace(codebook=book))
  list(asker.score(longer, REQUESTS[:1]))
  list(asker.generate(longer, [ask]))
  assert dict(names) == seen[0]
  grown = grow(state.editor)
  list(asker.score(ModelState(state.params, grown), REQUESTS[:1]))
  assert names['score'] == 2
