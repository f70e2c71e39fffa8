import json
import pathlib

import pytest

from me_jax.data import sources

_HUB = sources.HubFile(repo='some/repo', filename='a/b.json')
_TABLE = sources.HubTable(
  repo='some/table',
  split='test',
  config='conf',
  to_text=lambda rows: json.dumps([dict(r) for r in rows]),
)


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def test_data_root_comes_before_env_root(tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  data = sources.DataSources(data_root=first, env_root=second)
  there = _write(second / 'zsre/x.json', '[]')
  assert data.find('zsre/x.json') == there
  here = _write(first / 'zsre/x.json', '[]')
  assert data.find('zsre/x.json') == here


def test_missing_file_names_file_places_and_remedy(tmp_path):
  data = sources.DataSources(data_root=tmp_path)
  with pytest.raises(FileNotFoundError) as e:
    data.find('zsre/x.json')
  message = str(e.value)
  assert 'Expected the data file zsre/x.json' in message
  assert f'data_root: no file {tmp_path / "zsre/x.json"}' in message
  assert '$ME_JAX_DATA: not set' in message
  assert 'hub: does not have this file' in message
  assert '--data_root' in message


def test_a_folder_is_not_the_file(tmp_path):
  (tmp_path / 'zsre').mkdir()
  with pytest.raises(FileNotFoundError, match='no file'):
    sources.DataSources(env_root=tmp_path).find('zsre')


def test_hub_file_comes_last(tmp_path, monkeypatch):
  asked = []

  def download(repo, filename, *, repo_type, revision):
    asked.append((repo, filename, repo_type, revision))
    return str(_write(tmp_path / 'cache/b.json', '[]'))

  monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
  data = sources.DataSources(data_root=tmp_path)
  assert data.find('zsre/b.json', _HUB) == tmp_path / 'cache/b.json'
  assert asked == [('some/repo', 'a/b.json', 'dataset', 'main')]
  local = _write(tmp_path / 'zsre/b.json', '[]')
  assert data.find('zsre/b.json', _HUB) == local
  assert len(asked) == 1


def test_hub_table_is_written_once(tmp_path, monkeypatch):
  asked = []

  def load_dataset(repo, config, *, split, revision):
    asked.append((repo, config, split, revision))
    return [{'q': 'é?', 'a': 1}, {'q': 'b?', 'a': 2}]

  monkeypatch.setattr('datasets.load_dataset', load_dataset)
  monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path)
  data = sources.DataSources()
  path = data.find('c/x.json', _TABLE)
  assert sources.read_json(path) == [{'q': 'é?', 'a': 1}, {'q': 'b?', 'a': 2}]
  assert data.find('c/x.json', _TABLE) == path
  assert asked == [('some/table', 'conf', 'test', 'main')]


@pytest.mark.parametrize(
  'hub, function',
  [
    (_HUB, 'huggingface_hub.hf_hub_download'),
    (_TABLE, 'datasets.load_dataset'),
  ],
)
def test_hub_failure_gives_its_reason(tmp_path, monkeypatch, hub, function):
  def fail(*args, **kwargs):
    raise ConnectionError('no route to host')

  monkeypatch.setattr(function, fail)
  monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path)
  with pytest.raises(FileNotFoundError) as e:
    sources.DataSources().find('zsre/b.json', hub)
  assert 'Expected the data file zsre/b.json' in str(e.value)
  assert f'{hub.repo}: ConnectionError: no route to host' in str(e.value)
  assert isinstance(e.value.__cause__, ConnectionError)


def test_hub_is_not_asked_when_forbidden(monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError('asked')

  monkeypatch.setattr('huggingface_hub.hf_hub_download', fail)
  with pytest.raises(FileNotFoundError, match='some/repo not asked'):
    sources.DataSources(allow_hub=False).find('zsre/b.json', _HUB)


def test_json_list_is_read(tmp_path):
  path = _write(tmp_path / 'a.json', '[{"a": 1}, {"a": 2}]')
  assert sources.read_json(path) == [{'a': 1}, {'a': 2}]


@pytest.mark.parametrize(
  'text, reason',
  [
    ('', 'empty'),
    (' \n', 'empty'),
    ('[{"a": 1},\n {"a" 2}]', r'a\.json:2:7: not valid JSON'),
    ('[{"a": 1}', r'a\.json:1:10: not valid JSON'),
    ('[]', 'an empty list'),
    ('{"a": 1}', 'found dict'),
    ('[{"a": 1}, 3]', 'record 1: expected a JSON object, found int'),
  ],
)
def test_malformed_json_is_explained(tmp_path, text, reason):
  path = _write(tmp_path / 'a.json', text)
  with pytest.raises(ValueError, match=reason) as e:
    sources.read_json(path)
  assert str(path) in str(e.value)


def test_jsonl_is_read_with_or_without_last_newline(tmp_path):
  rows = [{'a': 'line\u2028separator'}, {'a': 2}]
  text = '\n'.join(json.dumps(r, ensure_ascii=False) for r in rows)
  for name, end in (('a', ''), ('b', '\n'), ('c', '\r\n')):
    path = _write(tmp_path / name, text + end)
    assert sources.read_jsonl(path) == rows


@pytest.mark.parametrize(
  'text, reason',
  [
    ('', 'empty'),
    ('{"a": 1}\n{"a": ', r'a\.jsonl:2: expected one JSON object'),
    ('{"a": 1}\n\n{"a": 2}\n', r'a\.jsonl:2: expected one JSON object'),
    ('{"a": 1}\n[2]\n', r'a\.jsonl:2: expected a JSON object, found list'),
  ],
)
def test_malformed_jsonl_is_explained(tmp_path, text, reason):
  path = _write(tmp_path / 'a.jsonl', text)
  with pytest.raises(ValueError, match=reason) as e:
    sources.read_jsonl(path)
  assert str(path) in str(e.value)


def test_other_encodings_are_explained(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes('["Málaga"]'.encode('latin-1'))
  with pytest.raises(ValueError, match='not UTF-8 text at byte 3'):
    sources.read_json(path)


def test_field_and_strings():
  record = {'a': 1, 'b': ['x', 'y'], 'c': ['x', 2]}
  assert sources.field(record, 'a', int, where='f: record 3') == 1
  assert sources.strings(record, 'b', where='f') == ('x', 'y')
  with pytest.raises(ValueError, match="f: record 3: no field 'z'"):
    sources.field(record, 'z', int, where='f: record 3')
  with pytest.raises(ValueError, match="'a' must be str or NoneType, found 1"):
    sources.field(record, 'a', (str, type(None)), where='f')
  with pytest.raises(ValueError, match='list of texts, found 2'):
    sources.strings(record, 'c', where='f')
