"""A grid of runs."""

from typing import NamedTuple


class Cell(NamedTuple):
  """One run of a grid; `launch/sweep.py` makes a command of it.

  Attributes:
    name: Of its workdir. Cells of several experiments with one name are one
      run: what they measure is added up.
    arg: What `get_config` is given, 'name=value,name=value'.
    flags: More of its command; `{root}` stands for where the workdirs are.
    after: Names of cells that must be done before.
    module: The program.
    config: Its config file; that of the experiment if empty.
  """

  name: str
  arg: str
  flags: tuple[str, ...] = ()
  after: tuple[str, ...] = ()
  module: str = 'launch.run'
  config: str = ''
