"""Parameter trees by path name: `layers/5/mlp/down_proj/kernel`."""

import difflib
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from me_jax.typing import ParamPath, Params


def flatten(params: Params) -> dict[ParamPath, Any]:
  """All leaves by path, sorted by path."""
  leaves = {}

  def walk(node: Any, prefix: str) -> None:
    for key, child in node.items():
      path = f'{prefix}{key}'
      if isinstance(child, Mapping):
        walk(child, f'{path}/')
      else:
        leaves[path] = child

  walk(params, '')
  return dict(sorted(leaves.items()))


def unflatten(leaves: Mapping[ParamPath, Any]) -> Params:
  """The nested tree of `leaves`; the inverse of `flatten`."""
  params: Params = {}
  for path, leaf in leaves.items():
    *parents, name = path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return params


def get(params: Params, path: ParamPath) -> Any:
  """The leaf at `path`.

  Raises:
    KeyError: There is none; names the nearest paths.
  """
  node: Any = params
  for key in path.split('/'):
    if not isinstance(node, Mapping) or key not in node:
      raise KeyError(_no_such_path(params, path))
    node = node[key]
  if isinstance(node, Mapping):
    raise KeyError(_no_such_path(params, path))
  return node


def set_leaf(params: Params, path: ParamPath, leaf: Any) -> Params:
  """A tree with `leaf` at `path`; every other leaf is shared with `params`.

  Raises:
    KeyError: `params` has no leaf at `path`.
  """
  get(params, path)

  def replace(node: Params, keys: list[str]) -> Params:
    key, *rest = keys
    return {**node, key: replace(node[key], rest) if rest else leaf}

  return replace(params, path.split('/'))


def fingerprint(params: Params) -> str:
  """SHA-256 over every path, shape, dtype and byte: equal weights, equal
  print, whatever file they came from."""
  digest = hashlib.sha256()
  for path, leaf in flatten(params).items():
    array = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f'{path}:{array.shape}:{array.dtype}:'.encode())
    digest.update(array.reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _no_such_path(params: Params, path: ParamPath) -> str:
  near = difflib.get_close_matches(path, flatten(params), n=3, cutoff=0.5)
  return f'No parameter {path!r}. Nearest: {", ".join(near) or "none"}.'
