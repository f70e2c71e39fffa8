"""Context templates: short random openings in front of a prompt.

They keep a key from depending on one absolute position. Drawn once by the
unedited model, then stored: they are the only randomness of ROME and MEMIT.
"""

import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from me_jax import sampling, trees
from me_jax.models.config import ModelConfig
from me_jax.typing import Params, Tokenizer

BARE = '{}'
STARTERS = ('The', 'Therefore', 'Because', 'I', 'You')
_TOP_K = 5


def draw_templates(
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  *,
  length_params: Sequence[tuple[int, int]],
  seed: int,
) -> tuple[str, ...]:
  """The bare template and `opening. {}` for sampled openings.

  Args:
    config: The model's shape.
    params: Weights of the unedited model.
    tokenizer: Its tokenizer.
    length_params: Pairs (tokens in total, how many), each number a multiple
      of five: one fifth starts with each of `STARTERS`.
    seed: Of the draw.

  Raises:
    ValueError: A number is no multiple of five, or a length leaves nothing to
      draw.
  """
  key = jax.random.key(seed)
  templates = [BARE]
  for length, number in length_params:
    each, rest = divmod(number, len(STARTERS))
    if rest:
      raise ValueError(
        f'Templates are shared evenly among {len(STARTERS)} starters, got '
        f'{number} of length {length}. Use a multiple of {len(STARTERS)}.'
      )
    for starter in STARTERS:
      key, draw_key = jax.random.split(key)
      ids = tokenizer.encode(starter)
      if length <= len(ids):
        raise ValueError(
          f'A template of {length} tokens has no room after {starter!r}, '
          f'which is {len(ids)} tokens with the special ones. Ask for more.'
        )
      new = sampling.sample(
        config,
        params,
        jnp.asarray([ids] * each, jnp.int32),
        draw_key,
        num_new_tokens=length - len(ids),
        top_k=_TOP_K,
      )
      templates.extend(
        _template(tokenizer.decode([*ids, *row]))
        for row in trees.to_host(new).tolist()
      )
  return tuple(templates)


def fill(template: str, text: str) -> str:
  """`text` in the slot of `template`.

  Raises:
    ValueError: The template has not exactly one `{}`.
  """
  head, slot, tail = template.partition(BARE)
  if not slot or BARE in tail:
    raise ValueError(
      f'A context template needs exactly one {{}}, got {template!r}.'
    )
  return head + text + tail


def _template(opening: str) -> str:
  text = unicodedata.normalize('NFKD', opening).replace('\n\n', ' ')
  for brace in '{}':
    text = text.replace(brace, ' ')
  return f'{text}. {BARE}'
