"""GRACE: facts beside the weights, in a codebook at one layer.

Hartvigsen et al., *Aging with GRACE: Lifelong Model Editing with Discrete
Key-Value Adaptors* (2023). Where the input k of a layer's `down_proj` lies
within the deferral radius of an entry of the codebook, the layer puts out the
entry's value instead of `W k`. An edit makes an entry, or finds the one that
answers, and learns its value by gradient; no weight ever changes:

    out(k) = v_i  if ‖k - k_i‖ <= radius_i, i the nearest entry, else W k

`codebook.py` says what becomes of a new key, `grace_lookup.py` which tokens ask
and which are replaced, `grace_learning.py` how a value is learned.

Edits do not disturb each other while their keys are apart. Radii are absolute:
the distances of prompts that have nothing to do with an edit (`grace_probe.py`)
belong beside `eps`.
"""

import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from me_jax import trees
from me_jax.config import GraceConfig
from me_jax.data import token_ids
from me_jax.data.request import EditRequest
from me_jax.edits import codebook as codebook_lib
from me_jax.edits import codebook_log, grace_learning, grace_lookup, grace_probe
from me_jax.edits.codebook import Codebook, Rules
from me_jax.edits.edit import Edit
from me_jax.edits.editor import Editor, Info, Probe, check_layer
from me_jax.edits.grace_lookup import GraceState
from me_jax.generation import LlamaPredictor
from me_jax.models import sites
from me_jax.models.config import ModelConfig
from me_jax.typing import Params, Tokenizer

CAPACITY = 128  # entries that fit at first
SMALLEST_RADIUS = 0.05  # of eps; below, hardly anything is within reach


def grace(
  config: GraceConfig,
  model: ModelConfig,
  tokenizer: Tokenizer,
  *,
  capacity: int = CAPACITY,
) -> Editor:
  """The editor. Its state is a `GraceState`, its edits are empty.

  Args:
    config: Hyper-parameters.
    model: The model's shape.
    tokenizer: The model's tokenizer.
    capacity: Entries that fit at first; all that uses the state compiles again
      when they are full, and there is room for twice as many.

  Raises:
    ValueError: The layer does not exist.
  """
  check_layer(config.layer, model)

  def init(params: Params) -> GraceState:
    del params
    return GraceState(
      codebook_lib.empty(model.mlp_dim, model.embed_dim, capacity),
      num_edits=jnp.int32(0),
      last_query=jnp.int32(0),
    )

  def edit(
    params: Params, state: GraceState, requests: Sequence[EditRequest]
  ) -> tuple[Edit, GraceState, list[Info]]:
    """No change of the weights; requests are learned one after another."""
    infos = []
    for request in requests:
      state, info = edit_one(config, model, params, tokenizer, state, request)
      infos.append(info)
    return {}, state, infos

  acts = functools.partial(_interventions, config)
  task_query = config.task_query or config.query
  return Editor(
    init=init,
    edit=edit,
    interventions=functools.partial(acts, config.query),
    edited_paths=(),
    task_interventions=functools.partial(acts, task_query)
    if task_query != config.query
    else None,
    shown=lambda state: state._replace(
      codebook=state.codebook._replace(log=None)
    ),
    needs_whole_prompts=config.replacement != 'replace_last',
    lookups=functools.partial(
      grace_probe.lookups, config, LlamaPredictor(model, tokenizer)
    ),
    probe=Probe(
      site=sites.site(config.layer, 'mlp/key'),
      asks=lambda state, fed: grace_lookup.queries(
        task_query, fed, state.last_query
      ),
      finds=lambda state, keys: grace_probe.find(state.codebook, keys)[2:],
    ),
    summary=summary,
    without=functools.partial(_without, config),
  )


