"""MEMIT and EMMET: a batch of facts, one low-rank change of each edited layer.

Meng et al., *Mass-Editing Memory in a Transformer* (2023). For each fact i a
target z_i is searched for the output of the last edited block, by ROME's
search with half the weight of keys on the bare prompt. Then, layer by layer
from the lowest up, on the model as edited so far (h = 0 ... H - 1):

    K = keys of the batch at layer l, mean over templates      [F, N]
    E = (Z - current outputs of the last block) / (H - h)      [D, N]
    ΔW_l = E Aᵀ                                                `memit_solve.py`

Each layer takes an equal share of what is missing by then. As every layer
delivers only a fraction of its share, the last one never gives the rest.

EMMET is the same with one layer and λ_e in the place of λ; its authors leave
that out for one fact alone.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from me_jax import trees
from me_jax.config import EmmetConfig, MemitConfig
from me_jax.data.request import EditRequest
from me_jax.edits import (
  batched_keys,
  batched_values,
  memit_solve,
  previous_keys,
  values,
)
from me_jax.edits import edit as edit_lib
from me_jax.edits import rows as rows_lib
from me_jax.edits.batched_keys import Seen
from me_jax.edits.batched_values import FoundTarget
from me_jax.edits.edit import LARGEST_RELATIVE_NORM, Change, Edit, LowRank
from me_jax.edits.editor import Editor, Info
from me_jax.edits.memit_solve import Solution
from me_jax.edits.previous_keys import PreviousKeys
from me_jax.edits.rows import Rows
from me_jax.edits.second_moment_factor import Factor
from me_jax.models.config import ModelConfig
from me_jax.typing import Params, Tokenizer


class LayerShare(NamedTuple):
  """What one layer was changed by, and for what.

  Attributes:
    layer: Its number.
    change: Of its `down_proj`: A and the shares E, or their product where that
      is smaller.
    solution: A, and how it came about.
    residual_norms: [N], ‖z - current output‖ before the change.
  """

  layer: int
  change: Change
  solution: Solution
  residual_norms: np.ndarray


def memit(
  config: MemitConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  *,
  templates: Sequence[str],
  factors: Mapping[int, Factor],
) -> Editor:
  """The editor; all requests of a call are one batch.

  Args:
    config: Hyper-parameters.
    model: The model's shape.
    tokenizer: The model's tokenizer.
    templates: Context templates, the bare one first; see `templates.py`.
    factors: Of the unedited model's second moments at the edited layers.

  Raises:
    ValueError: A layer does not exist, or its factor is missing or of another
      width.
  """
  layers = tuple(config.layers)
  return _editor(
    config,
    model,
    tokenizer,
    layers,
    lambda count: config.mom2_update_weight,
    templates,
    factors,
    caches=config.cache_previous_keys,
  )


def emmet(
  config: EmmetConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  *,
  templates: Sequence[str],
  factors: Mapping[int, Factor],
) -> Editor:
  """The editor; arguments and errors as those of `memit`."""

  def weight(count: int) -> float:
    is_soft = count > 1 or config.lambda_for_one
    return config.emmet_lambda if is_soft else 0.0

  return _editor(
    config,
    model,
    tokenizer,
    (config.layer,),
    weight,
    templates,
    factors,
    caches=False,
  )


def spread(
  layers: Sequence[int],
  z: np.ndarray,
  look: Callable[[Edit, int], Seen],
  solve: Callable[[int, np.ndarray], Solution],
) -> list[LayerShare]:
  """The change of each layer, from the lowest up.

  Args:
    layers: To edit.
    z: float64 [N, D], what the last block should put out.
    look: Keys at a layer and outputs of the last, with an edit of the layers
      below in the model. Asked for each layer in turn.
    solve: `memit_solve.solve` for a layer and its keys.
  """
  edit: Edit = {}
  shares = []
  for h, layer in enumerate(layers):
    keys, outputs = look(edit, layer)
    missing = z - outputs
    solution = solve(layer, keys)
    share = missing / (len(layers) - h)
    factors = LowRank(
      jnp.asarray(solution.left, jnp.float32), jnp.asarray(share, jnp.float32)
    )
    change = edit_lib.smallest(factors)
    edit = {**edit, edit_lib.kernel_path(layer): change}
    norms = np.linalg.norm(missing, axis=1)
    shares.append(LayerShare(layer, change, solution, norms))
  return shares


def write_targets(
  config: MemitConfig | EmmetConfig,
  model: ModelConfig,
  params: Params,
  rows: Sequence[Rows],
  z: np.ndarray,
  solve: Callable[[int, np.ndarray], Solution],
  *,
  layers: tuple[int, ...],
  case_ids: Sequence[str],
) -> list[LayerShare]:
  """`spread` over the layers of a model.

  Args:
    config: Says how many requests go through the model at once.
    model: The model's shape.
    params: Weights before the edit.
    rows: Token rows of each request.
    z: float [N, D], their targets.
    solve: See `spread`.
    layers: To edit.
    case_ids: Of the requests, for errors.

  Raises:
    FloatingPointError: Targets, or the keys or outputs that the model gives,
      are not finite; names the first case.
  """
  _check_finite(case_ids, z)
  groups = batched_keys.enter(
    model,
    params,
    rows,
    layer=layers[0],
    batch_size=config.search_batch_size,
  )

  def look(edit: Edit, layer: int) -> Seen:
    nonlocal groups
    edited = edit_lib.apply_edit(params, edit)
    seen, groups = batched_keys.look(
      model, edited, groups, layer, layers=layers
    )
    _check_finite(case_ids, seen.outputs, seen.keys.T)
    return seen

  return spread(layers, np.asarray(z, np.float64), look, solve)


def search_config(config: MemitConfig | EmmetConfig) -> values.SearchConfig:
  """The part of the hyper-parameters that the latent search needs."""
  names = [field.name for field in dataclasses.fields(values.SearchConfig)]
  return values.SearchConfig(**{name: getattr(config, name) for name in names})


def _editor(
  config: MemitConfig | EmmetConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  layers: tuple[int, ...],
  weight: Callable[[int], float],
  templates: Sequence[str],
  factors: Mapping[int, Factor],
  *,
  caches: bool,
) -> Editor:
  _check(layers, model, factors)

  def edit(
    params: Params,
    state: PreviousKeys | None,
    requests: Sequence[EditRequest],
  ) -> tuple[Edit, PreviousKeys | None, list[Info]]:
    """One edit for all requests."""
    if not requests:
      return {}, state, []
    case_ids = [request.case_id for request in requests]
    built = [rows_lib.build_rows(tokenizer, r, templates) for r in requests]
    rows = [r for r, _ in built]
    targets = batched_values.find_targets(
      model,
      params,
      rows,
      layer=layers[-1],
      search_config=search_config(config),
      batch_size=config.search_batch_size,
    )
    z = np.stack([target.z for target in targets])

    def solve(layer: int, keys: np.ndarray) -> Solution:
      old = previous_keys.solved(state, layer) if caches else None
      now = weight(keys.shape[1])
      return memit_solve.solve(keys, factors[layer], now, old)

    shares = write_targets(
      config, model, params, rows, z, solve, layers=layers, case_ids=case_ids
    )
    made = {edit_lib.kernel_path(s.layer): s.change for s in shares}
    edit_lib.check_finite(made)
    if caches:
      state = previous_keys.add(state, {s.layer: s.solution for s in shares})
    return made, state, _infos(params, requests, built, targets, shares)

  return Editor(
    init=lambda params: (
      previous_keys.none(layers, model.mlp_dim) if caches else None
    ),
    edit=edit,
    interventions=lambda state: {},
    edited_paths=tuple(map(edit_lib.kernel_path, layers)),
  )


def _check(
  layers: tuple[int, ...], model: ModelConfig, factors: Mapping[int, Factor]
) -> None:
  for layer in layers:
    if not 0 <= layer < model.num_layers:
      raise ValueError(
        f'Edited layers must be in 0 ... {model.num_layers - 1}, got {layer}.'
      )
    if layer not in factors:
      raise ValueError(
        f'The second moment of layer {layer} is missing; there are those of '
        f'{sorted(factors)}.'
      )
    width = factors[layer].chol.shape[0]
    if width != model.mlp_dim:
      raise ValueError(
        f'The second moment of layer {layer} is of keys of width {width}, the '
        f"model's have {model.mlp_dim}: is it another model's?"
      )


def _check_finite(case_ids: Sequence[str], *by_request: np.ndarray) -> None:
  """Raises FloatingPointError for the first request with a bad row [X]."""
  for array in by_request:
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
      raise FloatingPointError(
        f'Case {case_ids[int(bad.argmax())]!r}: the model gives non-finite '
        'keys, outputs or gradients, so it cannot be edited any further. It '
        'has collapsed: look at the losses and relative_change_norm of the '
        'edits before.'
      )


def _infos(
  params: Params,
  requests: Sequence[EditRequest],
  built: Sequence[tuple[Rows, rows_lib.RowNotes]],
  targets: Sequence[FoundTarget],
  shares: Sequence[LayerShare],
) -> list[Info]:
  """A record per request; norms of changes are those of the whole batch."""
  norms = {}
  for s in shares:
    norm = float(edit_lib.frobenius_norm(s.change))
    kernel = trees.get(params, edit_lib.kernel_path(s.layer))
    norms[s.layer] = norm, norm / float(jnp.linalg.norm(kernel))
  warnings = _warnings(requests, {i: norms[i][1] for i in norms})

  def layer_log(share: LayerShare, i: int) -> dict[str, Any]:
    norm, relative = norms[share.layer]
    return {
      'layer': share.layer,
      'residual_norm': float(share.residual_norms[i]),
      'delivered': float(share.solution.delivered[i]),
      'change_norm': norm,
      'relative_change_norm': relative,
    }

  return [
    {
      'case_id': request.case_id,
      'target_ids': list(notes.target),
      'boundary_merged': notes.boundary_merged,
      'lookup_disagrees': notes.lookup_disagrees,
      'lookup_position': int(rows.lookups[0]),
      'start_norm': float(np.linalg.norm(target.start)),
      'delta_norm': float(np.linalg.norm(target.search.delta)),
      'steps': values.history(target.search),
      'layers': [layer_log(share, i) for share in shares],
      'warnings': warnings,
    }
    for i, (request, (rows, notes), target) in enumerate(
      zip(requests, built, targets, strict=True)
    )
  ]


def _warnings(
  requests: Sequence[EditRequest], relative_norms: Mapping[int, float]
) -> list[str]:
  """One for each layer that the batch changes too much."""
  warnings = [
    f'‖ΔW‖/‖W‖ = {relative:.3f} of layer {layer} is above '
    f'{LARGEST_RELATIVE_NORM}: one edit of {len(requests)} changes the kernel '
    'more than it should'
    for layer, relative in relative_norms.items()
    if not relative <= LARGEST_RELATIVE_NORM
  ]
  for warning in warnings:
    logging.warning('Case %s: %s.', _cases(requests), warning)
  return warnings


def _cases(requests: Sequence[EditRequest]) -> str:
  """The first and the last of the cases."""
  first, last = requests[0].case_id, requests[-1].case_id
  return first if len(requests) == 1 else f'{first} to {last}'
