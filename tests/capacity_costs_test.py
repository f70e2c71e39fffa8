"""Costs that are known beforehand."""

import jax
import jax.numpy as jnp
import pytest
from eight_devices import mesh, needs_eight
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from me_jax.capacity import compiled_text, costs

_M, _K, _N = 8, 64, 128
_FLOPS = 2 * _M * _K * _N


def _text(fn, *shapes, **kwargs):
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(fn, **kwargs).lower(*arguments).compile().as_text()


def _instruction(rest, opcode='all-reduce'):
  return compiled_text.Instruction('x', opcode, (), (), rest, False)


def test_one_product():
  """And each number is moved once."""
  found = costs.costs(_text(jnp.dot, (_M, _K), (_K, _N)))
  assert found.flops == _FLOPS
  assert found.nbytes == 4 * (_M * _K + _K * _N + _M * _N)
  assert not found.collectives


def test_a_loop_is_counted_as_often_as_it_goes_round():
  def scan(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

  found = costs.costs(_text(scan, (_M, _K), (_K, _K)))
  assert found.flops == 5 * 2 * _M * _K * _K


def test_a_loop_that_ends_when_it_likes_needs_rounds():
  def search(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

  text = _text(search, (_M, _K), (_K, _K))
  assert costs.costs(text, 7).flops == 7 * 2 * _M * _K * _K
  with pytest.raises(ValueError, match='how often it goes round'):
    costs.costs(text)


def test_a_part_is_not_the_whole():
  """Neither what is read of a table nor what is written into one."""
  write = lambda table, row, i: jax.lax.dynamic_update_slice(
    table, row, (i.astype(jnp.int32)[0], 0)
  )
  shapes = (1000, _N), (1, _N), (1,)
  found = costs.costs(_text(write, *shapes, donate_argnums=0))
  assert found.nbytes < 10 * 4 * _N
  read = lambda table, i: table[i.astype(jnp.int32)]
  assert costs.costs(_text(read, (1000, _N), (2,))).nbytes < 10 * 4 * _N


def test_products_as_a_tpu_does_them():
  """Four products side by side, as a convolution with one axis of space: the
  text of libtpu 0.0.42 for [4, 25, 128] x [4, 128, 1024]."""
  text = """HloModule m

ENTRY %main (a: f32[4,25,128], b: f32[4,128,1024]) -> f32[4,25,1024] {
  %a = f32[4,25,128]{2,1,0:T(8,128)S(1)} parameter(0)
  %b = f32[4,128,1024]{2,1,0:T(8,128)} parameter(1)
  ROOT %c = f32[4,25,1024]{2,1,0:T(8,128)S(1)} convolution(%a, %b), \
window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf, \
operand_precision={highest,highest}, metadata={op_name="x"}
}
"""
  found = costs.costs(text)
  assert found.flops == 4 * 2 * 25 * 128 * 1024
  assert found.bfloat16_flops == 6 * found.flops
  # The others are in a memory of the chip itself.
  assert found.nbytes == 4 * 4 * 128 * 1024


def test_what_a_fusion_only_hands_on_is_read():
  """A kernel on its way into a product, as libtpu 0.0.42 writes it."""
  text = """HloModule m

%turn (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %turned = f32[64,128]{1,0} bitcast(%p)
}

%product (x: f32[8,64], w: f32[64,128]) -> f32[8,128] {
  %x = f32[8,64]{1,0:S(1)} parameter(0)
  %w = f32[64,128]{1,0} parameter(1)
  %kernel = f32[64,128]{1,0} fusion(%w), kind=kLoop, calls=%turn
  ROOT %y = f32[8,128]{1,0:S(1)} convolution(%x, %kernel), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[8,64], w: f32[64,128]) -> f32[8,128] {
  %x = f32[8,64]{1,0:S(1)} parameter(0)
  %w = f32[64,128]{1,0} parameter(1)
  ROOT %y = f32[8,128]{1,0:S(1)} fusion(%x, %w), kind=kOutput, calls=%product
}
"""
  found = costs.costs(text)
  assert found.nbytes == 4 * 64 * 128
  assert found.flops == 2 * 8 * 64 * 128


@pytest.mark.parametrize(
  'rest, expected',
  [
    ('replica_groups={{0,1},{2,3}}, x', ((0, 1), (2, 3))),
    ('replica_groups=[2,2]<=[4], x', ((0, 1), (2, 3))),
    ('replica_groups=[2,2]<=[2,2]T(1,0), x', ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x",
      ((0, 1), (2, 3)),
    ),
    ('source_target_pairs={{0,1},{1,0}}', ((0, 1), (1, 0))),
    ('replica_groups={}, x', ()),
  ],
)
def test_groups_of_devices(rest, expected):
  assert compiled_text.groups(_instruction(f', channel_id=1, {rest}')) == (
    expected
  )


def test_groups_in_another_form_are_refused():
  with pytest.raises(ValueError, match='not known'):
    compiled_text.groups(
      _instruction(", replica_groups=mesh['a'=8] {'a':(2)4}")
    )


def test_other_text_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    compiled_text.parse('module @jit_f {}')


@needs_eight
def test_what_is_added_up_over_devices():
  """Each of a group sends all but a part of its own, to add up and again to
  spread what came out."""
  on = mesh('4x2')
  cut = lambda shape, *names: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(on, P(*names))
  )
  whole = NamedSharding(on, P())
  text = (
    jax.jit(jnp.dot, out_shardings=whole)
    .lower(cut((_M, _K), None, 'data'), cut((_K, _N), 'data'))
    .compile()
    .as_text()
  )
  [found] = costs.costs(text).collectives
  assert (found.kind, found.times, found.in_loop) == ('all-reduce', 1, False)
  assert found.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
  assert found.sent(8) == 2 * 4 * _M * _N * 3 / 4
