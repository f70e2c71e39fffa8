import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest

from me_jax import trees
from me_jax.edits.edit import LowRank, apply_edit
from me_jax.engines import scoring
from me_jax.engines.lower_layers import Activations
from me_jax.generation import LlamaPredictor, bucket
from me_jax.prefixes import shared_lengths
from me_jax.typing import (
  GenerateRequest,
  ModelState,
  Predictor,
  ScoreRequest,
)

TOLERANCE = 1e-5  # float32
KERNEL = 'layers/0/mlp/down_proj/kernel'


@pytest.fixture(scope='module')
def small(tiny):
  """The tiny model without its upper half: quicker to compile."""
  layers = {name: tiny.params['layers'][name] for name in ('0', '1')}
  return dataclasses.replace(
    tiny,
    config=dataclasses.replace(tiny.config, num_layers=2),
    params={**tiny.params, 'layers': layers},
  )


@pytest.fixture(scope='module')
def traces():
  return collections.Counter()


@pytest.fixture(scope='module')
def predictor(small, traces):
  return LlamaPredictor(
    small.config, small.tokenizer, on_trace=lambda name: traces.update([name])
  )


@pytest.fixture(scope='module')
def state(small):
  return ModelState(small.params)


@pytest.fixture(scope='module')
def edited(small):
  draw = np.random.default_rng(3).standard_normal
  factor = lambda *shape: jnp.asarray(draw(shape) / 16, jnp.float32)
  change = LowRank(factor(64, 32), factor(32, 32))
  return ModelState(apply_edit(small.params, {KERNEL: change}))


def _ids(text):
  return tuple(text.encode())


def _ordered(results, count):
  by_index = dict(results)
  assert sorted(by_index) == list(range(count))
  return [by_index[i] for i in range(count)]


def _score(predictor, state, requests):
  return _ordered(predictor.score(state, requests), len(requests))


def _generate(predictor, state, requests):
  return _ordered(predictor.generate(state, requests), len(requests))


