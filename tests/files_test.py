import builtins
import errno
import json
import os
import pathlib

import pytest

from me_jax import files


def _raise(number):
  def fail(*args, **kwargs):
    raise OSError(number, os.strerror(number))

  return fail


def test_canonical_json_is_one_text_per_value():
  assert files.canonical_json({'b': [1, 2.5], 'a': 'ü'}) == (
    '{"a":"ü","b":[1,2.5]}'
  )
  with pytest.raises(ValueError, match='JSON'):
    files.canonical_json(float('nan'))


def test_short_hash_ignores_the_order_of_keys_only():
  assert files.short_hash({'a': 1, 'b': 2}) == files.short_hash(
    {'b': 2, 'a': 1}
  )
  assert files.short_hash([1, 2]) != files.short_hash([2, 1])
  assert len(files.short_hash(None)) == 16


@pytest.mark.parametrize('content', ['naïve\n', b'\x00\xff', ''])
def test_write_atomic(tmp_path, content):
  path = tmp_path / 'new' / 'deep' / 'file'
  files.write_atomic(path, 'old')
  files.write_atomic(path, content)
  expected = content.encode() if isinstance(content, str) else content
  assert path.read_bytes() == expected
  assert os.listdir(path.parent) == ['file']


@pytest.mark.parametrize('call', ['fsync', 'replace'])
@pytest.mark.parametrize(
  'number, advice',
  [
    (errno.ENOSPC, 'disk is full.*run the same command again'),
    (errno.EDQUOT, 'disk is full'),
    (errno.EACCES, 'no permission.*another directory'),
    (errno.EIO, os.strerror(errno.EIO)),
  ],
)
def test_failed_write_leaves_the_old_file(
  tmp_path, monkeypatch, call, number, advice
):
  path = tmp_path / 'file'
  files.write_atomic(path, 'old')
  with monkeypatch.context() as patch:
    patch.setattr(os, call, _raise(number))
    with pytest.raises(OSError, match=f'{path}.*{advice}') as error:
      files.write_atomic(path, 'new')
  assert error.value.errno == number
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['file']


def test_write_atomic_has_synced_before_it_replaces(tmp_path, monkeypatch):
  order = []
  for call in ('fsync', 'replace'):
    real = getattr(os, call)

    def record(*args, call=call, real=real):
      order.append(call)
      return real(*args)

    monkeypatch.setattr(os, call, record)
  files.write_atomic(tmp_path / 'file', 'content')
  assert order == ['fsync', 'replace']


def test_append_then_read(tmp_path):
  path = tmp_path / 'new' / 'log.jsonl'
  assert files.read_jsonl(path) == []
  files.append_jsonl(path, [{'a': 1}, {'a': 'ü\n'}])
  files.append_jsonl(path, [])
  files.append_jsonl(path, iter([{'a': None}]))
  assert files.read_jsonl(path) == [{'a': 1}, {'a': 'ü\n'}, {'a': None}]


def test_append_refuses_nan_and_writes_nothing(tmp_path):
  path = tmp_path / 'log.jsonl'
  with pytest.raises(ValueError, match='JSON'):
    files.append_jsonl(path, [{'a': 1}, {'a': float('inf')}])
  assert not path.exists()


@pytest.mark.parametrize('torn', ['{"a": 2', '{"a": 2}', 'ü', '{'])
def test_torn_last_line(tmp_path, torn):
  path = tmp_path / 'log.jsonl'
  files.append_jsonl(path, [{'a': 1}])
  whole = path.read_bytes()
  # Cut in the middle of a character, too.
  path.write_bytes(whole + torn.encode()[: len(torn)])

  assert files.read_jsonl(path) == [{'a': 1}]
  files.append_jsonl(path, [{'a': 3}])
  assert path.read_bytes() == whole + b'{"a": 3}\n'


def test_nothing_but_a_torn_line(tmp_path):
  path = tmp_path / 'log.jsonl'
  path.write_text('{"a"')
  assert files.read_jsonl(path) == []
  files.append_jsonl(path, [{'a': 3}])
  assert files.read_jsonl(path) == [{'a': 3}]


@pytest.mark.parametrize(
  'line, words',
  [
    (b'{"a": 2', 'one JSON object a line'),
    (b'', 'one JSON object a line'),
    (b'\xff\xfe', 'one JSON object a line'),
    (b'[1]', 'found list'),
    (b'3', 'found int'),
  ],
)
def test_malformed_line_is_named(tmp_path, line, words):
  path = tmp_path / 'log.jsonl'
  path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
  with pytest.raises(ValueError, match=f'{path}:2: .*{words}'):
    files.read_jsonl(path)


@pytest.mark.skipif(
  not pathlib.Path('/dev/full').exists(), reason='no /dev/full'
)
def test_append_to_a_full_disk():
  with pytest.raises(OSError, match='/dev/full: the disk is full') as error:
    files.append_jsonl('/dev/full', [{'a': 1}])
  assert error.value.errno == errno.ENOSPC


def test_append_that_fails_half_way_keeps_earlier_lines(tmp_path, monkeypatch):
  """The disk takes half of the line and refuses the rest."""
  path = tmp_path / 'log.jsonl'
  files.append_jsonl(path, [{'a': 1}])
  real_open = builtins.open

  class HalfFull:
    def __init__(self, f):
      self._f = f

    def __enter__(self):
      return self

    def __exit__(self, *error):
      self._f.close()

    def write(self, data):
      self._f.write(data[: len(data) // 2])
      self._f.flush()
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def open_half_full(name, mode='r', *args, **kwargs):
    f = real_open(name, mode, *args, **kwargs)
    return HalfFull(f) if mode == 'ab' else f

  with monkeypatch.context() as patch:
    patch.setattr(builtins, 'open', open_half_full)
    with pytest.raises(OSError, match='disk is full'):
      files.append_jsonl(path, [{'a': 2}])
  assert path.read_bytes() == b'{"a": 1}\n{"a"'
  assert files.read_jsonl(path) == [{'a': 1}]
  files.append_jsonl(path, [{'a': 2}])
  assert files.read_jsonl(path) == [{'a': 1}, {'a': 2}]


def test_failed_sync_is_reported(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'fsync', _raise(errno.ENOSPC))
  with pytest.raises(OSError, match='log.jsonl: the disk is full'):
    files.append_jsonl(tmp_path / 'log.jsonl', [{'a': 1}])


def test_records_are_plain_json_lines(tmp_path):
  path = tmp_path / 'log.jsonl'
  files.append_jsonl(path, [{'b': [1], 'a': {}}])
  (line,) = path.read_text().splitlines()
  assert json.loads(line) == {'b': [1], 'a': {}}
