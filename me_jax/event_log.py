"""Training curves in the file format that TensorBoard reads.

A file is a sequence of records: length and payload, each followed by a masked
CRC-32C, little-endian. A payload is a protocol buffer `Event` with
wall_time = 1 (double), step = 2 (int64), file_version = 3 (string) and
summary = 5, whose values = 1 hold tag = 1 (string) and simple_value = 2
(float). That is all that scalars need, so no library for it is.
"""

import struct
from collections.abc import Iterable, Mapping

from me_jax import files

_VERSION = b'brain.Event:2'
_POLYNOMIAL = 0x82F63B78


def write(
  path: files.PathLike, points: Iterable[tuple[int, Mapping[str, float]]]
) -> None:
  """Makes `path`, whose name must hold 'tfevents', hold scalar curves.

  The same points give the same bytes: the wall time is the step. A file that
  holds the first of them is appended to, so that whoever has it open sees the
  others come.

  Args:
    path: The file.
    points: Step, and values by tag.

  Raises:
    OSError: The disk is full or not writable.
  """
  records = [_record(_double(1, 0.0) + _bytes(3, _VERSION))]
  records += [_record(_event(step, values)) for step, values in points]
  files.extend(path, b''.join(records))


def _event(step: int, values: Mapping[str, float]) -> bytes:
  summary = b''.join(
    _bytes(1, _bytes(1, tag.encode()) + _float(2, value))
    for tag, value in values.items()
  )
  return _double(1, float(step)) + b'\x10' + _varint(step) + _bytes(5, summary)


def _record(payload: bytes) -> bytes:
  length = struct.pack('<Q', len(payload))
  return length + _masked_crc(length) + payload + _masked_crc(payload)


def _masked_crc(data: bytes) -> bytes:
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
  crc ^= 0xFFFFFFFF
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack('<I', (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> list[int]:
  table = []
  for crc in range(256):
    for _ in range(8):
      crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    table.append(crc)
  return table


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*out, value])


def _double(field: int, value: float) -> bytes:
  return _varint(field << 3 | 1) + struct.pack('<d', value)


def _float(field: int, value: float) -> bytes:
  return _varint(field << 3 | 5) + struct.pack('<f', value)


def _bytes(field: int, value: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(value)) + value


_TABLE = _table()
