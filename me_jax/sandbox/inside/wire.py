"""The child's end of the two pipes.

Requests are marshalled: they come from the parent, which is trusted. Replies
are JSON, because the parent must be able to read them safely whoever wrote
them. Each message is preceded by its length, four bytes, big-endian.
"""

import marshal
import os


class Wire:
  """Requests from one file descriptor, replies to another."""

  def __init__(self, requests: int, replies: int):
    self.descriptors = (requests, replies)
    # Bound here: the program may replace the functions of `os`.
    self._read = os.read
    self._write = os.write

  def receive(self) -> object:
    """The next request. Raises EOFError when the parent has gone."""
    return marshal.loads(self._exactly(int.from_bytes(self._exactly(4), 'big')))

  def send(self, text: str) -> None:
    """Sends one reply, given as JSON in ASCII."""
    data = text.encode('ascii')
    data = len(data).to_bytes(4, 'big') + data
    while data:
      data = data[self._write(self.descriptors[1], data) :]

  def _exactly(self, size: int) -> bytes:
    data = b''
    while len(data) < size:
      piece = self._read(self.descriptors[0], size - len(data))
      if not piece:
        raise EOFError('the parent closed the pipe')
      data += piece
    return data
