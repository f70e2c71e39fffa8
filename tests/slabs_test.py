import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from me_jax import slabs

pytestmark = eight_devices.needs_eight


@pytest.mark.parametrize('spec', [P('model'), P(None, 'model')])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_bits_in_order(monkeypatch, spec, dtype):
  """Slabs of three rows, which do not divide the ten of a part; of numbers
  that adding would change, too."""
  array = np.random.default_rng(0).standard_normal((40, 8)).astype(dtype)
  array[0], array[39], array[20] = -0.0, np.nan, np.inf
  monkeypatch.setattr(slabs, '_BYTES', 3 * array[0].nbytes)
  mesh = eight_devices.mesh('2x4')
  found = list(slabs.slabs(jax.device_put(array, NamedSharding(mesh, spec))))
  assert len(found) == (4 * 4 if spec[0] else 14)
  assert {len(slab) for slab in found} <= {1, 3}
  bits = np.concatenate(found)
  assert bits.shape == array.shape
  assert bits.tobytes() == array.tobytes()
