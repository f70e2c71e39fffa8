import io

import pytest

from me_jax.progress import Progress, duration


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _Clock:
  now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return _Clock()


def test_lines_at_most_every_ten_seconds(clock):
  out = io.StringIO()
  with Progress(100, 'scoring', 'items', stream=out, clock=clock) as progress:
    progress(0)
    for done in range(1, 101):
      clock.now += 0.5
      progress(done)
  lines = out.getvalue().splitlines()
  assert lines == [
    'scoring: 20/100 items (20%), 2 items/s, 40.0 s left',
    'scoring: 40/100 items (40%), 2 items/s, 30.0 s left',
    'scoring: 60/100 items (60%), 2 items/s, 20.0 s left',
    'scoring: 80/100 items (80%), 2 items/s, 10.0 s left',
    'scoring: 100/100 items (100%), 2 items/s, took 50.0 s',
  ]


def test_rate_counts_from_the_first_call(clock):
  out = io.StringIO()
  progress = Progress(2_000, 'C', 'tokens', stream=out, clock=clock)
  clock.now += 1000
  progress(1_000)  # what an earlier run left
  clock.now += 20
  progress(1_400)
  assert out.getvalue() == (
    'C: 1,400/2,000 tokens (70%), 20 tokens/s, 30.0 s left\n'
  )


def test_interruption_leaves_the_last_state(clock):
  out = io.StringIO()
  with pytest.raises(KeyboardInterrupt):
    with Progress(10, 'C', 'tokens', stream=out, clock=clock) as progress:
      progress(0)
      clock.now += 2
      progress(4)
      raise KeyboardInterrupt
  assert out.getvalue() == 'C: 4/10 tokens (40%), 2 tokens/s, 3.0 s left\n'


def test_says_nothing_unless_called(clock):
  out = io.StringIO()
  with Progress(10, 'C', 'tokens', stream=out, clock=clock):
    pass
  assert out.getvalue() == ''


def test_bar_on_a_terminal():
  out = _Terminal()
  with Progress(10, 'scoring', 'items', stream=out) as progress:
    progress(0)
    progress(10)
  assert 'scoring' in out.getvalue() and '10/10' in out.getvalue()
  assert '\r' in out.getvalue()


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.04, '0.0 s'),
    (59.94, '59.9 s'),
    (59.96, '1:00'),
    (125.0, '2:05'),
    (3725.0, '1:02:05'),
  ],
)
def test_duration(seconds, text):
  assert duration(seconds) == text
