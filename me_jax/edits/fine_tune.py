"""Fine-tuning of one `down_proj`: FT-L and FT-M, the plain baselines.

A few steps of Adam on a loss of the fact, on one matrix of one layer:

| objective   | what is predicted                                | known as |
|-------------|--------------------------------------------------|----------|
| target_new  | each token of the target after those before it   | FT-M     |
| prompt_last | each token of the target right after the prompt  | FT-L     |

The second asks of one place for all tokens at once, which no weights can give
for a target of two different ones; it is what many published tables call FT-L.
The FT-L of Meng et al., *Locating and Editing Factual Associations in GPT*
(2022), has the first objective and keeps each entry within `norm_constraint`
of an anchor after each step. Their anchor is the matrix before the edit: in a
sequence the bound moves along, unless the anchor is the unedited matrix.

The change has no low rank: Adam divides entry by entry. An edit is as large as
the matrix, 180 MB for LLaMA-2-7B, on the disk too.
"""

import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import trees
from me_jax.config import FineTuneConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import edit as edit_lib
from me_jax.edits import fine_tune_search, target_texts
from me_jax.edits.edit import LARGEST_RELATIVE_NORM, Dense, Edit
from me_jax.edits.editor import Editor, Info, check_layer
from me_jax.edits.fine_tune_search import Found, SearchConfig
from me_jax.edits.target_texts import Text, TextRows
from me_jax.models.config import ModelConfig
from me_jax.typing import Params, Tokenizer


def fine_tune(
  config: FineTuneConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  *,
  base: Params,
) -> Editor:
  """The editor. Requests of one edit are trained on together.

  Args:
    config: Hyper-parameters.
    model: The model's shape.
    tokenizer: The model's tokenizer.
    base: The unedited weights, for `config.anchor` theta_0.

  Raises:
    ValueError: The layer does not exist.
  """
  check_layer(config.layer, model)
  path = edit_lib.kernel_path(config.layer)
  anchor = trees.get(base, path) if config.anchor == 'theta_0' else None

  def edit(
    params: Params, state: None, requests: Sequence[EditRequest]
  ) -> tuple[Edit, None, list[Info]]:
    """One edit for all requests."""
    if not requests:
      return {}, state, []
    texts = [
      text_of(tokenizer, request, config.objective) for request in requests
    ]
    rows = build_rows(texts, config.objective)
    found = fine_tune_search.search(
      model,
      params,
      rows,
      fine_tune_search.prepare(model, params, rows, layer=config.layer),
      _center(anchor, trees.get(params, path)),
      layer=config.layer,
      search_config=search_config(config),
    )
    made: Edit = {path: Dense(found.delta)}
    found = trees.to_host(found._replace(delta=None))
    _check_finite(requests, found)
    edit_lib.check_finite(made)
    return made, state, _infos(params, requests, texts, made, found)

  return Editor(
    init=lambda params: None,
    edit=edit,
    interventions=lambda state: {},
    edited_paths=(path,),
  )


def text_of(tokenizer: Tokenizer, request: EditRequest, objective: str) -> Text:
  """What the model is fed, and what is to come: `Text.ids` ends with the prompt
  for 'prompt_last', before the last target token for 'target_new'.

  Raises:
    ValueError: As `token_ids.joint_ids`.
  """
  joint = token_ids.joint_ids(tokenizer, request.text, request.target_new)
  # What follows the prompt cannot reach the logits at its end.
  fed = joint.prompt if objective == 'prompt_last' else joint.full[:-1]
  return Text(fed, joint.target, joint.boundary_merged)


def build_rows(texts: Sequence[Text], objective: str) -> TextRows:
  """The arrays of `text_of`'s texts, one a row."""
  rows = target_texts.stack(texts)
  if objective == 'target_new':
    return rows
  slots = rows.lengths[rows.reads.rows] - 1
  return rows._replace(reads=rows.reads._replace(slots=slots))


def search_config(config: FineTuneConfig) -> SearchConfig:
  """The part of the hyper-parameters that the search needs."""
  return SearchConfig(
    lr=config.lr,
    num_steps=config.num_steps,
    early_stop_loss=config.early_stop_loss,
    norm_constraint=config.norm_constraint,
  )


def _center(anchor: jax.Array | None, kernel: jax.Array) -> jax.Array:
  """The change that leads to the anchor; None for the kernel itself."""
  return jnp.zeros((), jnp.float32) if anchor is None else anchor - kernel


def _check_finite(requests: Sequence[EditRequest], found: Found) -> None:
  """Raises FloatingPointError for the first request with a bad loss."""
  losses = np.vstack([found.losses, found.final_losses])
  bad = ~np.isfinite(losses).all(axis=0)
  if bad.any():
    raise FloatingPointError(
      f'Case {requests[int(bad.argmax())].case_id!r}: the model gives losses '
      'that are not finite, so it cannot be edited any further. It has '
      'collapsed, or method.lr is too large: look at the losses and '
      'relative_change_norm of the edits before.'
    )


def _infos(
  params: Params,
  requests: Sequence[EditRequest],
  texts: Sequence[Text],
  made: Edit,
  found: Found,
) -> list[Info]:
  """A record per request; the change's norm is that of the whole batch."""
  ((path, change),) = made.items()
  norm = float(edit_lib.frobenius_norm(change))
  relative = norm / float(jnp.linalg.norm(trees.get(params, path)))
  losses = found.losses[: int(found.num_evaluations)]
  warnings = _warnings(requests, relative)
  return [
    {
      'case_id': request.case_id,
      'target_ids': list(text.targets),
      'boundary_merged': int(text.boundary_merged),
      'steps': [{'loss': loss} for loss in losses[:, i].tolist()],
      'final_loss': float(found.final_losses[i]),
      'change_norm': norm,
      'relative_change_norm': relative,
      'warnings': warnings,
    }
    for i, (request, text) in enumerate(zip(requests, texts, strict=True))
  ]


def _warnings(
  requests: Sequence[EditRequest], relative_norm: float
) -> list[str]:
  if relative_norm <= LARGEST_RELATIVE_NORM:
    return []
  warning = (
    f'‖ΔW‖/‖W‖ = {relative_norm:.3f} is above {LARGEST_RELATIVE_NORM}: one '
    'edit changes the kernel more than a fact should'
  )
  cases = ', '.join(request.case_id for request in requests)
  logging.warning('Case %s: %s.', cases, warning)
  return [warning]
