"""MEND: networks that make an edit of a single gradient.

Mitchell et al., *Fast Model Editing at Scale* (2022). One backward pass gives
the gradient of the target's negative log-likelihood as token rows x, g for
each edited kernel (`mend_factors`), trained networks turn these into x̃, g̃
(`mend_network`), and the kernel changes by

    ΔW = -α Σ x̃ ⊗ g̃        (step_sign 'minus'; the authors' code adds)

which is a change of low rank as it stands: left = x̃ᵀ, right = -α g̃, a rank for
each token row. The networks stay as they were trained on the unedited model
(`mend_training`), while gradients are those of the model so far: nothing keeps
it where the networks know their way.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.config import MendConfig
from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits import mend_factors, mend_file, mend_network, target_texts
from me_jax.edits.edit import LARGEST_RELATIVE_NORM, Edit, LowRank
from me_jax.edits.editor import Editor, Info, one_by_one
from me_jax.edits.mend_file import Trained
from me_jax.edits.target_texts import TextRows
from me_jax.models.config import ModelConfig
from me_jax.trees import get, to_host
from me_jax.typing import Params, Tokenizer


def mend(
  config: MendConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  *,
  trained: Trained,
) -> Editor:
  """The editor.

  Args:
    config: Hyper-parameters.
    model: The model's shape.
    tokenizer: The model's tokenizer.
    trained: The networks, see `mend_file.load`.

  Raises:
    ValueError: The networks were not trained, or for another shape.
  """
  mend_file.check(trained, config, model)

  def write(params: Params, request: EditRequest) -> tuple[Edit, Info]:
    return edit_one(config, model, params, tokenizer, request, trained)

  return one_by_one(write, mend_factors.edited_paths(config.layers))


def edit_one(
  config: MendConfig,
  model: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  request: EditRequest,
  trained: Trained,
) -> tuple[Edit, Info]:
  """The changes of the kernels for one request, and how they came about."""
  text = target_texts.text(tokenizer, request.text, request.target_new)
  changes, kept, loss, gradient_norm = to_host(
    _change(
      model,
      params,
      trained.params,
      trained.statistics,
      target_texts.stack([text]),
      layers=tuple(config.layers),
      step_sign=config.step_sign,
    )
  )
  if not np.isfinite([loss, *gradient_norm.values()]).all():
    raise FloatingPointError(
      f'Case {request.case_id!r}: the model gives a loss or gradients that '
      'are not finite, so it cannot be edited any further. It has collapsed: '
      'look at the losses and relative_change_norm of the edits before.'
    )
  edit = {
    path: LowRank(
      jnp.asarray(changes[path][0][0, kept[path]].T),
      jnp.asarray(changes[path][1][0, kept[path]]),
    )
    for path in mend_factors.edited_paths(config.layers)
  }
  norms = {p: float(edit_lib.frobenius_norm(c)) for p, c in edit.items()}
  relative = {
    p: norm / float(jnp.linalg.norm(get(params, p)))
    for p, norm in norms.items()
  }
  info: Info = {
    'case_id': request.case_id,
    'target_ids': list(text.targets),
    'boundary_merged': int(text.boundary_merged),
    'loss': float(loss),
    'token_rows': {path: int(kept[path].sum()) for path in edit},
    'gradient_norm': {path: float(gradient_norm[path]) for path in edit},
    'change_norm': norms,
    'relative_change_norm': relative,
    'warnings': _warnings(request, relative),
  }
  return edit, info


@functools.partial(jax.jit, static_argnames=('model', 'layers', 'step_sign'))
def _change(
  model: ModelConfig,
  params: Params,
  network_params: mend_network.NetworkParams,
  statistics: dict[str, mend_network.Statistics],
  rows: TextRows,
  *,
  layers: tuple[int, ...],
  step_sign: str,
):
  """Left and right rows of each change, which of them are kept, the loss, and
  ‖gradient‖ of each kernel."""
  x = mend_factors.entering(model, params, rows, layers[0])
  raw, losses = mend_factors.raw_factors(
    model, params, x, rows, layers=layers, batch=1
  )
  used = mend_network.frozen_moments(statistics, raw)
  changes = mend_network.changes(network_params, used, raw, step_sign)
  kept = {p: mend_network.kept_rows(f.x[0], f.g[0]) for p, f in raw.items()}
  norms = {
    p: edit_lib.frobenius_norm(LowRank(f.x[0].T, f.g[0]))
    for p, f in raw.items()
  }
  return changes, kept, losses[0], norms


def _warnings(
  request: EditRequest, relative_norms: dict[str, float]
) -> list[str]:
  path, largest = max(relative_norms.items(), key=lambda item: item[1])
  if largest <= LARGEST_RELATIVE_NORM:
    return []
  warning = (
    f'‖ΔW‖/‖W‖ = {largest:.3f} of {path} is above {LARGEST_RELATIVE_NORM}: one '
    'edit changes the kernel more than a fact should'
  )
  logging.warning('Case %s: %s.', request.case_id, warning)
  return [warning]
