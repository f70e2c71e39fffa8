"""The functions that runs compile, with arguments that are shapes only.

Each is what editors and predictors call, at sizes that are usual on
accelerators. No weights are made.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from me_jax import config as config_lib
from me_jax import sharding, trees
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
from me_jax.engines.forward import Forward
from me_jax.engines.functions import Functions
from me_jax.engines.prefix import Prefix
from me_jax.models import shapes
from me_jax.models.config import ModelConfig
from me_jax.typing import ModelState, ParamPath, Params

Compile = Callable[[jax.stages.Lowered], jax.stages.Compiled]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """How large calls are. Those of evaluation, of MEMIT and of the second moment
  for each group of devices along 'data'.

  Attributes:
    score_rows: Requests of `score`: 4,096 tokens in all, at
    score_tokens: each. An item of MMLU has some 100 tokens of its own
    score_prefix: behind exemplars of some 650.
    score_reads: Likelihoods of each.
    decode_rows: Answers that are written at once: 16,384 slots in all, each of
    decode_prompt: a prompt of its own
    decode_answer: and an answer, as in BBH,
    decode_prefix: behind exemplars.
    decode_steps: Tokens of a call.
    rome_rows: Templates, and the row of the divergence.
    rome_tokens: Of a row.
    rome_tail: Of these from the subject's last token on.
    rome_targets: Of these what is to be said.
    memit_requests: Facts searched at once,
    memit_rows: in so many wide rows, each of
    memit_room: slots before the subjects' last tokens
    memit_tail: and from them on.
    text_rows: Texts of a batch of the second moment, each of
    text_tokens: tokens.
    mend_tokens: Of an example's texts.
    mend_reads: Target tokens of a step, of each kind of text.
  """

  score_rows: int = 32
  score_tokens: int = 128
  score_prefix: int = 768
  score_reads: int = 4
  decode_rows: int = 25
  decode_prompt: int = 128
  decode_answer: int = 512
  decode_prefix: int = 1024
  decode_steps: int = 16
  rome_rows: int = 22
  rome_tokens: int = 32
  rome_tail: int = 8
  rome_targets: int = 4
  memit_requests: int = 16
  memit_rows: int = 40
  memit_room: int = 64
  memit_tail: int = 16
  text_rows: int = 3
  text_tokens: int = 4096
  mend_tokens: int = 32
  mend_reads: int = 32


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


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model on a mesh, as shapes.

  Attributes:
    name: Of the model, whose hyper-parameters are taken.
    config: Its shape; `dtype` is that of the weights, too.
    mesh: Where.
    sizes: Of calls.
  """

  name: str
  config: ModelConfig
  mesh: Mesh
  sizes: Sizes = Sizes()

  @functools.cached_property
  def params(self) -> Params:
    """The weights, cut as runs cut them."""
    found = shapes.param_shapes(self.config)
    cut = sharding.param_shardings(self.config, tuple(found), self.mesh)
    return trees.unflatten(
      {
        path: jax.ShapeDtypeStruct(shape, self.config.dtype, sharding=cut[path])
        for path, shape in found.items()
      }
    )

  def run_params(self, edited: Collection[ParamPath]) -> Params:
    """The weights in a run whose method edits these, which are float32 in any
    case. See `models.precision`."""
    return trees.unflatten(
      {
        path: leaf.update(dtype=jnp.float32) if path in edited else leaf
        for path, leaf in trees.flatten(self.params).items()
      }
    )

  @property
  def weight_bytes(self) -> int:
    """Of the weights, on one device."""
    return sum(
      jnp.dtype(leaf.dtype).itemsize
      * math.prod(leaf.sharding.shard_shape(leaf.shape))
      for leaf in jax.tree.leaves(self.params)
    )

  @property
  def data(self) -> int:
    """Groups of devices over which rows are dealt."""
    return sharding.data_size(self.mesh)

  def dealt(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An array with rows first, `shape[0]` for each group."""
    return jax.ShapeDtypeStruct(
      (shape[0] * self.data, *shape[1:]),
      dtype,
      sharding=sharding.row_sharding(self.mesh),
    )

  def whole(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An array that each device has all of."""
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding.replicated(self.mesh)
    )

  def dealt_if_even(
    self, *shape: int, dtype: Any = jnp.int32
  ) -> jax.ShapeDtypeStruct:
    """An array with rows first, as `sharding.deal_rows` places it."""
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding.place_of_rows(shape[0], self.mesh)
    )

  @functools.cached_property
  def functions(self) -> Functions:
    """Those of a predictor."""
    return Functions(
      Forward(self.config, None),
      mesh=self.mesh,
      activations=None,
      on_trace=lambda name: None,
    )

  def prefix(self, slots: int) -> Prefix:
    """What prompts begin with."""
    c, where = self.config, sharding.prefix_sharding(self.config, self.mesh)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, c.dtype, sharding=where)
    heads, size = c.num_kv_heads, c.head_dim
    return Prefix(
      {
        str(i): (array(heads, size, slots), array(heads, slots, size))
        for i in range(c.num_layers)
      },
      self.whole(),
    )