def edit_one(
  config: GraceConfig,
  model: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  state: GraceState,
  request: EditRequest,
) -> tuple[GraceState, Info]:
  """The state with one fact more, and how it came about.

  Raises:
    FloatingPointError: The model gives non-finite keys or gradients.
  """
  joint = token_ids.joint_ids(tokenizer, request.text, request.target_new)
  row = grace_learning.build_row(joint, config.query)
  prepared = grace_learning.prepare(model, params, row, layer=config.layer)
  prepared = prepared._replace(
    key=_own(prepared.key), output=_own(prepared.output)
  )
  _check_finite(request, prepared.key, prepared.output)
  bound = {'layer': config.layer, 'rule': config.replacement}
  book, edit_id = state.codebook, int(state.num_edits) + 1
  info: Info = {
    'case_id': request.case_id,
    'target_ids': list(joint.target),
    'boundary_merged': joint.boundary_merged,
    'lookup_position': int(row.query),
  }
  if config.edit_if == 'wrong':
    index, hit = codebook_lib.look_up(book, prepared.key)
    said = grace_learning.say(
      model, params, row, prepared, book.values[index], hit, **bound
    )
    if said.is_right:
      return state, info | _skipped(book, said)

  book = codebook_lib.with_room(book)
  book, written = codebook_lib.write(
    book,
    prepared.key,
    _first_value(config, edit_id, prepared.output),
    jnp.asarray(label(config.label_match, joint)),
    jnp.int32(edit_id),
    rules=rules(config),
  )
  start = book.values[written.entry]
  learned = None
  if _is_found(config, request, book, prepared.key, written.entry):
    learned = _own(
      grace_learning.learn(
        model,
        params,
        row,
        prepared,
        start,
        n_iter=config.n_iter,
        edit_lr=config.edit_lr,
        **bound,
      )
    )
    _check_finite(request, learned.value, learned.losses)
    values = book.values.at[written.entry].set(learned.value)
    book = book._replace(values=values)
  info |= {'edit_id': edit_id, **_taken(state.codebook, book, written)}
  info |= {
    'key_norm': float(jnp.linalg.norm(prepared.key)),
    'start_norm': float(jnp.linalg.norm(start)),
    'value_norm': float(jnp.linalg.norm(book.values[written.entry])),
    'steps': _history(learned),
    'final_loss': None if learned is None else float(learned.said.loss),
    'warnings': _warnings(config, request, book, written, learned),
  }
  state = GraceState(book, jnp.int32(edit_id), jnp.int32(joint.num_prompt - 1))
  return state, info


def delete(config: GraceConfig, state: GraceState, edit_id: int) -> GraceState:
  """The state without one edit; see `codebook_log.delete`.

  Raises:
    KeyError: There is no such edit, or a later one has overwritten it.
  """
  book = codebook_log.delete(state.codebook, edit_id, rules=rules(config))
  return state._replace(codebook=book)


def _without(
  config: GraceConfig, state: GraceState, infos: Sequence[Info]
) -> GraceState:
  for info in infos:
    if info['edit_id'] is not None:
      state = delete(config, state, info['edit_id'])
  return state


def summary(state: GraceState) -> dict[str, float]:
  """Entries of the codebook, `num_keys`, and the least and middle radius."""
  found = _radii(state.codebook)
  return {name: float(x) for name, x in found.items() if x is not None}


def rules(config: GraceConfig) -> Rules:
  """The part of the hyper-parameters that the codebook needs."""
  return Rules(float(config.eps), config.eps_expand, config.reedit)


def label(label_match: str, joint: token_ids.JointIds) -> np.ndarray:
  """int32 [2]: equal for facts that say the same, see `GraceConfig`."""
  if label_match == 'legacy_label_mean':
    labels = [-100] * joint.num_prompt + list(joint.target)
    return np.array([np.float32(np.mean(labels)).view(np.int32), 0], np.int32)
  digest = hashlib.sha256(np.array(joint.target, np.int64).tobytes())
  return np.frombuffer(digest.digest()[:8], np.int32)


def _interventions(config: GraceConfig, policy: str, state: GraceState):
  def fn(output, key, fed):
    return grace_lookup.intervene(
      state, output, key, fed, policy=policy, rule=config.replacement
    )

  return {sites.site(config.layer, 'mlp/out'): fn}


