"""Names of the places inside a LLaMA that can be read or changed.

| site                    | content                              | shape     |
|-------------------------|--------------------------------------|-----------|
| `layers/{i}/mlp/in`     | input of `gate_proj` and `up_proj`   | [B, T, D] |
| `layers/{i}/mlp/gate`   | output of `gate_proj`                | [B, T, F] |
| `layers/{i}/mlp/up`     | output of `up_proj`                  | [B, T, F] |
| `layers/{i}/mlp/key`    | input of `down_proj`                 | [B, T, F] |
| `layers/{i}/mlp/out`    | output of `down_proj`                | [B, T, D] |
| `layers/{i}/resid`      | output of the block                  | [B, T, D] |
| `layers/{i}/attn/probs` | attention weights, after the softmax | [B,N,T,S] |

A tap asks for a site's content, an intervention replaces it. Both are plain
arguments of the forward pass: jit, grad and sharding need no hooks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from me_jax.typing import Site

NAMES = (
  'mlp/in',
  'mlp/gate',
  'mlp/up',
  'mlp/key',
  'mlp/out',
  'resid',
  'attn/probs',
)


def site(layer: int, name: str) -> Site:
  """The full name of `name` at a layer."""
  if name not in NAMES:
    raise ValueError(f'No site {name!r}; there are {", ".join(NAMES)}.')
  return f'layers/{layer}/{name}'


def layer_of(site: Site) -> int:
  """The layer that a full name says."""
  return int(site.split('/')[1])


def at_layer(sites: Iterable[Site], layer: int) -> tuple[str, ...]:
  """The local names of those `sites` that lie in `layer`."""
  prefix = f'layers/{layer}/'
  return tuple(s.removeprefix(prefix) for s in sites if s.startswith(prefix))


def functions_at_layer(
  interventions: Mapping[Site, Any], layer: int
) -> dict[str, Any]:
  """The interventions in `layer`, by local name."""
  return {
    name: interventions[f'layers/{layer}/{name}']
    for name in at_layer(interventions, layer)
  }


def check(sites: Iterable[Site], start: int, stop: int) -> None:
  """Raises ValueError for a site that layers [start, stop) do not have."""
  for s in sites:
    head, _, rest = s.partition('/')
    layer, _, name = rest.partition('/')
    known = head == 'layers' and layer.isdigit() and name in NAMES
    if not known or not start <= int(layer) < stop:
      raise ValueError(
        f'No site {s!r} in layers [{start}, {stop}); a site is '
        f'layers/<i>/<name> with a name of {", ".join(NAMES)}.'
      )
