"""What one of many processes says to the others, and of them; whole programs
are in launch_hosts_test."""

import numpy as np
import pytest
from jax.experimental import multihost_utils

from me_jax import processes

# Files that all must read


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


# What process 0 tells the others


class _CannotBeSent(Exception):
  def __init__(self, first, second):
    super().__init__(f'{first} and {second}')


@pytest.fixture
def first(monkeypatch):
  """This process is the first of several, and a list of what it sends."""
  sent = []

  def send(array):
    sent.append(array)
    return array

  monkeypatch.setattr(processes, 'are_many', lambda: True)
  monkeypatch.setattr(processes, 'is_first', lambda: True)
  monkeypatch.setattr(processes, '_send', send)
  return sent


def _heard(sent, monkeypatch):
  """What `from_first` gives another process that hears this."""
  answers = iter(list(sent))
  monkeypatch.setattr(processes, 'is_first', lambda: False)
  monkeypatch.setattr(processes, '_send', lambda array: next(answers))
  return processes.from_first(lambda: pytest.fail('called on another'))


def test_what_is_large_is_sent_in_parts(first, monkeypatch):
  monkeypatch.setattr(processes, '_LEAST', 1 << 8)
  monkeypatch.setattr(processes, '_MOST', 1 << 10)
  array = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
  np.testing.assert_array_equal(processes.from_first(lambda: array), array)
  assert len(first) > 1 + 4
  assert {part.nbytes for part in first[1:-1]} == {1 << 10}
  np.testing.assert_array_equal(_heard(first, monkeypatch), array)


def test_sizes_beyond_32_bits(first, monkeypatch):
  """The size alone: nobody has so much memory to spare."""

  class Large(bytes):
    def __len__(self):
      return 5 << 32 | 7

  class Enough(Exception):
    pass

  def send(array):
    first.append(array)
    if len(first) == 2:
      raise Enough
    return array

  monkeypatch.setattr(processes, '_send', send)
  with pytest.raises(Enough):
    processes._broadcast(Large(b'some'))
  assert first[0].tolist() == [5, 7]


@pytest.mark.parametrize(
  'error, raised, said',
  [
    (FileNotFoundError('no file'), FileNotFoundError, 'no file'),
    (_CannotBeSent(1, 2), RuntimeError, '_CannotBeSent: 1 and 2'),
  ],
)
def test_an_error_of_the_first_is_one_of_all(
  first, monkeypatch, error, raised, said
):
  def fail():
    raise error

  with pytest.raises(type(error)):
    processes.from_first(fail)
  with pytest.raises(raised, match=said):
    _heard(first, monkeypatch)


def test_what_cannot_be_sent_is_an_error_of_all(first, monkeypatch):
  with pytest.raises(Exception, match='pickle'):
    processes.from_first(lambda: lambda: None)
  with pytest.raises(Exception, match='pickle'):
    _heard(first, monkeypatch)
