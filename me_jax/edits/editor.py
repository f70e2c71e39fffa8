"""What every editing method is: three pure functions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from me_jax.data.request import EditRequest
from me_jax.edits.edit import Edit
from me_jax.typing import Interventions, Params

Info = dict[str, Any]  # JSON values: how the search went, norms, warnings


class Editor(NamedTuple):
  """An editing method with everything bound that it needs.

  Methods that change weights return no interventions; methods that leave the
  weights alone return an empty edit. Who runs or evaluates an editor never asks
  which one it is.

  Attributes:
    init: `init(params) -> state`.
    edit: `edit(params, state, requests) -> (edit, state, info)`. `params` is
      left as it is; `info` holds one record per request.
    interventions: `interventions(state) -> {site: fn}` for the forward pass.
    edited_paths: Parameters that an edit may change.
  """

  init: Callable[[Params], Any]
  edit: Callable[
    [Params, Any, Sequence[EditRequest]], tuple[Edit, Any, list[Info]]
  ]
  interventions: Callable[[Any], Interventions]
  edited_paths: tuple[str, ...]
