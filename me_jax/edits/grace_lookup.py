"""Where a codebook is asked, and what its answer replaces.

A row asks with one token, its query; which one is the policy:

| policy            | learning   | scored text   | prompt        | new   |
|-------------------|------------|---------------|---------------|-------|
| `last_prompt`     | prompt end | context's end | its end       | none  |
| `every_new_token` | prompt end | last fed      | its end       | every |
| `last_input`      | last fed   | last fed      | its end       | every |
| `fixed_last_edit` | prompt end | p or last fed | p, or its end | every |

*Scored text* is a context and its continuations, each of which has a query of
its own. It is fed without its last token, so the token *last fed*, in learning
and in scoring, is the one that predicts the last target. The end of a context
is that only where there is one continuation, of one token: candidates share
the context, and of a candidate of one token, such as a letter, nothing is fed
that could ask; its likelihood stays as it is. Under `every_new_token` a scored
text is one that is fed at once, not token by token: it asks once, and what is
learned at the end of a prompt is not found there if more than one token
follows. Position p is where the prompt of the latest edit ended, whatever the
text: what an implementation did that never reset it. *New* tokens are decoded
with a cache, one at a time.

| rule             | replaced, if the query is within a radius        |
|------------------|--------------------------------------------------|
| `replace_last`   | the query                                        |
| `replace_prompt` | all before the query                             |
| `replace_all`    | all that is put through the model with the query |

The last two want the whole row with the query at hand, so they go with
`last_prompt` only: a new token is put through the model alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from me_jax.edits import codebook as codebook_lib
from me_jax.edits.codebook import Codebook
from me_jax.typing import CONTEXT_END, LAST, NEW, PROMPT_END, Fed


class GraceState(NamedTuple):
  """What GRACE carries from edit to edit. A pytree.

  Attributes:
    codebook: The entries.
    num_edits: Edits so far; the next one has this id plus one.
    last_query: Where the prompt of the latest edit ended; for the policy
      `fixed_last_edit`.
  """

  codebook: Codebook
  num_edits: Int[Array, '']
  last_query: Int[Array, '']


def queries(
  policy: str, fed: Fed, last_query: Int[Array | np.ndarray, '']
) -> Bool[Array | np.ndarray, 'B T']:
  """The tokens with which the codebook is asked."""
  kinds, positions = fed
  if policy == 'last_prompt':
    return (kinds == CONTEXT_END) | (kinds == PROMPT_END)
  ends = (kinds == PROMPT_END) | (kinds == LAST)
  if policy in ('every_new_token', 'last_input'):
    return ends | (kinds == NEW)
  if policy == 'fixed_last_edit':
    ends_before = ends & (positions < last_query)
    return (positions == last_query) | ends_before | (kinds == NEW)
  raise ValueError(f'There is no query policy {policy!r}.')


def replaced(
  rule: str, positions: Int[Array, 'B T'], query: Int[Array, '...']
) -> Bool[Array, 'B T']:
  """The tokens whose output a row's query decides about."""
  if rule == 'replace_last':
    return positions == query
  if rule == 'replace_prompt':
    return positions < query
  if rule == 'replace_all':
    return jnp.ones_like(positions, bool)
  raise ValueError(f'There is no replacement rule {rule!r}.')


def intervene(
  state: GraceState,
  output: Float[Array, 'B T D'],
  keys: Float[Array, 'B T F'],
  fed: Fed,
  *,
  policy: str,
  rule: str,
) -> Float[Array, 'B T D']:
  """The output of `down_proj` with the codebook's values in it.

  Args:
    state: With the codebook.
    output: What the layer puts out.
    keys: What it is computed from.
    fed: The tokens.
    policy: Which of them ask.
    rule: Which of them are replaced.
  """
  asks = queries(policy, fed, state.last_query)
  book = state.codebook

  def look_up_each():
    """Every token for itself: continuations of a context may ask apart."""
    index, hit = codebook_lib.look_up(book, keys)
    return book.values[index], hit & asks

  def look_up_rows():
    at = jnp.argmax(asks, axis=1, keepdims=True)
    take = lambda x: jnp.take_along_axis(x, at, axis=1)
    index, hit = codebook_lib.look_up(
      book, jnp.take_along_axis(keys, at[..., None], axis=1)
    )
    region = (
      asks
      if rule == 'replace_last'
      else replaced(rule, fed.positions, take(fed.positions))
    )
    return book.values[index], region & hit & take(asks)

  def look_up():
    several = policy != 'last_prompt' and output.shape[1] > 1
    value, where = look_up_each() if several else look_up_rows()
    return jnp.where(where[..., None], value.astype(output.dtype), output)

  # Most passes of some policies ask nothing.
  return jax.lax.cond(asks.any() & (book.count > 0), look_up, lambda: output)
