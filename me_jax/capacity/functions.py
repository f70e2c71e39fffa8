"""The functions that runs compile, with arguments that are shapes only.

Each is what editors and predictors call, at sizes that are usual on
accelerators. No weights are made.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from me_jax import config as config_lib
from me_jax import sharding
from me_jax.capacity.setting import Setting
from me_jax.edits import (
  batched_values,
  memit,
  mend_examples,
  mend_factors,
  mend_training,
  packing,
  rome,
  rows,
  second_moment_collect,
  target_texts,
  values,
)
from me_jax.edits.edit import kernel_path
from me_jax.engines.decoding import Rows
from me_jax.models.config import ModelConfig
from me_jax.typing import ModelState, Params

Compile = Callable[[jax.stages.Lowered], jax.stages.Compiled]


class Part(NamedTuple):
  """One compiled program of a function.

  Attributes:
    program: It.
    rounds: How often its loop goes round, at most; None if it has none.
  """

  program: jax.stages.Compiled
  rounds: int | None = None


class Call(NamedTuple):
  """A call of a function.

  Attributes:
    parts: What it runs, one after another.
    amount: How many it does, all devices together,
    unit: of what.
  """

  parts: Sequence[Part]
  amount: int
  unit: str


def rome_params(at: Setting) -> Params:
  """The weights in a run of ROME."""
  return at.run_params([kernel_path(_rome_layer(at.config))])


def memit_params(at: Setting) -> Params:
  """The weights in a run of MEMIT.

  They are evaluated like that, too, its first state included: of a model in
  bfloat16 five kernels are float32, where ROME has one.
  """
  return at.run_params([kernel_path(l) for l in _memit_layers(at.config)])


def mend_params(at: Setting) -> Params:
  """The weights in a run of MEND."""
  layers = config_lib.mend_preset(at.name).layers
  return at.run_params(mend_factors.edited_paths(layers))


def exact_params(at: Setting) -> Params:
  """The weights in float32, whatever the dtype of the run."""
  return at.exact.params


def score(at: Setting, params: Params, compile_: Compile) -> Call:
  """Likelihoods of a batch of requests behind a common prefix."""
  s = at.sizes
  tokens = at.dealt(s.score_rows, s.score_tokens)
  reads = at.dealt(s.score_rows, s.score_reads)
  lowered = at.functions.score.lower(
    ModelState(params),
    at.prefix(s.score_prefix),
    at.dealt(s.score_rows),
    *(tokens,) * 4,
    *(reads,) * 2,
  )
  return Call([Part(compile_(lowered))], s.score_rows * at.data, 'request')


def generate(at: Setting, params: Params, compile_: Compile) -> Call:
  """One call of decoding, all rows busy."""
  s = at.sizes
  count = s.decode_rows * at.data
  empty = jax.eval_shape(
    lambda: at.functions.empty_rows(count, s.decode_prompt, s.decode_answer)
  )
  placed = lambda where: lambda leaf: leaf.update(sharding=where)
  data = placed(sharding.row_sharding(at.mesh))
  cache = placed(sharding.cache_sharding(at.config, at.mesh))
  lowered = at.functions.decode.lower(
    ModelState(params),
    at.prefix(s.decode_prefix),
    Rows(*map(data, empty[:-1]), jax.tree.map(cache, empty.cache)),
    at.whole(),
    at.whole(),
  )
  parts = [Part(compile_(lowered), s.decode_steps)]
  return Call(parts, count * s.decode_steps, 'token')


def rome_search(at: Setting, params: Params, compile_: Compile) -> Call:
  """The latent search of one fact, to its last step."""
  s, config = at.sizes, config_lib.RomeConfig()
  layer = _rome_layer(at.config)
  targets = (s.rome_rows - 1, s.rome_targets)
  told = rows.Rows(
    ids=at.whole(s.rome_rows, s.rome_tokens),
    lengths=at.whole(s.rome_rows),
    lookups=at.whole(s.rome_rows),
    targets=at.whole(*targets),
    target_slots=at.whole(*targets),
    target_weights=at.whole(*targets, dtype=jnp.float32),
    tail_slots=at.whole(s.rome_tail),
  )
  lowered = values.prepare.lower(
    at.config, params, told, layer=layer, site='mlp/out'
  )
  prepare = compile_(lowered)
  prepared = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    lowered.out_info,
    prepare.output_shardings,
  )
  search = compile_(
    values.search.lower(
      at.config,
      params,
      told,
      prepared,
      layer=layer,
      search_config=rome.search_config(config),
    )
  )
  parts = [Part(prepare), Part(search, config.v_num_grad_steps)]
  return Call(parts, 1, 'fact')


def memit_search(at: Setting, params: Params, compile_: Compile) -> Call:
  """The latent search of a batch of facts, to its last step."""
  s, config = at.sizes, config_lib.memit_preset('easyedit')
  wide = at.dealt(s.memit_rows, s.memit_room + s.memit_tail)
  packed = packing.Packed(
    ids=wide,
    positions=wide,
    segments=wide,
    lookups=at.dealt(
      s.memit_requests,
      2 + sum(n for _, n in config.context_template_length_params),
    ),
    tail_slots=at.whole(s.memit_tail),
  )
  # Room for targets as `batched_values.wanted` makes it for most facts.
  target = at.dealt(s.memit_rows * s.memit_tail * 3 // 4)
  lowered = batched_values.search.lower(
    at.config,
    params,
    packed,
    batched_values.Wanted(
      target, target, target, target.update(dtype=jnp.float32)
    ),
    layer=_memit_layers(at.config)[-1],
    search_config=memit.search_config(config),
  )
  parts = [Part(compile_(lowered), config.v_num_grad_steps)]
  return Call(parts, s.memit_requests * at.data, 'fact')


def second_moment(at: Setting, params: Params, compile_: Compile) -> Call:
  """The keys' products of a batch of texts, for the layers of MEMIT."""
  s = at.sizes
  lowered = second_moment_collect.grams.lower(
    at.exact.config,
    _memit_layers(at.config),
    params,
    at.dealt(s.text_rows, s.text_tokens),
    at.dealt(s.text_rows),
  )
  tokens = at.data * s.text_rows * s.text_tokens
  return Call([Part(compile_(lowered))], tokens, 'token')


