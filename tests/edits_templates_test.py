import dataclasses

import jax.numpy as jnp
import pytest

from me_jax import sampling
from me_jax.config import RomeConfig
from me_jax.edits import templates
from me_jax.models import load
from me_jax.models import tokenizer as tokenizer_lib

DEFAULTS = RomeConfig().context_template_length_params


@pytest.fixture(scope='module')
def small(tiny):
  """A model to whose tokenizer every starter is one token."""
  tokenizer = tokenizer_lib.byte_tokenizer()
  tokenizer.backend.add_tokens(list(templates.STARTERS))
  config = dataclasses.replace(
    tiny.config, num_layers=1, vocab_size=tokenizer.vocab_size
  )
  return load.language_model(
    config, load.init_params(config), tokenizer, name='small'
  )


def _draw(model, length_params=DEFAULTS, seed=0):
  return templates.draw_templates(
    model.config,
    model.params,
    model.tokenizer,
    length_params=length_params,
    seed=seed,
  )


def test_the_default_templates(small):
  found = _draw(small)
  assert len(found) == 21
  assert found[0] == '{}'
  assert all(t.count('{}') == 1 and t.endswith('. {}') for t in found[1:])
  assert all(t.count('{') == t.count('}') == 1 for t in found)
  for starter in templates.STARTERS:
    # 'The' also begins 'Therefore'.
    assert sum(t.startswith(starter) for t in found) >= 4
  openings = [t.removesuffix('. {}') for t in found[1:]]
  assert sum(o.startswith(templates.STARTERS) for o in openings) == 20


def test_seed_decides(small):
  assert _draw(small) == _draw(small)
  assert _draw(small) != _draw(small, seed=1)


def test_draws_with_the_given_weights(small):
  other = {**small.params, 'norm': {'scale': -small.params['norm']['scale']}}
  changed = dataclasses.replace(small, params=other)
  assert _draw(small) != _draw(changed)


def test_lengths_count_all_tokens(small, monkeypatch):
  asked = []

  def record(config, params, prompts, key, *, num_new_tokens, top_k):
    asked.append((prompts.shape, num_new_tokens, top_k))
    return jnp.zeros((len(prompts), num_new_tokens), jnp.int32)

  monkeypatch.setattr(sampling, 'sample', record)
  assert len(_draw(small)) == 21
  assert asked == [((2, 1), 4, 5)] * 5 + [((2, 1), 9, 5)] * 5


@pytest.mark.parametrize(
  'text, expected',
  [
    ('{a}{}', 'The a   . {}'),
    ('a\n\nb', 'Thea b. {}'),
    ('ﬁ é', 'Thefi e\u0301. {}'),
    ('<eos>a', 'Thea. {}'),
  ],
)
def test_openings_are_cleaned(small, monkeypatch, text, expected):
  ids = small.tokenizer.encode(text)
  monkeypatch.setattr(
    sampling,
    'sample',
    lambda config, params, prompts, key, **kwargs: jnp.asarray(
      [ids] * len(prompts)
    ),
  )
  found = _draw(small, ((5, 5),))
  assert found[1] == expected
  assert templates.fill(found[1], 'x').endswith('. x')


@pytest.mark.parametrize(
  'length_params, message',
  [
    (((5, 4),), 'evenly among 5 starters, got 4 of length 5.*multiple of 5'),
    (((1, 5),), "1 tokens has no room after 'The', which is 1 tokens"),
  ],
)
def test_impossible_numbers(small, length_params, message):
  with pytest.raises(ValueError, match=message):
    _draw(small, length_params)


def test_starters_of_several_tokens_may_leave_no_room(tiny):
  with pytest.raises(ValueError, match="'Therefore', which is 9 tokens"):
    _draw(tiny, ((5, 5),))


def test_no_openings(small):
  assert _draw(small, ()) == ('{}',)


def test_fill_interprets_nothing():
  assert templates.fill('So. {}', 'a {b} {{c}}') == 'So. a {b} {{c}}'


@pytest.mark.parametrize('template', ['', 'So.', '{} and {}', '{0}'])
def test_fill_needs_one_slot(template):
  with pytest.raises(ValueError, match='exactly one {}'):
    templates.fill(template, 'x')
