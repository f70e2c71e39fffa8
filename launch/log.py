"""What of the log is shown."""

import logging
import sys

import tqdm
from absl import flags
from absl import logging as absl_logging


class _AboveBars(logging.Handler):
  """Lines on stderr that leave a progress bar whole."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.tqdm.write(self.format(record), file=sys.stderr)


def show_warnings() -> None:
  """From now on warnings are plain lines and what is less is not shown.

  Orbax and JAX tell a lot. `--verbosity=0` shows it all, in their format.
  """
  if flags.FLAGS['verbosity'].present:
    return
  absl_logging.set_verbosity(absl_logging.WARNING)
  handler = _AboveBars()
  handler.setFormatter(logging.Formatter('Warning: %(message)s'))
  logging.getLogger().handlers = [handler]