def _first_value(config: GraceConfig, edit_id: int, output: jax.Array):
  """What a new entry's value begins as, float32 [D]."""
  if config.val_init == 'warm':
    return output
  key = jax.random.fold_in(jax.random.key(config.seed), edit_id)
  return jax.random.uniform(key, output.shape, jnp.float32)


def _is_found(
  config: GraceConfig,
  request: EditRequest,
  book: Codebook,
  key: jax.Array,
  entry: jax.Array,
) -> bool:
  """Whether the codebook gives `entry` for the key it was just made for."""
  index, hit = codebook_lib.look_up(book, key)
  is_found = bool(hit) and int(index) == int(entry)
  if not is_found and config.reedit != 'legacy_split':
    raise RuntimeError(
      f'Case {request.case_id!r}: entry {int(entry)} is to answer for this '
      f'prompt, but entry {int(index)} stands in front of it. Two entries have '
      'one key: was the codebook made with reedit=legacy_split?'
    )
  return is_found


def _skipped(book: Codebook, said: grace_learning.Said) -> Info:
  return {
    'edit_id': None,
    'action': 'skipped',
    **_radii(book),
    'steps': [],
    'final_loss': float(said.loss),
    'warnings': [],
  }


def _taken(
  before: Codebook, book: Codebook, written: codebook_lib.Written
) -> Info:
  """What became of the key."""
  kind, entry, nearest, distance, same_key = map(
    np.asarray, jax.device_get(written)
  )
  has_nearest = bool(np.isfinite(distance))
  only = lambda x: float(x) if has_nearest else None
  return {
    'action': codebook_lib.KINDS[int(kind)],
    'entry': int(entry),
    'reedit': bool(same_key),
    'nearest': int(nearest) if has_nearest else None,
    'nearest_distance': only(distance),
    'nearest_radius_before': only(before.radii[nearest]),
    'nearest_radius': only(book.radii[nearest]),
    'radius': float(book.radii[entry]),
    **_radii(book),
  }


def _radii(book: Codebook) -> Info:
  radii = np.asarray(book.radii)[: int(book.count)]
  return {
    'num_keys': len(radii),
    'radius_min': float(radii.min()) if len(radii) else None,
    'radius_median': float(np.median(radii)) if len(radii) else None,
  }


def _own(tree: Any) -> Any:
  """Arrays beside the codebook, which lies on one device of each process
  wherever the weights lie."""
  return jax.tree.map(jnp.asarray, trees.to_host(tree))


def _history(learned: grace_learning.Learned | None) -> list[Info]:
  if learned is None:
    return []
  return [{'loss': loss} for loss in np.asarray(learned.losses).tolist()]


def _check_finite(request: EditRequest, *arrays: jax.Array) -> None:
  if not all(bool(jnp.isfinite(x).all()) for x in arrays):
    raise FloatingPointError(
      f'Case {request.case_id!r}: the model gives non-finite keys, losses or '
      'gradients, so it cannot be edited. Lower method.edit_lr, if the model '
      'itself is sound.'
    )


def _warnings(
  config: GraceConfig,
  request: EditRequest,
  book: Codebook,
  written: codebook_lib.Written,
  learned: grace_learning.Learned | None,
) -> list[str]:
  warnings = []
  if learned is None:
    warnings.append(
      f'the prompt is that of entry {int(written.nearest)}, which stands in '
      'front of the new one: the fact was not learned; reedit=overwrite avoids '
      'that'
    )
  radius = float(book.radii[jnp.array([written.entry, written.nearest])].min())
  if radius < SMALLEST_RADIUS * config.eps:
    warnings.append(
      f'a radius fell to {radius:.2e}, below {SMALLEST_RADIUS} of eps = '
      f'{config.eps}: keys crowd there, and prompts hardly find them'
    )
  for warning in warnings:
    logging.warning('Case %s: %s.', request.case_id, warning)
  return warnings