def score(at: Setting, compile_: Compile) -> Call:
  """Likelihoods of a batch of requests behind a common prefix."""
  s = at.sizes
  tokens = at.dealt(s.score_rows, s.score_tokens)
  reads = at.dealt(s.score_rows, s.score_reads)
  lowered = at.functions.score.lower(
    ModelState(at.params),
    at.prefix(s.score_prefix),
    at.dealt(s.score_rows),
    *(tokens,) * 4,
    *(reads,) * 2,
  )
  return Call([Part(compile_(lowered))], s.score_rows * at.data, 'request')


def generate(at: Setting, compile_: Compile) -> Call:
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
    ModelState(at.params),
    at.prefix(s.decode_prefix),
    Rows(*map(data, empty[:-1]), jax.tree.map(cache, empty.cache)),
    at.whole(),
    at.whole(),
  )
  parts = [Part(compile_(lowered), s.decode_steps)]
  return Call(parts, count * s.decode_steps, 'token')


def rome_search(at: Setting, compile_: Compile) -> Call:
  """The latent search of one fact, to its last step."""
  s, config = at.sizes, config_lib.RomeConfig()
  layer = _layer(at.config, config.layer)
  params = at.run_params([kernel_path(layer)])
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


def memit_search(at: Setting, compile_: Compile) -> Call:
  """The latent search of a batch of facts, to its last step."""
  s, config = at.sizes, config_lib.memit_preset('easyedit')
  layers = [_layer(at.config, layer) for layer in config.layers]
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
    at.run_params([kernel_path(layer) for layer in layers]),
    packed,
    batched_values.Wanted(
      target, target, target, target.update(dtype=jnp.float32)
    ),
    layer=layers[-1],
    search_config=memit.search_config(config),
  )
  parts = [Part(compile_(lowered), config.v_num_grad_steps)]
  return Call(parts, s.memit_requests * at.data, 'fact')


def second_moment(at: Setting, compile_: Compile) -> Call:
  """The keys' products of a batch of texts, for the layers of MEMIT.

  They are those of the float32 model, whatever the dtype of the run.
  """
  config = dataclasses.replace(at.config, dtype='float32')
  at = dataclasses.replace(at, config=config)
  s = at.sizes
  layers = config_lib.MemitConfig().layers
  lowered = second_moment_collect.grams.lower(
    at.config,
    tuple(sorted({_layer(at.config, layer) for layer in layers})),
    at.params,
    at.dealt(s.text_rows, s.text_tokens),
    at.dealt(s.text_rows),
  )
  tokens = at.data * s.text_rows * s.text_tokens
  return Call([Part(compile_(lowered))], tokens, 'token')


def mend_step(at: Setting, compile_: Compile) -> Call:
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
    at.run_params(mend_factors.edited_paths(config.layers)), state, group
  )
  # Its one loop goes over the examples, which for TPUs it does not say.
  return Call([Part(compile_(lowered), examples)], examples, 'example')


FUNCTIONS: dict[str, Callable[[Setting, Compile], Call]] = {
  'score': score,
  'generate': generate,
  'rome': rome_search,
  'memit': memit_search,
  'second_moment': second_moment,
  'mend': mend_step,
}


def _layer(config: ModelConfig, layer: int) -> int:
  """The published layer, or of a model without it the last but one."""
  return min(layer, config.num_layers - 2)
