"""Padding that cannot spoil what it stands beside.

Attention gives what is masked a weight of zero, but zero times infinity is not
zero: one overflow in a token of padding would reach every token of its row. So
padding repeats the first real token of its row, at the same position, and sees
nothing but itself: it is finite wherever that token is.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool


def pad_mask(
  mask: Bool[Array, '#B T T'], real: Bool[Array, '#B T']
) -> Bool[Array, 'B T T']:
  """`mask` for real tokens; padding sees itself."""
  itself = jnp.eye(mask.shape[-1], dtype=bool)
  return jnp.where(real[..., None], mask & real[:, None], itself)
