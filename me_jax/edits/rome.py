"""ROME: one fact, one rank-one change of one `down_proj`.

Meng et al., *Locating and Editing Factual Associations in GPT* (2022). With
the columns of the paper, `W k* = v*` is enforced and, weighted by the second
moment C of the keys, all other keys move as little as possible:

    left  = u / ‖u‖,  u = C⁻¹ k
    right = (v* - v) / (kᵀ left)
    ΔWᵀ   = left rightᵀ

Which key stands for k differs between the variants:

| variant | key of `left`       | key, output in `right` | v*              |
|---------|---------------------|------------------------|-----------------|
| rome    | mean over templates | of the bare prompt     | start value + δ |
| r_rome  | mean over templates | means over templates   | mean output + δ |
| p_rome  | of the bare prompt  | of the bare prompt     | start value + δ |

The start value of the search is the output of the bare prompt, so v* - v = δ.
rome's asymmetry is what its authors published; when the two keys point apart
the change explodes (Gupta et al., *Rebuilding ROME*, 2024), which `key_cosine`
shows.
"""

import logging
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from me_jax.config import RomeConfig
from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits import rows as rows_lib
from me_jax.edits import values
from me_jax.edits.edit import LARGEST_RELATIVE_NORM, Edit, LowRank
from me_jax.edits.editor import Editor, Info, check_layer, one_by_one
from me_jax.edits.second_moment_factor import Factor
from me_jax.models.config import ModelConfig
from me_jax.trees import get, to_host
from me_jax.typing import Params, Tokenizer

SMALLEST_KEY_COSINE = 1e-2  # below, the change is out of proportion


def rome(
  config: RomeConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  *,
  templates: Sequence[str],
  factor: Factor | None,
) -> Editor:
  """The editor.

  Args:
    config: Hyper-parameters.
    model: The model's shape.
    tokenizer: The model's tokenizer.
    templates: Context templates, the bare one first; see `templates.py`.
    factor: Of the unedited model's second moment at the edited layer; None if
      and only if `config.mom2_adjustment` is off.

  Raises:
    ValueError: The layer does not exist, or the factor is missing, not wanted
      or of another width.
  """
  check_layer(config.layer, model)
  if (factor is not None) != config.mom2_adjustment:
    raise ValueError(
      f'method.mom2_adjustment is {config.mom2_adjustment}, but the second '
      f'moment was {"not " if factor is None else ""}given.'
    )
  if factor is not None and factor.chol.shape[0] != model.mlp_dim:
    raise ValueError(
      f'The second moment is of keys of width {factor.chol.shape[0]}, the '
      f"model's have {model.mlp_dim}: is it another model's?"
    )
  path = edit_lib.kernel_path(config.layer)

  def write(params: Params, request: EditRequest) -> tuple[Edit, Info]:
    change, info = edit_one(
      config, model, params, tokenizer, request, templates, factor
    )
    return {path: change}, info

  return one_by_one(write, (path,))


def edit_one(
  config: RomeConfig,
  model: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  request: EditRequest,
  templates: Sequence[str],
  factor: Factor | None,
) -> tuple[LowRank, Info]:
  """The change of the edited kernel for one request, and how it came about."""
  rows, notes = rows_lib.build_rows(tokenizer, request, templates)
  prepared = values.prepare(
    model, params, rows, layer=config.layer, site='mlp/out'
  )
  found = to_host(
    values.search(
      model,
      params,
      rows,
      prepared,
      layer=config.layer,
      search_config=search_config(config),
    )
  )
  keys, outputs = to_host((prepared.keys, prepared.outputs))
  # All but the last row, which belongs to the divergence.
  keys = keys[:-1].astype(np.float64)
  if not (np.isfinite(keys).all() and np.isfinite(found.delta).all()):
    raise FloatingPointError(
      f'Case {request.case_id!r}: the model gives non-finite keys or '
      'gradients, so it cannot be edited any further. It has collapsed: look '
      'at the losses and relative_change_norm of the edits before.'
    )
  change, key_cosine = rank_one(
    config.variant, keys, found.delta.astype(np.float64), factor
  )
  kernel = get(params, edit_lib.kernel_path(config.layer))
  norm = float(edit_lib.frobenius_norm(change))
  relative_norm = norm / float(jnp.linalg.norm(kernel))
  info: Info = {
    'case_id': request.case_id,
    'target_ids': list(notes.target),
    'boundary_merged': notes.boundary_merged,
    'lookup_disagrees': notes.lookup_disagrees,
    'lookup_position': int(rows.lookups[0]),
    'start_norm': float(np.linalg.norm(outputs[0])),
    'delta_norm': float(np.linalg.norm(found.delta)),
    'steps': values.history(found),
    'key_cosine': key_cosine,
    'change_norm': norm,
    'relative_change_norm': relative_norm,
    'warnings': _warnings(request, key_cosine, relative_norm),
  }
  return change, info


def rank_one(
  variant: str,
  keys: np.ndarray,
  delta: np.ndarray,
  factor: Factor | None,
) -> tuple[LowRank, float]:
  """The closed form, in float64 up to the final rounding.

  Args:
    variant: See the module's table.
    keys: float64 [P, F], the bare template's first.
    delta: float64 [D], v* minus the current output.
    factor: Of the second moment; None for the identity.

  Returns:
    The change, and the cosine between `left` and the key it is divided by.
  """
  bare, mean = keys[0], keys.mean(axis=0)
  direction_key = bare if variant == 'p_rome' else mean
  value_key = mean if variant == 'r_rome' else bare
  u = direction_key if factor is None else factor.solve(direction_key)
  # Rounded before it divides, so that the rounding cancels in W k* = v*.
  left = (u / np.linalg.norm(u)).astype(np.float32)
  overlap = float(value_key @ left.astype(np.float64))
  right = (delta / overlap).astype(np.float32)
  change = LowRank(jnp.asarray(left[:, None]), jnp.asarray(right[None]))
  return change, overlap / float(np.linalg.norm(value_key))


def search_config(config: RomeConfig) -> values.SearchConfig:
  """The part of the hyper-parameters that the latent search needs."""
  return values.SearchConfig(
    v_num_grad_steps=config.v_num_grad_steps,
    v_lr=config.v_lr,
    v_weight_decay=config.v_weight_decay,
    clamp_norm_factor=config.clamp_norm_factor,
    kl_factor=config.kl_factor,
    early_stop_loss=config.early_stop_loss,
  )


def _warnings(
  request: EditRequest, key_cosine: float, relative_norm: float
) -> list[str]:
  warnings = []
  if abs(key_cosine) < SMALLEST_KEY_COSINE:
    warnings.append(
      f'key_cosine {key_cosine:.2e} is below {SMALLEST_KEY_COSINE}: the key '
      'of the bare prompt is nearly orthogonal to the direction of the '
      'change, which makes the change explode; variant r_rome avoids that'
    )
  if not relative_norm <= LARGEST_RELATIVE_NORM:
    warnings.append(
      f'‖ΔW‖/‖W‖ = {relative_norm:.3f} is above {LARGEST_RELATIVE_NORM}: one '
      'edit changes the kernel more than a fact should'
    )
  for warning in warnings:
    logging.warning('Case %s: %s.', request.case_id, warning)
  return warnings
