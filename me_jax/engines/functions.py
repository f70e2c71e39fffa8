"""The compiled functions of a predictor, for one device or a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from me_jax import sharding
from me_jax.engines import decoding, prefix, scoring
from me_jax.engines.decoding import Prompts, Rows
from me_jax.engines.forward import Forward
from me_jax.engines.lower_layers import Activations, Scorer


class Functions:
  """Those of `scoring`, `prefix` and `decoding`, bound to a model's shape.

  On a mesh each group of devices along 'data' works on rows of its own. Only
  what moves rows (`insert`, `keep`) looks across.

  Attributes:
    score, tap: See `scoring`.
    scorer: `score` with what lies below a layer kept; None without.
    prefix: See `prefix`.
    prefill, insert, grow, keep, decode, empty_rows: See `decoding`.
  """

  def __init__(
    self,
    forward: Forward,
    *,
    mesh: Mesh | None,
    activations: Activations | None,
    on_trace: Callable[[str], None],
  ):
    """Compiles nothing yet.

    Args:
      forward: The model.
      mesh: Where its parameters lie; None for one device.
      activations: See `LlamaPredictor`.
      on_trace: Called with a function's name at each compile.
    """
    jitted = functools.partial(_jitted, mesh=mesh, on_trace=on_trace)
    bound = lambda fn: functools.wraps(fn)(functools.partial(fn, forward))
    to_rows, to_prompts, to_prefix = {}, {}, {}
    if mesh is not None:
      data = sharding.row_sharding(mesh)
      cache = sharding.cache_sharding(forward.config, mesh)
      to_rows = {'out_shardings': Rows(*(data,) * 5, cache)}
      to_prompts = {'out_shardings': Prompts(cache, *(data,) * 3)}
      shared = sharding.prefix_sharding(forward.config, mesh)
      to_prefix = {
        'out_shardings': prefix.Prefix(shared, sharding.replicated(mesh))
      }

    self.score = jitted(bound(scoring.score), rows=slice(2, None))
    self.scorer = activations and Scorer(forward, activations, jitted)
    self.tap = jitted(
      bound(scoring.tap), rows=slice(2, None), static_argnames=('site',)
    )
    self.prefix = jitted(
      bound(prefix.prefix), static_argnames=('slots',), **to_prefix
    )
    self.prefill = jitted(
      bound(decoding.prefill), rows=slice(2, 4), **to_prompts
    )
    self.insert = jitted(decoding.insert, donate_argnums=(0,), **to_rows)
    self.grow = jitted(decoding.grow, static_argnames=('new',), **to_rows)
    self.keep = jitted(decoding.keep, **to_rows)
    self.decode = jitted(
      bound(decoding.decode), rows=slice(2, 3), donate_argnums=(2,), **to_rows
    )
    self.empty_rows = jax.jit(
      functools.partial(decoding.empty_rows, forward.config),
      static_argnums=(0, 1, 2),
      **to_rows,
    )


def _jitted(
  fn: Callable[..., Any],
  *,
  mesh: Mesh | None,
  on_trace: Callable[[str], None],
  rows: slice | None = None,
  **kwargs: Any,
) -> Callable[..., Any]:
  """`jax.jit(fn)`.

  Args:
    fn: Static arguments are given by name.
    mesh: Where it runs.
    on_trace: Called with its name when it is traced.
    rows: Which arguments have rows first, as what it returns then does, too;
      None if it is not of rows, or moves them.
    **kwargs: For `jax.jit`.
  """

  def wrapped(*args, **static):
    on_trace(fn.__name__)
    run = functools.partial(fn, **static)
    if mesh is not None and rows is not None:
      places = range(len(args))
      run = sharding.data_parallel(
        run, mesh, [i in places[rows] for i in places]
      )
    return run(*args)

  return jax.jit(wrapped, **kwargs)
