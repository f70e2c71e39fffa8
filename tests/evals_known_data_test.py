"""The data at hand are those that the hashes are of."""

import pytest

from launch import inventory
from me_jax.data.sources import DataSources
from me_jax.evals import known_data
from me_jax.evals.registry import TASKS


def test_every_task_has_its_hash():
  assert known_data.HASHES.keys() == TASKS.keys() - {'tydiqa'}


@pytest.mark.data
@pytest.mark.parametrize('name', known_data.HASHES)
def test_the_data_at_hand_are_known(name, data_root):
  sources = DataSources(data_root=data_root, allow_hub=False)
  table, complete = inventory.data_table([name], sources)
  assert complete, table
  assert any(known in table for known in known_data.HASHES[name].values())
