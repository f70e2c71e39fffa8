"""Memory and bytes read when a model is loaded in parts by several processes.

  python -m bench.loading --directory=/tmp/random_1b --processes=1,2,4

Writes a LLaMA of 1.1 billion random weights as sharded safetensors, if it is
not there, and loads it with its kernels cut over so many processes of one
device each. Of each process: what it keeps, the most it held beyond that while
loading, against the largest parameter, and the bytes of the files that it
asked for. Held is anonymous memory: pages of the files themselves can be
dropped at any time.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

import jax
from absl import app, flags

from me_jax import processes, sharding, trees
from me_jax.models import convert, load, shapes, tokenizer
from me_jax.models.config import ModelConfig
from me_jax.models.language_model import language_model

_DIRECTORY = flags.DEFINE_string(
  'directory', None, 'Where the model is, or is put (4.4 GB).', required=True
)
_PROCESSES = flags.DEFINE_list('processes', ['1', '2', '4'], 'How many.')
_PORT = flags.DEFINE_integer('port', 21_456, 'Free here, for process 0.')
_RANK = flags.DEFINE_integer(
  'rank', None, 'Of one of the processes; this program sets it.'
)

# The shape of TinyLlama, 1.1 billion weights.
CONFIG = ModelConfig(
  vocab_size=32_000,
  embed_dim=2048,
  mlp_dim=5632,
  num_layers=22,
  num_heads=32,
  num_kv_heads=4,
  head_dim=64,
  max_positions=2048,
)
_SHARD_BYTES = 1_000_000_000


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  counts = [int(count) for count in _PROCESSES.value]
  if _RANK.value is not None:
    print(json.dumps(_load(_RANK.value, counts[0])))
    return
  directory = pathlib.Path(_DIRECTORY.value)
  if not (directory / 'config.json').is_file():
    # A killed writer leaves nothing under that name.
    partial = directory.with_name(f'{directory.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    _write(partial)
    partial.rename(directory)
  largest = 4 * max(map(math.prod, shapes.param_shapes(CONFIG).values()))
  print(f'Largest parameter: {largest / 1e6:.0f} MB')
  print('processes  process  keeps MB  peak beyond MB  in largest  read MB  s')
  for count in counts:
    for rank, found in enumerate(_run(count)):
      beyond = found['peak'] - found['keeps']
      print(
        f'{count:9} {rank:8} {found["keeps"] / 1e6:9.0f} '
        f'{beyond / 1e6:15.0f} {beyond / largest:11.2f} '
        f'{found["read"] / 1e6:8.0f} {found["seconds"]:.1f}',
        flush=True,
      )


def _write(directory: pathlib.Path) -> None:
  """The model, in several files."""
  model = language_model(
    CONFIG, load.init_params(CONFIG), tokenizer.byte_tokenizer(), name='random'
  )
  convert.write_hf(directory, model, max_shard_bytes=_SHARD_BYTES)


def _run(count: int) -> list[dict[str, Any]]:
  """What each of so many processes says."""
  started = [
    subprocess.Popen(
      [
        *(sys.executable, '-m', 'bench.loading'),
        f'--directory={_DIRECTORY.value}',
        f'--processes={count}',
        f'--port={_PORT.value}',
        f'--rank={rank}',
      ],
      stdout=subprocess.PIPE,
      env=_env(),
      text=True,
    )
    for rank in range(count)
  ]
  outputs = [process.communicate()[0] for process in started]
  for process in started:
    if process.returncode:
      sys.exit(f'A process of {count} ended with {process.returncode}.')
  return [json.loads(output.splitlines()[-1]) for output in outputs]


def _load(rank: int, count: int) -> dict[str, Any]:
  """Loads the part of this process."""
  if count > 1:
    jax.distributed.initialize(f'localhost:{_PORT.value}', count, rank)
  mesh = sharding.make_mesh(1, count)
  jax.block_until_ready(jax.numpy.zeros(8))  # The backend is up.
  if count > 1:
    processes.meet(mesh)
  asked = _count_bytes()
  before = _anonymous()
  start = time.monotonic()
  with _Peak() as peak:
    params = load.load_model(_DIRECTORY.value, mesh=mesh).params
    jax.block_until_ready(params)
    seconds = time.monotonic() - start
  keeps = sum(
    shard.data.nbytes
    for leaf in trees.flatten(params).values()
    for shard in leaf.addressable_shards
  )
  return {
    'keeps': keeps,
    'peak': peak.bytes - before,
    'read': sum(asked),
    'seconds': seconds,
  }


def _count_bytes() -> list[int]:
  """Grows by the stored bytes of each part that is read from now on."""
  asked: list[int] = []
  open_file = convert.safetensors.safe_open

  class Part:
    def __init__(self, stored):
      self._stored = stored

    def __getitem__(self, index):
      part = self._stored[index]
      asked.append(part.nbytes)
      return part

    def __getattr__(self, name):
      return getattr(self._stored, name)

  class File:
    def __init__(self, *args, **kwargs):
      self._file = open_file(*args, **kwargs)

    def __enter__(self):
      self._opened = self._file.__enter__()
      return self

    def __exit__(self, *exception):
      return self._file.__exit__(*exception)

    def keys(self):
      return self._opened.keys()

    def get_slice(self, name):
      return Part(self._opened.get_slice(name))

  convert.safetensors.safe_open = File
  return asked


class _Peak:
  """The most anonymous memory of this process, looked at every 2 ms."""

  def __enter__(self) -> '_Peak':
    self.bytes, self._is_over = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *exception) -> None:
    self._is_over.set()
    self._thread.join()

  def _watch(self) -> None:
    while not self._is_over.wait(0.002):
      self.bytes = max(self.bytes, _anonymous())


def _anonymous() -> int:
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('RssAnon:'):
      return 1024 * int(line.split()[1])
  raise OSError('/proc/self/status has no RssAnon: this needs Linux.')


def _env() -> dict[str, str]:
  return {**os.environ, 'JAX_PLATFORMS': 'cpu'}


if __name__ == '__main__':
  app.run(main)
