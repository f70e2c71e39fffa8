"""The child: puts up the walls, then runs one program and answers about it.

The parent asks, the child replies (see `wire.py`):

    {'kind': ..., 'limits': ..., ...} ["ready", names of walls]
    code                              ["defined"] once the code has run
    ('value', expression, limit)      ["value", encoded value]
    ('run', statement)                ["done"]
    ('token', text)                   ["token", text]

Where a reply is expected, ["raised", is AssertionError, message] may come
instead, and ["broken", message] in place of "ready".
"""

import io
import os
import sys

import limits
import plain
import wire


class _Mute(io.StringIO):
  """A text stream that swallows what is written and cannot be read."""

  def write(self, text):
    return len(text)

  def read(self, *args):
    raise OSError('standard input is closed')

  readline = readlines = read

  def readable(self):
    return False


def serve(folder: str, here: str) -> None:
  """Does not return. `folder` is the program's, `here` is this code's."""
  channel = wire.Wire(os.dup(0), os.dup(1))
  null = os.open(os.devnull, os.O_RDWR)
  for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
  os.close(null)
  leave = os._exit
  try:
    setup = channel.receive()
    names = _put_up_walls(setup, folder, channel)
    _tidy(here)
  except BaseException as e:
    channel.send(f'["broken",{plain.encode(_message(e), 1000)}]')
    leave(1)
  channel.send(f'["ready",{plain.encode(names, 10000)}]')
  # On Linux the death of the evaluator ends this process, unless it came before
  # the call that asks for that, and the pipe stays open until the last of its
  # threads is gone. One that now says what to run was alive after that call.
  _converse(channel)
  leave(0)


def _put_up_walls(setup: dict, folder: str, channel: wire.Wire) -> list[str]:
  kind, process, names = setup['kind'], os.getpid(), []
  os.umask(0o022)
  # All imports first: later our own files are out of reach.
  import privileges

  if sys.platform == 'linux':
    import landlock
    import linux
    import namespaces
    import syscalls
  if kind == 'basic':
    import hook
  if kind == 'namespaces':
    folder = namespaces.enter(
      folder,
      setup['folders'],
      user=setup['user_namespace'],
      disk_bytes=setup['disk_bytes'],
      pipes=channel.descriptors,
    )
  if kind != 'bubblewrap':
    os.chdir(folder)
  user = 0
  if setup['drop_root']:
    user = privileges.become_nobody(folder, process)
  limits.apply(setup['limits'])
  if sys.platform == 'linux':
    privileges.give_up()
    # Not before: a change of user clears it.
    linux.die_with_parent()
    if kind == 'landlock':
      landlock.restrict(readable=setup['folders'], writable='.')
    if syscalls.supported():
      syscalls.install_filter()
      names.append('seccomp')
  if kind == 'basic':
    hook.install(readable=setup['folders'], writable=os.getcwd())
    names.append('hook')
  if user:
    names.append('own user')
  return names


def _tidy(here: str) -> None:
  sys.path.remove(here)
  for name, module in list(sys.modules.items()):
    file = getattr(module, '__file__', None) or ''
    if name != '__main__' and file.startswith(here):
      del sys.modules[name]
  sys.stdin = sys.__stdin__ = sys.stdout = sys.__stdout__ = _Mute()
  sys.stderr = sys.__stderr__ = _Mute()
  sys.argv = ['']
  sys.dont_write_bytecode = True
  os.environ.clear()


def _converse(
  channel: wire.Wire,
  # Bound here: the program may replace the built-in ones.
  compile=compile,
  exec=exec,
  eval=eval,
) -> None:
  scope = {}
  code = channel.receive()
  try:
    exec(compile(code, '<string>', 'exec', dont_inherit=True), scope)
  except BaseException as e:
    channel.send(_raised(e))
    return
  channel.send('["defined"]')
  while True:
    verb, *arguments = channel.receive()
    try:
      if verb == 'value':
        source, limit = arguments
        unit = compile(source, '<string>', 'eval', dont_inherit=True)
        text = f'["value",{plain.encode(eval(unit, scope), limit)}]'
      elif verb == 'run':
        exec(compile(*arguments, '<string>', 'exec', dont_inherit=True), scope)
        text = '["done"]'
      else:
        text = f'["token",{plain.encode(*arguments, 1000)}]'
    except BaseException as e:
      channel.send(_raised(e))
      return
    channel.send(text)
    if verb == 'token':
      return


def _raised(error: BaseException, assertion=AssertionError) -> str:
  wrong = 'true' if issubclass(type(error), assertion) else 'false'
  return f'["raised",{wrong},{plain.encode(_message(error), 10000)}]'


def _message(error: BaseException) -> str:
  name = type(error).__name__
  try:
    lines = str(error).strip().splitlines()
  except BaseException:
    lines = ['']
  if len(lines) > 1:
    return lines[-1][:1000]
  return f'{name}: {lines[0][:1000]}' if lines and lines[0] else name
