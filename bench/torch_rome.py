"""ROME in plain PyTorch, the way published implementations run it.

A stock transformers model, a forward hook that adds the searched vector, and
the whole network on whole rows at every step. It is what `bench/rome.py`
measures against, and the other half of the parity test of the latent search.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

_IGNORED = -100  # a position at which nothing is to be predicted


class TorchEdit(NamedTuple):
  """One edit; entry i of a history was evaluated before update i.

  Attributes:
    delta: float32 [D], the vector found.
    loss: [evaluations], the sum of the next three.
    nll: [evaluations].
    kl: [evaluations], weighted.
    weight_decay: [evaluations], weighted.
    left: float32 [F], the unit direction of the key.
    right: float32 [D]; the edited weight [D, F] grows by `right leftᵀ`.
  """

  delta: np.ndarray
  loss: np.ndarray
  nll: np.ndarray
  kl: np.ndarray
  weight_decay: np.ndarray
  left: np.ndarray
  right: np.ndarray


def edit(
  model: transformers.LlamaForCausalLM,
  rows: Any,
  *,
  layer: int,
  settings: Any,
  chol: torch.Tensor | None = None,
) -> TorchEdit:
  """One ROME edit: key pass, latent search, closed form.

  Args:
    model: Of `torch_model.build_model`; left as it was.
    rows: Token rows, as `me_jax.edits.rows.Rows`: template rows, the bare
      prompt's first, and the row of the divergence last.
    layer: The edited layer.
    settings: As `me_jax.edits.values.SearchConfig`.
    chol: float64 [F, F], lower Cholesky factor of the second moment; None for
      the identity.
  """
  batch = _batch(rows)
  key = _keys_and_values(model, batch, slice(0, -1), layer)[0].mean(0)
  target_init, delta, history = _search(
    model, batch, model.model.layers[layer].mlp, settings
  )
  current_key, current_value = (
    x[0] for x in _keys_and_values(model, batch, slice(0, 1), layer)
  )
  u = key.double()
  if chol is not None:
    u = torch.cholesky_solve(u[:, None], chol)[:, 0]
  left = (u / u.norm()).float()
  value = (target_init + delta).double()
  overlap = current_key.double() @ left.double()
  right = ((value - current_value.double()) / overlap).float()
  return TorchEdit(
    delta.numpy(), *np.array(history).T, left.numpy(), right.numpy()
  )


def search(
  model: transformers.LlamaForCausalLM,
  rows: Any,
  *,
  module: torch.nn.Module,
  settings: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The latent search alone, for whatever `module` of `model` puts out.

  MEMIT searches the output of a block, `model.model.layers[i]`.

  Returns:
    Start value [D], delta [D], and [evaluations, 4]: loss, NLL, divergence,
    weight decay.
  """
  start, delta, history = _search(model, _batch(rows), module, settings)
  return start.numpy(), delta.numpy(), np.array(history)


class _Batch(NamedTuple):
  ids: torch.Tensor  # [P + 1, S], padded on the right to the longest row
  mask: torch.Tensor  # [P + 1, S]
  lookups: torch.Tensor  # [P + 1]
  labels: torch.Tensor  # [P + 1, S], what each position is to predict


def _batch(rows: Any) -> _Batch:
  longest = int(rows.lengths.max())
  labels = np.full((len(rows.ids), longest), _IGNORED)
  positions = rows.lookups[:-1, None] + rows.target_slots
  row, j = np.nonzero(rows.target_weights)
  labels[row, positions[row, j]] = rows.targets[row, j]
  mask = np.arange(longest) < rows.lengths[:, None]
  arrays = rows.ids[:, :longest], mask, rows.lookups, labels
  return _Batch(*(torch.from_numpy(np.asarray(a, np.int64)) for a in arrays))


class _Stop(Exception):
  """Ends a forward pass of which the rest is not needed."""


def _keys_and_values(
  model, batch: _Batch, rows: slice, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
  """Input and output of the edited `down_proj` at the lookup positions."""
  lookups = batch.lookups[rows]
  at = torch.arange(len(lookups)), lookups
  found = []

  def read(module, inputs, output):
    found.extend((inputs[0][at], output[at]))
    raise _Stop

  down_proj = model.model.layers[layer].mlp.down_proj
  handle = down_proj.register_forward_hook(read)
  try:
    with torch.no_grad():
      model(input_ids=batch.ids[rows], attention_mask=batch.mask[rows])
  except _Stop:
    pass
  finally:
    handle.remove()
  key, value = found
  return key, value


def _search(model, batch: _Batch, module: torch.nn.Module, settings: Any):
  """`target_init`, delta, and (loss, nll, kl, weight decay) per evaluation."""
  at = torch.arange(len(batch.lookups)), batch.lookups
  delta = torch.zeros(model.config.hidden_size, requires_grad=True)
  optimizer = torch.optim.Adam([delta], lr=settings.v_lr)
  target_init = essence = None
  history = []

  def add_delta(module, inputs, output):
    nonlocal target_init
    if target_init is None:
      target_init = output[0, batch.lookups[0]].detach().clone()
    output = output.clone()
    output[at] += delta
    return output

  handle = module.register_forward_hook(add_delta)
  try:
    for step in range(settings.v_num_grad_steps):
      optimizer.zero_grad()
      logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
      now = torch.log_softmax(logits[-1, batch.lookups[-1]], dim=-1)
      if essence is None:
        essence = now.detach().clone()
      logprobs = torch.log_softmax(logits, dim=-1)[:-1]
      labels = batch.labels[:-1]
      wanted = labels != _IGNORED
      chosen = logprobs.gather(2, labels.where(wanted, 0)[..., None])[..., 0]
      row_nll = -(chosen * wanted).sum(1) / wanted.sum(1)
      nll = row_nll.mean()
      kl = settings.kl_factor * torch.nn.functional.kl_div(
        essence, now, log_target=True, reduction='sum'
      )
      weight_decay = settings.v_weight_decay * (
        delta.norm() / target_init.norm() ** 2
      )
      loss = nll + kl + weight_decay
      history.append([x.item() for x in (loss, nll, kl, weight_decay)])
      if loss < settings.early_stop_loss:
        break
      if step == settings.v_num_grad_steps - 1:
        break
      loss.backward()
      optimizer.step()
      with torch.no_grad():
        largest = settings.clamp_norm_factor * target_init.norm()
        if delta.norm() > largest:
          delta *= largest / delta.norm()
  finally:
    handle.remove()
  return target_init, delta.detach(), history
