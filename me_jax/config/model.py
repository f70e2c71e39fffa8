"""Which model."""

import dataclasses


@dataclasses.dataclass(kw_only=True)
class ModelSource:
  """Which model.

  Attributes:
    name: A preset, a hub id, or a directory or GGUF file.
    path: Where the weights of the preset are, if not at their usual place.
  """

  name: str
  path: str = ''