def _assert_same_score(found, expected):
  for a, b in zip(found.logprobs, expected.logprobs, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
  for a, b in zip(found.greedy, expected.greedy, strict=True):
    np.testing.assert_array_equal(a, b)


def _direct(small, context, continuation):
  """Log-probabilities and arg-max by a plain pass over both together."""
  ids = np.array([*context, *continuation])
  logits = np.asarray(plain_model.logits(small.config, small.params, ids))
  logits = logits[len(context) - 1 : -1].astype(np.float64)
  logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return (
    logprobs[np.arange(len(continuation)), list(continuation)],
    logits.argmax(axis=-1),
  )


PACKED = ScoreRequest(
  context=_ids('The '),
  continuations=(_ids('cat'), _ids('c'), _ids('doghouse'), _ids('cat')),
  score_context=True,
)


def test_is_a_predictor(predictor):
  assert isinstance(predictor, Predictor)


# Scores


def test_packed_continuations_equal_a_direct_log_softmax(
  small, predictor, state
):
  (found,) = _score(predictor, state, [PACKED])
  assert found.context_logprobs.dtype == np.float32
  for i, continuation in enumerate(PACKED.continuations):
    logprobs, greedy = _direct(small, PACKED.context, continuation)
    assert found.logprobs[i].dtype == np.float32
    np.testing.assert_allclose(
      found.logprobs[i], logprobs, rtol=0, atol=TOLERANCE
    )
    np.testing.assert_array_equal(found.greedy[i], greedy)
  np.testing.assert_allclose(
    found.context_logprobs,
    _direct(small, PACKED.context[:1], PACKED.context[1:])[0],
    rtol=0,
    atol=TOLERANCE,
  )


def test_packed_continuations_equal_one_request_each(predictor, state):
  (packed,) = _score(predictor, state, [PACKED])
  single = _score(
    predictor,
    state,
    [
      dataclasses.replace(PACKED, continuations=(c,), score_context=False)
      for c in PACKED.continuations
    ],
  )
  for i, result in enumerate(single):
    assert result.context_logprobs is None
    np.testing.assert_allclose(
      packed.logprobs[i], result.logprobs[0], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_array_equal(packed.greedy[i], result.greedy[0])


def test_a_batch_equals_one_at_a_time(small, state):
  requests = [
    ScoreRequest(
      context=_ids('abcdefghij'[: 1 + i % 10]),
      continuations=(
        _ids('xyz'[: 1 + i % 3]),
        _ids('01234' * (i % 4 + 1)),
      ),
    )
    for i in range(5)
  ]
  # Full, ragged and single-row batches of more than one bucket.
  predictor = LlamaPredictor(small.config, small.tokenizer, max_batch=3)
  together = _score(predictor, state, requests)
  for request, found in zip(requests, together, strict=True):
    (alone,) = _score(predictor, state, [request])
    _assert_same_score(found, alone)


def test_context_alone(small, predictor, state):
  """What a perplexity asks for."""
  text = _ids('A text of more than one bucket, which is 16 tokens long.')
  only = lambda ids: ScoreRequest(
    context=ids, continuations=(), score_context=True
  )
  long, shortest = _score(predictor, state, [only(text), only(text[:1])])
  assert long.logprobs == () and long.greedy == ()
  np.testing.assert_allclose(
    long.context_logprobs,
    _direct(small, text[:1], text[1:])[0],
    rtol=0,
    atol=TOLERANCE,
  )
  assert shortest.context_logprobs.shape == (0,)


def test_many_targets_are_scored_in_pieces(small, monkeypatch):
  x = jax.random.normal(jax.random.key(0), (3, 5, small.config.embed_dim))
  targets = jax.random.randint(jax.random.key(1), (3, 5), 0, 257)
  run = lambda: scoring.token_logprobs(small.config, small.params, x, targets)
  whole = run()
  monkeypatch.setattr(scoring, '_LOGIT_ROWS', 4)  # 15 rows: a ragged piece
  pieces = run()
  np.testing.assert_allclose(pieces[0], whole[0], rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(pieces[1], whole[1])


def test_lowest_id_wins_a_tie(small, predictor):
  params = trees.set_leaf(
    small.params, 'lm_head/kernel', jnp.zeros((32, 257), jnp.float32)
  )
  (found,) = _score(predictor, ModelState(params), [PACKED])
  assert [g.tolist() for g in found.greedy] == [
    [0] * len(c) for c in PACKED.continuations
  ]
  np.testing.assert_allclose(
    np.concatenate(found.logprobs), -np.log(257), rtol=1e-6
  )


@pytest.mark.parametrize(
  'context, continuations', [((), ((1,),)), ((1,), ((2,), ()))]
)
def test_empty_pieces_are_refused(predictor, state, context, continuations):
  request = ScoreRequest(context=context, continuations=continuations)
  with pytest.raises(ValueError, match='at least one token'):
    list(predictor.score(state, [request]))


def test_too_long_a_text_is_refused(predictor, state):
  long = (1,) * 4097
  for results in (
    predictor.score(state, [ScoreRequest(context=long, continuations=((1,),))]),
    predictor.generate(state, [GenerateRequest(prompt=long, max_new_tokens=1)]),
  ):
    with pytest.raises(ValueError, match='4097 tokens.*4096.*Truncate'):
      list(results)


def test_bucket():
  assert [bucket(n) for n in (0, 1, 16, 17, 4096)] == [16, 16, 16, 32, 4096]
  assert bucket(5, (8, 4)) == 8
  with pytest.raises(ValueError, match='9 tokens exceeds .* 8'):
    bucket(9, (8, 4))


# Greedy text

PROMPTS = [_ids(t) for t in ('Paris', 'a', 'the longest of the three prompts')]


@pytest.fixture(scope='module')
def uncached(small):
  """12 greedy tokens after each prompt by a full pass per token."""
  return [
    plain_model.greedy(small.config, small.params, prompt, 12)
    for prompt in PROMPTS
  ]


@pytest.fixture(scope='module')
def free_running(predictor, state):
  requests = [GenerateRequest(prompt=p, max_new_tokens=12) for p in PROMPTS]
  return _generate(predictor, state, requests)


def test_cached_equals_uncached(small, free_running, uncached):
  for found, expected in zip(free_running, uncached, strict=True):
    assert found.tokens.tolist() == expected
    assert found.tokens.dtype == np.int32
    assert found.text == small.tokenizer.decode(expected)
    assert found.stop_reason == 'length'


def test_each_row_has_its_own_limit(predictor, state, uncached):
  limits = [3, 0, 12, 1]
  requests = [
    GenerateRequest(prompt=PROMPTS[0], max_new_tokens=n) for n in limits
  ]
  found = _generate(predictor, state, requests)
  assert [r.tokens.tolist() for r in found] == [uncached[0][:n] for n in limits]
  assert {r.stop_reason for r in found} == {'length'}


def test_generation_in_small_batches(small, state, free_running):
  predictor = LlamaPredictor(
    small.config, small.tokenizer, max_batch=2, batch_tokens=32
  )
  requests = [GenerateRequest(prompt=p, max_new_tokens=12) for p in PROMPTS]
  for a, b in zip(
    _generate(predictor, state, requests), free_running, strict=True
  ):
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_end_token_stops_a_row_and_is_not_returned(small, state, uncached):
  """The end token is made one that the model does say."""
  end = uncached[0][5]
  text = next(
    t for t, i in small.tokenizer.backend.get_vocab().items() if i == end
  )
  tokenizer = dataclasses.replace(small.tokenizer, roles={'eos_token': text})
  predictor = LlamaPredictor(small.config, tokenizer)
  requests = [GenerateRequest(prompt=p, max_new_tokens=12) for p in PROMPTS]
  found = _generate(predictor, state, requests)
  for result, free in zip(found, uncached, strict=True):
    at = free.index(end) if end in free else None
    assert result.tokens.tolist() == free[:at]
    assert result.stop_reason == ('length' if at is None else 'eos')
  assert found[0].stop_reason == 'eos'


def test_the_token_that_decides_is_the_last(small, predictor, state, uncached):
  """However many tokens come between two looks."""
  text = lambda n: small.tokenizer.decode(uncached[0][:n]).rstrip('\ufffd')
  for wanted in range(1, len(text(12)) + 1):
    decided = lambda t, wanted=wanted: len(t) >= wanted
    requests = [
      GenerateRequest(prompt=PROMPTS[0], max_new_tokens=12, decided=decided),
      GenerateRequest(prompt=PROMPTS[0], max_new_tokens=12),
      GenerateRequest(
        prompt=PROMPTS[0], max_new_tokens=12, decided=lambda text: False
      ),
    ]
    early, never_asked, never_decided = _generate(predictor, state, requests)
    first = next(n for n in range(1, 13) if decided(text(n)))
    assert early.tokens.tolist() == uncached[0][:first]
    assert early.stop_reason == 'decided'
    # The others never notice.
    for other in (never_asked, never_decided):
      assert other.tokens.tolist() == uncached[0]
      assert other.stop_reason == 'length'


def test_all_decided_at_once(predictor, state, uncached):
  request = GenerateRequest(
    prompt=PROMPTS[1], max_new_tokens=12, decided=lambda text: True
  )
  (found,) = _generate(predictor, state, [request])
  assert found.stop_reason == 'decided'
  assert found.tokens.tolist() == uncached[1][:1]


def test_non_finite_logits_stop_a_row(small, predictor, uncached):
  """A token whose embedding is broken ends the row once it has been fed."""
  first = next(
    i
    for i in range(2, 12)
    if uncached[0][i] not in (*uncached[0][:i], *PROMPTS[0], 0)
  )
  embedding = small.params['embed_tokens']['embedding']
  for bad in (jnp.nan, jnp.inf):
    broken = trees.set_leaf(
      small.params,
      'embed_tokens/embedding',
      embedding.at[uncached[0][first], 0].set(bad),
    )
    requests = [GenerateRequest(prompt=PROMPTS[0], max_new_tokens=12)]
    (found,) = _generate(predictor, ModelState(broken), requests)
    assert found.stop_reason == 'nonfinite'
    assert found.tokens.tolist() == uncached[0][: first + 1]


def test_non_finite_from_the_start(small, predictor):
  kernel = jnp.full((32, 257), jnp.nan, jnp.float32)
  params = trees.set_leaf(small.params, 'lm_head/kernel', kernel)
  request = GenerateRequest(prompt=PROMPTS[0], max_new_tokens=3)
  (found,) = _generate(predictor, ModelState(params), [request])
  assert found.stop_reason == 'nonfinite'
  assert found.tokens.size == 0 and found.text == ''


def test_a_row_that_was_not_finite_leaves_nothing_behind(small, uncached):
  """One row for both answers; the first ends in what is not a number."""
  one_row = LlamaPredictor(small.config, small.tokenizer, max_batch=1)
  others = (*PROMPTS[0], *PROMPTS[1], *uncached[1])
  first = next(
    i for i in range(1, 11) if uncached[0][i] not in (*uncached[0][:i], *others)
  )
  embedding = small.params['embed_tokens']['embedding']
  bad = embedding.at[uncached[0][first]].set(jnp.nan)
  broken = trees.set_leaf(small.params, 'embed_tokens/embedding', bad)
  requests = [GenerateRequest(prompt=p, max_new_tokens=12) for p in PROMPTS[:2]]
  a, b = _generate(one_row, ModelState(broken), requests)
  assert a.stop_reason == 'nonfinite'
  assert a.tokens.tolist() == uncached[0][: first + 1]
  assert b.stop_reason == 'length' and b.tokens.tolist() == uncached[1]


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf, 1e30])
def test_padding_spoils_nothing(small, predictor, state, value):
  """No id of padding is a token of its own that might overflow."""
  embedding = small.params['embed_tokens']['embedding']
  broken = trees.set_leaf(
    small.params, 'embed_tokens/embedding', embedding.at[0].set(value)
  )
  prompts = [p for p in _questions(9) if 0 not in p]
  requests = [
    GenerateRequest(prompt=p, max_new_tokens=2, shared=s)
    for p, s in zip(prompts, shared_lengths(prompts), strict=True)
  ]
  for a, b in zip(
    _generate(predictor, ModelState(broken), requests),
    _generate(predictor, state, requests),
    strict=True,
  ):
    assert 0 not in b.tokens
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert a.stop_reason == b.stop_reason
  scored = _scored(5)
  for a, b in zip(
    _score(predictor, ModelState(broken), scored),
    _score(predictor, state, scored),
    strict=True,
  ):
    _assert_same_score(a, b)


def test_what_is_skipped_changes_no_shape(small, state):
  """Of twenty answers the rest is computed in the same arrays."""
  shapes = collections.defaultdict(set)
  predictor = LlamaPredictor(small.config, small.tokenizer)
  functions = predictor._functions(None)
  for name in ('prefill', 'insert', 'decode'):
    compute = getattr(functions, name)

    def noting(*args, name=name, compute=compute):
      found = jax.tree.map(np.shape, args[1:])
      shapes[name].add(str(found))
      return compute(*args)

    setattr(functions, name, noting)
  requests = [
    GenerateRequest(prompt=p, max_new_tokens=1 + i, shared=32 if i > 3 else 0)
    for i, p in enumerate(_questions(20))
  ]
  whole = _generate(predictor, state, requests)
  seen = {name: set(found) for name, found in shapes.items()}
  for skip in (range(0, 20, 2), range(19), range(20)):
    rest = dict(predictor.generate(state, requests, skip=set(skip)))
    assert set(rest) == set(range(20)) - set(skip)
    for i, found in rest.items():
      np.testing.assert_array_equal(found.tokens, whole[i].tokens)
  assert shapes == seen and set(seen) == {'prefill', 'insert', 'decode'}


def test_empty_prompt_is_refused(predictor, state):
  request = GenerateRequest(prompt=(), max_new_tokens=3)
  with pytest.raises(ValueError, match='prompt'):
    list(predictor.generate(state, [request]))


# Shared prefixes and rows used again

LONG = _ids('What all of them begin with, and then: ')


def _questions(n):
  return [LONG + _ids(f'{"why " * (i % 4)}is it {i}?') for i in range(n)]


def test_a_shared_prefix_changes_no_answer(small, state, predictor):
  prompts = [*_questions(9), *PROMPTS]
  decided = lambda text: 'e' in text
  plain = [
    GenerateRequest(
      prompt=p, max_new_tokens=3 + i, decided=decided if i % 2 else None
    )
    for i, p in enumerate(prompts)
  ]
  shared = [
    dataclasses.replace(r, shared=n)
    for r, n in zip(plain, shared_lengths(prompts), strict=True)
  ]
  assert [r.shared for r in shared] == [32] * 9 + [0] * 3
  for a, b in zip(
    _generate(predictor, state, plain),
    _generate(predictor, state, shared),
    strict=True,
  ):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert (a.text, a.stop_reason) == (b.text, b.stop_reason)


def test_a_shared_prefix_changes_no_score(state, predictor):
  plain = [
    ScoreRequest(context=p, continuations=(_ids('yes'), _ids('n'), _ids('n')))
    for p in _questions(9)
  ]
  shared = [dataclasses.replace(r, shared=32) for r in plain]
  for a, b in zip(
    _score(predictor, state, shared),
    _score(predictor, state, plain),
    strict=True,
  ):
    _assert_same_score(a, b)


def test_what_is_scored_or_all_there_is_cannot_be_shared(predictor, state):
  for request in (
    dataclasses.replace(PACKED, shared=2),
    ScoreRequest(context=(1, 2), continuations=((3,),), shared=2),
  ):
    with pytest.raises(ValueError, match='may share less'):
      list(predictor.score(state, [request]))
  with pytest.raises(ValueError, match='not shared'):
    request = GenerateRequest(prompt=(1, 2), max_new_tokens=1, shared=2)
    list(predictor.generate(state, [request]))


@pytest.mark.parametrize('refill', [True, False])
def test_rows_used_again_change_no_answer(small, state, predictor, refill):
  """Twelve answers of very different length through three rows."""
  few_rows = LlamaPredictor(
    small.config, small.tokenizer, max_batch=3, refill=refill
  )
  requests = [
    GenerateRequest(
      prompt=p, max_new_tokens=1 + (7 * i) % 60, shared=32 if i % 3 else 0
    )
    for i, p in enumerate(_questions(12))
  ]
  alone = [
    _generate(predictor, state, [dataclasses.replace(r, shared=0)])[0]
    for r in requests
  ]
  for a, b in zip(_generate(few_rows, state, requests), alone, strict=True):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert a.stop_reason == b.stop_reason


@pytest.mark.parametrize('shared', [0, 32])
def test_the_last_few_go_on_in_a_smaller_batch(small, state, predictor, shared):
  """One long answer among twelve short ones, two of whom wait at first."""
  shapes = []
  few = LlamaPredictor(small.config, small.tokenizer, max_batch=12)
  functions = few._functions(None)
  decode = functions.decode

  def noting(state, common, rows, *args):
    shapes.append(len(rows.count))
    return decode(state, common, rows, *args)

  functions.decode = noting
  requests = [
    GenerateRequest(
      prompt=p,
      max_new_tokens=90,
      decided=(lambda text: False) if i == 5 else (lambda text: len(text) > 2),
      shared=shared,
    )
    for i, p in enumerate(_questions(14))
  ]
  found = _generate(few, state, requests)
  assert shapes[0] == 12 and shapes[-1] == 4
  assert shapes == sorted(shapes, reverse=True)
  assert shapes.count(4) > 3 * shapes.count(12)
  for request, answer in zip(requests, found, strict=True):
    plain = dataclasses.replace(request, shared=0)
    [alone] = _generate(predictor, state, [plain])
    np.testing.assert_array_equal(answer.tokens, alone.tokens)
    assert answer.stop_reason == alone.stop_reason


def test_rows_used_again_save_steps(small, state):
  """Rows that wait for the longest of their batch take more steps."""
  lengths = [100, 20, 20, 20] * 4
  requests = [
    GenerateRequest(prompt=PROMPTS[0], max_new_tokens=n) for n in lengths
  ]
  calls = {}
  for refill in (True, False):
    predictor = LlamaPredictor(
      small.config, small.tokenizer, max_batch=4, refill=refill
    )
    functions = predictor._functions(None)
    decode = functions.decode

    def counting(*args, decode=decode, refill=refill):
      calls[refill] = calls.get(refill, 0) + 1
      return decode(*args)

    functions.decode = counting
    _generate(predictor, state, requests)
  # Sixteen steps a call, 99 to the end of each batch.
  assert calls[False] == 4 * 7
  assert calls[True] < 0.7 * calls[False]


def test_rows_grow_with_their_answers(small, state, traces, predictor):
  """Longer than the room that rows begin with, beside short ones."""
  lengths = [300, 5, 70, 300, 64, 65]
  requests = [
    GenerateRequest(prompt=p, max_new_tokens=n)
    for p, n in zip([*PROMPTS, *PROMPTS], lengths, strict=True)
  ]
  before = traces['grow']
  found = _generate(predictor, state, requests)
  assert traces['grow'] > before
  for result, request in zip(found, requests, strict=True):
    expected = plain_model.greedy(
      small.config, small.params, request.prompt, min(80, len(result.tokens))
    )
    assert result.tokens[:80].tolist() == expected
    assert (result.stop_reason == 'eos') == (
      len(result.tokens) < request.max_new_tokens
    )
  assert max(len(result.tokens) for result in found) == 300


# What lies below the edited layer


@pytest.fixture(scope='module')
def edited_above(small):
  draw = np.random.default_rng(4).standard_normal
  factor = lambda *shape: jnp.asarray(draw(shape) / 16, jnp.float32)
  change = LowRank(factor(64, 32), factor(32, 32))
  path = 'layers/1/mlp/down_proj/kernel'
  return ModelState(apply_edit(small.params, {path: change}))


def _scored(n):
  contexts = _questions(n)
  return [
    ScoreRequest(context=c, continuations=(_ids('yes'),), shared=32)
    for c in contexts
  ] + [PACKED]


@pytest.mark.parametrize('max_bytes', [10**9, 8000, 0])
def test_kept_activations_change_no_score(
  small, state, edited_above, predictor, max_bytes
):
  names = collections.Counter()
  reusing = LlamaPredictor(
    small.config,
    small.tokenizer,
    activations=Activations(1, max_bytes),
    on_trace=lambda name: names.update([name]),
  )
  first = _score(reusing, state, _scored(5))
  traced = dict(names)
  calls = []
  scorer = reusing._functions(None).scorer
  lower = scorer._score_lower
  scorer._score_lower = lambda *args: calls.append(1) or lower(*args)
  for found_in in (edited_above, state):
    for a, b in zip(
      _score(reusing, found_in, _scored(5)),
      _score(predictor, found_in, _scored(5)),
      strict=True,
    ):
      _assert_same_score(a, b)
  # To the bit: what was kept is what was computed.
  again = _score(reusing, state, _scored(5))
  for a, b in zip(first, again, strict=True):
    for x, y in zip(a.logprobs, b.logprobs, strict=True):
      np.testing.assert_array_equal(x, y)
  assert dict(names) == traced
  assert bool(calls) == (max_bytes < 10**9)


def test_other_weights_below_find_nothing(small, state, edited, predictor):
  """An edit below the layer: nothing kept is of use."""
  reusing = LlamaPredictor(
    small.config, small.tokenizer, activations=Activations(1, 10**9)
  )
  for found_in in (state, edited, state):
    for a, b in zip(
      _score(reusing, found_in, _scored(5)),
      _score(predictor, found_in, _scored(5)),
      strict=True,
    ):
      _assert_same_score(a, b)


# Compilation and interventions


def test_edited_weights_do_not_trace_again(predictor, traces, state, edited):
  scores = [PACKED]
  prompts = [
    GenerateRequest(prompt=p, max_new_tokens=12, decided=lambda text: False)
    for p in PROMPTS
  ]
  before = _score(predictor, state, scores)
  texts = _generate(predictor, state, prompts)
  counts = dict(traces)
  assert counts['score'] and counts['prefill'] and counts['decode']

  after = _score(predictor, edited, scores)
  edited_texts = _generate(predictor, edited, prompts)
  assert dict(traces) == counts
  # The new weights were used.
  assert np.abs(after[0].logprobs[0] - before[0].logprobs[0]).max() > 1e-3
  assert [r.tokens.tolist() for r in texts] != [
    r.tokens.tolist() for r in edited_texts
  ]


def test_one_trace_per_bucket(small, state):
  names = []
  predictor = LlamaPredictor(
    small.config, small.tokenizer, on_trace=names.append
  )
  for length in (1, 16, 17, 32, 9):
    request = ScoreRequest(context=(1,) * length, continuations=((2,),))
    list(predictor.score(state, [request]))
  assert names == ['score', 'score']


def test_interventions_come_from_the_editor_state(small, predictor, edited):
  """A method that leaves the weights alone acts through the state."""
  change = edited.params['layers']['0']['mlp']['down_proj']['kernel']
  intervening = LlamaPredictor(
    small.config,
    small.tokenizer,
    interventions=lambda kernel: {
      'layers/0/mlp/out': lambda _, key, fed: key @ kernel
    },
  )
  through_state = ModelState(small.params, change)
  (found,) = _score(intervening, through_state, [PACKED])
  (expected,) = _score(predictor, edited, [PACKED])
  _assert_same_score(found, expected)

  request = GenerateRequest(prompt=PROMPTS[0], max_new_tokens=12)
  (found,) = _generate(intervening, through_state, [request])
  (expected,) = _generate(predictor, edited, [request])
  np.testing.assert_array_equal(found.tokens, expected.tokens)
