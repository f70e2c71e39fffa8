import struct

import pytest

from me_jax import event_log


def test_checksum_is_crc32c():
  """The check value of CRC-32C, masked as the format wants."""
  crc = 0xE3069283
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  assert event_log._masked_crc(b'123456789') == struct.pack('<I', masked)


def _records(data):
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    assert data[8:12] == event_log._masked_crc(data[:8])
    payload, data = data[12 : 12 + length], data[12 + length :]
    assert data[:4] == event_log._masked_crc(payload)
    yield payload
    data = data[4:]


def _varint(data, at):
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 0x7F) << shift
    at, shift = at + 1, shift + 7
    if byte < 0x80:
      return value, at


def _fields(data):
  """(number, value) of a protocol buffer, by the rules of its encoding."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    kind = key & 7
    if kind == 0:
      value, at = _varint(data, at)
    elif kind == 2:
      length, at = _varint(data, at)
      value, at = data[at : at + length], at + length
    else:
      size, code = {1: (8, '<d'), 5: (4, '<f')}[kind]
      (value,) = struct.unpack(code, data[at : at + size])
      at += size
    yield key >> 3, value


def test_curves_are_read_back(tmp_path):
  points = [
    (0, {'train/loss': 1.5}),
    (300, {'train/loss': -0.25, 'validation/loss': 2.0}),
  ]
  path = tmp_path / 'events.out.tfevents.0.x'
  event_log.write(path, points)
  version, *events = map(dict, map(_fields, _records(path.read_bytes())))
  assert version == {1: 0.0, 3: b'brain.Event:2'}
  found = []
  for event in events:
    values = {}
    for number, value in _fields(event[5]):
      assert number == 1
      scalar = dict(_fields(value))
      values[scalar[1].decode()] = scalar[2]
    found.append((event[2], values))
  assert found == points


@pytest.mark.parametrize('torn', [0, 5])
def test_a_curve_that_goes_on_is_appended(tmp_path, torn):
  """To the open file, also where a killed process left half a record."""
  points = [(step, {'loss': 1 / (1 + step)}) for step in range(4)]
  path, whole = (tmp_path / f'{name}.tfevents' for name in 'ab')
  event_log.write(whole, points)
  event_log.write(path, points[:2])
  inode = path.stat().st_ino
  path.write_bytes(path.read_bytes()[: -torn or None])
  event_log.write(path, points)
  assert path.read_bytes() == whole.read_bytes()
  assert path.stat().st_ino == inode


def test_another_curve_replaces_the_file(tmp_path):
  path, whole = (tmp_path / f'{name}.tfevents' for name in 'ab')
  event_log.write(path, [(0, {'loss': 1.0}), (1, {'loss': 2.0})])
  for points in ([(0, {'loss': 1.0})], [(0, {'loss': 3.0}), (1, {'a': 2.0})]):
    event_log.write(whole, points)
    event_log.write(path, points)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('value', [0, 1, 127, 128, 300, 1 << 40])
def test_varint(value):
  encoded = event_log._varint(value)
  assert _varint(encoded, 0) == (value, len(encoded))
