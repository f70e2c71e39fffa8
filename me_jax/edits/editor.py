"""What every editing method is: three pure functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits.edit import Edit, LowRank
from me_jax.models.config import ModelConfig
from me_jax.typing import (
  EditorInterventions,
  Fed,
  ModelState,
  ParamPath,
  Params,
  ScoreRequest,
  Site,
)

Info = dict[str, Any]  # JSON values: how the search went, norms, warnings


class Probe(NamedTuple):
  """How a method that acts in the forward pass chooses where, on tasks.

  Attributes:
    site: What it looks at; no state of the method changes what stands there.
    asks: `asks(state, fed) -> bool [B, T]`: the tokens at which it looks.
      Takes and gives NumPy arrays, too.
    finds: `finds(state, contents) -> (acts, may_act)`, each bool [N]: of what
      stands at the site, float32 [N, X], where the method acts, and where it
      might if the last digits were others.
  """

  site: Site
  asks: Callable[[Any, Fed], np.ndarray]
  finds: Callable[[Any, np.ndarray], tuple[np.ndarray, np.ndarray]]


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
    shown: `shown(state) -> state`: the state without what no intervention reads
      and may change its shape, which would compile predictors again; None for
      all of it.
    needs_whole_prompts: The interventions look at all of a prompt at once: no
      part of it may be computed apart.
    lookups: `lookups(state, requests) -> records`, one per text to be scored,
      of one continuation: whether the method acts on it, `triggered`, and why.
      None for methods that do not choose.
    probe: The same for measures of general ability, of whole texts.
    summary: `summary(state) -> {name: number}`: what the state has come to, for
      the results; None for methods with nothing to say of it.
    without: `without(state, infos) -> state`: the state as if the edits of
      these records of `edit` had never been, as far as it still can be told;
      None for methods whose edits are all in the weights.
  """

  init: Callable[[Params], Any]
  edit: Callable[
    [Params, Any, Sequence[EditRequest]], tuple[Edit, Any, list[Info]]
  ]
  interventions: Callable[[Any], EditorInterventions]
  edited_paths: tuple[str, ...]
  task_interventions: Callable[[Any], EditorInterventions] | None = None
  shown: Callable[[Any], Any] | None = None
  needs_whole_prompts: bool = False
  lookups: Callable[[ModelState, Sequence[ScoreRequest]], list[Info]] | None = (
    None
  )
  probe: Probe | None = None
  summary: Callable[[Any], dict[str, float]] | None = None
  without: Callable[[Any, Sequence[Info]], Any] | None = None


def one_by_one(
  edit_one: Callable[
    [Params, EditRequest], tuple[Mapping[ParamPath, LowRank], Info]
  ],
  edited_paths: tuple[str, ...],
) -> Editor:
  """The editor of a method that changes weights and keeps no state; several
  requests are written one after another into one edit.

  Args:
    edit_one: From weights and a request to its edit and record.
    edited_paths: See `Editor`.
  """

  def edit(
    params: Params, state: None, requests: Sequence[EditRequest]
  ) -> tuple[Edit, None, list[Info]]:
    composed: Edit = {}
    infos = []
    for request in requests:
      single, info = edit_one(params, request)
      edit_lib.check_finite(single)
      params = edit_lib.apply_edit(params, single)
      composed = edit_lib.compose(composed, single)
      infos.append(info)
    made = {path: edit_lib.smallest(c) for path, c in composed.items()}
    return made, state, infos

  return Editor(
    init=lambda params: None,
    edit=edit,
    interventions=lambda state: {},
    edited_paths=edited_paths,
  )


def check_layer(layer: int, model: ModelConfig) -> None:
  """Raises ValueError if a method is to edit a layer that does not exist."""
  if not 0 <= layer < model.num_layers:
    raise ValueError(
      f'method.layer must be in 0 ... {model.num_layers - 1}, got {layer}.'
    )
