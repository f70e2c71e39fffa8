"""What a chip can do at most, as its maker says."""

from typing import NamedTuple

import jax

# On TPUs products of float32 are made of so many of bfloat16, by XLA's
# precision. That of a float32 model here is the highest.
PASSES = {'highest': 6, 'high': 3, 'default': 1}


class Chip(NamedTuple):
  """One device of JAX.

  Attributes:
    name: In a text.
    hbm: Bytes of memory.
    hbm_bandwidth: Bytes per second from and to it.
    peak: FLOP/s of products of bfloat16.
    ici_bandwidth: Bytes per second that it can send to other chips, over all
      its links together.
  """

  name: str
  hbm: int
  hbm_bandwidth: float
  peak: float
  ici_bandwidth: float

  @property
  def peak_float32(self) -> float:
    """FLOP/s of products of float32."""
    return self.peak / PASSES['highest']

  def __str__(self) -> str:
    return (
      f'{self.name}: {self.hbm / 1e9:.1f} GB at '
      f'{self.hbm_bandwidth / 1e9:,.0f} GB/s, {self.peak / 1e12:,.0f} TFLOP/s '
      f'in bfloat16 and {self.peak_float32 / 1e12:,.0f} in float32, links of '
      f'{self.ici_bandwidth / 1e9:,.0f} GB/s.'
    )


# By `jax.Device.device_kind`. Sources: the pages "TPU v5e", "TPU v5p" and
# "TPU v6e" of Google Cloud's documentation (memory, bandwidth, peak; what it
# calls bidirectional ICI bandwidth is sent and received, so half of it counts),
# and for v4 its page "TPU v4" and Jouppi et al., TPU v4 (2023): six links of
# 50 GB/s.
_CHIPS = {
  'TPU v4': Chip('TPU v4', 32 << 30, 1.2e12, 275e12, 300e9),
  'TPU v5 lite': Chip('TPU v5e', 16 << 30, 0.819e12, 197e12, 200e9),
  'TPU v5': Chip('TPU v5p', 95 << 30, 2.765e12, 459e12, 600e9),
  'TPU v6 lite': Chip('TPU v6e', 32 << 30, 1.638e12, 918e12, 400e9),
}


def chip(device: jax.Device) -> Chip | None:
  """What is known of a device; None for a processor, or another accelerator."""
  return _CHIPS.get(device.device_kind)
