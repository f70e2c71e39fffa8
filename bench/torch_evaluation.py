"""Benchmarks in plain PyTorch: one text at a time, whole, without padding.

A stock transformers model, scored as OpenCompass 0.2.0 scores perplexity and
decoded by `generate`. It is what `bench/evaluation.py` measures against.
"""

from collections.abc import Sequence

import torch
import transformers


@torch.inference_mode()
def text_score(
  model: transformers.LlamaForCausalLM, ids: Sequence[int]
) -> float:
  """Nats per token of a whole text, lower is better.

  The first token counts though nothing predicts it.
  """
  row = torch.tensor([ids])
  logits = model(input_ids=row, use_cache=False).logits
  nll = torch.nn.functional.cross_entropy(
    logits[0, :-1], row[0, 1:], reduction='sum'
  )
  return nll.item() / len(ids)


@torch.inference_mode()
def greedy(
  model: transformers.LlamaForCausalLM,
  prompt: Sequence[int],
  *,
  max_new_tokens: int,
  eos_id: int,
) -> list[int]:
  """What `generate` writes: new tokens, the end token among them."""
  row = torch.tensor([prompt])
  found = model.generate(
    row,
    attention_mask=torch.ones_like(row),
    do_sample=False,
    use_cache=True,
    max_new_tokens=max_new_tokens,
    eos_token_id=eos_id,
    pad_token_id=eos_id,
  )
  return found[0, row.shape[1] :].tolist()


@torch.inference_mode()
def preference(
  model: transformers.LlamaForCausalLM,
  ids: Sequence[int],
  token: int,
  other: int,
) -> float:
  """By how much the logit of `token` is above that of `other` after `ids`."""
  logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
  return (logits[token] - logits[other]).item()
