"""A model on a mesh, as shapes, and how much is given to it at a time."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from me_jax import sharding, trees
from me_jax.engines.forward import Forward
from me_jax.engines.functions import Functions
from me_jax.engines.prefix import Prefix
from me_jax.models import shapes
from me_jax.models.config import ModelConfig
from me_jax.typing import ParamPath, Params


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
    case. See `models.precision`.

    Raises:
      ValueError: The model does not have one of them.
    """
    leaves = trees.flatten(self.params)
    if missing := sorted(set(edited) - set(leaves)):
      raise ValueError(
        f'{self.name} has no {", ".join(missing)}: it has '
        f'{self.config.num_layers} layers.'
      )
    exact = {path: leaves[path].update(dtype=jnp.float32) for path in edited}
    return trees.unflatten({**leaves, **exact})

  @property
  def exact(self) -> 'Setting':
    """The same in float32."""
    config = dataclasses.replace(self.config, dtype='float32')
    return dataclasses.replace(self, config=config)

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