def mend_step(at: Setting, params: Params, compile_: Compile) -> Call:
  """One step of the training of MEND's networks."""
  s, config = at.sizes, config_lib.mend_preset(at.name)
  examples = config.accumulate * config.batch
  flat = at.whole(s.mend_reads)
  reads = target_texts.Reads(flat, flat, flat, flat.update(dtype=jnp.float32))
  entering = lambda n: at.dealt_if_even(
    n, s.mend_tokens, at.config.embed_dim, dtype=at.config.dtype
  )
  group = mend_examples.Group(
    edit=target_texts.TextRows(
      at.whole(examples), at.whole(examples, s.mend_tokens), reads
    ),
    edit_x=entering(examples),
    lengths=at.dealt_if_even(2 * examples),
    x=entering(2 * examples),
    own=None,
    rephrase=reads,
    local=reads,
    local_final=at.whole(
      s.mend_reads, at.config.embed_dim, dtype=at.config.dtype
    ),
  )
  state = jax.tree.map(
    lambda leaf: leaf.update(sharding=sharding.replicated(at.mesh)),
    jax.eval_shape(lambda: mend_training.init_state(config, at.config)),
  )
  lowered = mend_training.make_update(config, at.config, at.mesh).lower(
    params, state, group
  )
  # Its one loop goes over the examples, which for TPUs it does not say.
  return Call([Part(compile_(lowered), examples)], examples, 'example')


class Function(NamedTuple):
  """Something that runs compile.

  Attributes:
    params: Gives the weights that it is given,
    call: and what it is with these.
  """

  params: Callable[[Setting], Params]
  call: Callable[[Setting, Params, Compile], Call]


FUNCTIONS = {
  'score': Function(memit_params, score),
  'generate': Function(memit_params, generate),
  'rome': Function(rome_params, rome_search),
  'memit': Function(memit_params, memit_search),
  'second_moment': Function(exact_params, second_moment),
  'mend': Function(mend_params, mend_step),
}


def weight_bytes(at: Setting, name: str) -> int:
  """Of the weights that a function is given, on one device."""
  return sum(
    jnp.dtype(leaf.dtype).itemsize
    * math.prod(leaf.sharding.shard_shape(leaf.shape))
    for leaf in jax.tree.leaves(FUNCTIONS[name].params(at))
  )


def _rome_layer(config: ModelConfig) -> int:
  return _layer(config, config_lib.RomeConfig().layer)


def _memit_layers(config: ModelConfig) -> tuple[int, ...]:
  layers = config_lib.MemitConfig().layers
  return tuple(sorted({_layer(config, layer) for layer in layers}))


def _layer(config: ModelConfig, layer: int) -> int:
  """The published layer, or of a model without it the last but one."""
  return min(layer, config.num_layers - 2)
