"""What one of many processes says where the others see other files."""

import numpy as np
import pytest
from jax.experimental import multihost_utils

from me_jax import processes


def test_alone_a_file_is_there_or_not(tmp_path):
  path = tmp_path / 'a'
  assert not processes.all_see(path)
  path.touch()
  assert processes.all_see(path)


@pytest.mark.parametrize('others', [(True, True), (False, False)])
def test_all_see_the_same(tmp_path, monkeypatch, others):
  path = tmp_path / 'a'
  if others[0]:
    path.touch()
  _among(monkeypatch, others)
  assert processes.all_see(path) == others[0]


def test_some_see_a_file(tmp_path, monkeypatch):
  _among(monkeypatch, (True, True))
  with pytest.raises(FileNotFoundError, match='a is there for 2 of 3') as e:
    processes.all_see(tmp_path / 'a')
  assert 'they share' in str(e.value)


def _among(monkeypatch, others):
  """This process with others, which see the file or do not."""
  monkeypatch.setattr(processes, 'are_many', lambda: True)
  monkeypatch.setattr(
    multihost_utils,
    'process_allgather',
    lambda mine: np.array([mine, *others]),
  )
