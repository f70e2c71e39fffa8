"""What every editing method is: three pure functions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from me_jax.data.request import EditRequest
from me_jax.edits.edit import Edit
from me_jax.typing import EditorInterventions, ModelState, Params

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
    interventions: `interventions(state) -> {site: fn}` for the forward pass,
      `fn(output, site_input, fed) -> output`, see `typing.Fed`.
    edited_paths: Parameters that an edit may change.
    task_interventions: The same for measures of general ability, where the
      method is to act in another way there; None for no other.
    needs_whole_prompts: The interventions look at all of a prompt at once: no
      part of it may be computed apart.
    lookups: `lookups(state, prompts) -> records`, one per prompt (token ids):
      whether the method would act on what follows it, `triggered`, and why.
      None for methods that do not choose.
  """

  init: Callable[[Params], Any]
  edit: Callable[
    [Params, Any, Sequence[EditRequest]], tuple[Edit, Any, list[Info]]
  ]
  interventions: Callable[[Any], EditorInterventions]
  edited_paths: tuple[str, ...]
  task_interventions: Callable[[Any], EditorInterventions] | None = None
  needs_whole_prompts: bool = False
  lookups: (
    Callable[[ModelState, Sequence[tuple[int, ...]]], list[Info]] | None
  ) = None
