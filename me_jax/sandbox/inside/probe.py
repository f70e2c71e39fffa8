"""A program that runs in the sandbox like any other and tries each wall."""

import importlib
import os
import resource
import socket
import threading

# What programs ask for most; the libraries of the machine must be in reach.
_MODULES = (
  'array bisect cmath collections copy datetime decimal fractions '
  'functools heapq itertools json math operator random re signal statistics '
  'string sys typing'
)


def _works(action, *arguments):
  try:
    return action(*arguments) is not False
  except (OSError, MemoryError):
    return False


def _read(path):
  with open(path) as f:
    return f.read()


def _write(path):
  with open(path, 'w') as f:
    f.write('x')


def _connect(port):
  with socket.socket() as s:
    s.settimeout(0.5)
    s.connect(('127.0.0.1', port))


def _write_at(offset):
  with open('large', 'wb') as f:
    f.seek(offset)
    f.write(b'x')


def _open_many(count):
  files = []
  try:
    for _ in range(count):
      files.append(open('many', 'w'))
  finally:
    for f in files:
      f.close()


def _fork():
  child = os.fork()
  if child == 0:
    os._exit(0)
  os.waitpid(child, 0)


def attempts(canary, folder, port, parent, memory, file_size, files):
  """What succeeded, by name."""
  for name in _MODULES.split():
    importlib.import_module(name)
  worker = threading.Thread(target=int)
  worker.start()
  worker.join()
  return {
    'home': _works(_write, 'own'),
    'memory': _works(bytearray, memory),
    'file size': _works(_write_at, file_size),
    'open files': _works(_open_many, files + 1),
    'cpu time': resource.getrlimit(resource.RLIMIT_CPU)[0] < 0,
    'read': _works(_read, canary),
    'write': _works(_write, folder + '/new'),
    'network': _works(_connect, port),
    'fork': _works(_fork),
    'signal': _works(os.kill, parent, 0),
    'environment': bool(os.environ),
    'descriptors': _descriptors() > 5,
    'first process': os.getpid() == 1,
  }


def _descriptors():
  # 0 to 2 lead nowhere; two more are the pipes of the harness.
  return sum(_works(os.fstat, d) for d in range(64))
