"""Taking an edit out of a codebook, by doing all others again.

A split shrinks radii for good: whoever takes back the edit that caused it has
to give the neighbours back what they had. The codebook's log says what each
edit did; without one of its lines the rest is decided anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from me_jax.edits.codebook import (
  EXPANDED,
  GAP,
  INSERTED,
  OVERWRITTEN,
  SPLIT,
  TRAINED,
  Codebook,
  Log,
  Rules,
  nearest,
)

_MAKES = (INSERTED, SPLIT)


class _Event(NamedTuple):
  """One line of the log, on the host."""

  edit_id: int
  kind: int
  entry: int
  distance: float
  label: tuple[int, int]


def delete(codebook: Codebook, edit_id: int, *, rules: Rules) -> Codebook:
  """The codebook without one edit; entries keep their order.

  An entry goes if no other edit uses it. One that others use stays, with the
  value that was trained last. Then all that was ever decided about radii is
  decided again without the edit (`_replay`): what it had split is whole again.
  With 'moving_average', moved keys stay where they are.

  Raises:
    KeyError: There is no such edit, or a later one has overwritten it.
  """
  events = _events(codebook)
  of_edit = [e for e in events if e.edit_id == edit_id]
  if not of_edit:
    known = sorted({e.edit_id for e in events})
    raise KeyError(f'No edit {edit_id} in the codebook; there are {known}.')
  entry = of_edit[-1].entry
  own = [n for n, e in enumerate(events) if e.entry == entry]
  first = max(n for n in own if events[n].kind in (*_MAKES, OVERWRITTEN))
  users = [events[n].edit_id for n in own if n >= first]
  if edit_id not in users:
    raise KeyError(
      f'Edit {edit_id} was overwritten by edit {events[first].edit_id}, which '
      'wrote another fact after the same prompt.'
    )
  others = [user for user in users if user != edit_id]
  if others:
    # The entry stays, as if the next of its users had made it.
    events[first] = events[first]._replace(edit_id=others[0])
    events = [e for e in events if e.edit_id != edit_id]
    edit_ids = codebook.edit_ids.at[entry].set(events[first].edit_id)
    codebook = codebook._replace(edit_ids=edit_ids)
  else:
    events = [
      e._replace(entry=e.entry - (e.entry > entry))
      for e in events
      if e.entry != entry
    ]
    codebook = _without_entry(codebook, entry)
  events, history = _replay(codebook, events, rules=rules)
  radii = np.zeros(len(codebook.radii), np.float32)
  for i, changes in enumerate(history):
    radii[i] = changes[-1][1]
  return codebook._replace(
    radii=jnp.asarray(radii), log=_log(events, len(codebook.log.edit_ids))
  )


def radius_history(
  codebook: Codebook, *, rules: Rules
) -> list[list[tuple[int, float]]]:
  """Per entry its radii over time, each with the edit that caused it."""
  return _replay(codebook, _events(codebook), rules=rules)[1]


def _replay(
  codebook: Codebook, events: list[_Event], *, rules: Rules
) -> tuple[list[_Event], list[list[tuple[int, float]]]]:
  """The events as they would have happened, and the radii of each entry.

  An entry that would have been joined with another of its label stays its own.
  """
  history: list[list[tuple[int, float]]] = []
  labels: list[tuple[int, int]] = []
  eps, half, gap = (np.float32(x) for x in (rules.eps, 0.5, GAP))
  found = []
  for event in events:
    kind, entry, d = event.kind, event.entry, np.float32(event.distance)
    if kind in _MAKES:
      before = codebook._replace(count=jnp.int32(entry))
      i, d = map(np.asarray, nearest(before, codebook.keys[entry]))
      splits = bool(history) and (
        d <= eps + np.float32(history[i][-1][1]) and labels[i] != event.label
      )
      if splits:
        history[i].append((event.edit_id, float(d * half - gap)))
      radius = d * half if splits else eps
      history.append([(event.edit_id, float(radius))])
      labels.append(event.label)
      kind = SPLIT if splits else INSERTED
    elif kind == OVERWRITTEN:
      labels[entry] = event.label
    else:
      expands = d > np.float32(history[entry][-1][1])
      if expands:
        history[entry].append((event.edit_id, float(d)))
      kind = EXPANDED if expands else TRAINED
    found.append(event._replace(kind=kind, distance=float(d)))
  return found, history


def _without_entry(codebook: Codebook, entry: int) -> Codebook:
  order = np.delete(np.arange(len(codebook.radii)), entry)
  shifted = lambda x: x[np.append(order, entry)].at[-1].set(0)
  rows = codebook._replace(count=None, log=None)
  return jax.tree.map(shifted, rows)._replace(
    count=codebook.count - 1, log=codebook.log
  )


def _events(codebook: Codebook) -> list[_Event]:
  log = jax.device_get(codebook.log)
  return [
    _Event(
      int(log.edit_ids[n]),
      int(log.kinds[n]),
      int(log.entries[n]),
      float(log.distances[n]),
      tuple(log.labels[n].tolist()),
    )
    for n in range(int(log.count))
  ]


def _log(events: list[_Event], capacity: int) -> Log:
  def column(values, dtype, *shape):
    rows = np.zeros((capacity, *shape), dtype)
    rows[: len(events)] = np.reshape(values, (len(events), *shape))
    return jnp.asarray(rows)

  return Log(
    edit_ids=column([e.edit_id for e in events], np.int32),
    kinds=column([e.kind for e in events], np.int32),
    entries=column([e.entry for e in events], np.int32),
    distances=column([e.distance for e in events], np.float32),
    labels=column([e.label for e in events], np.int32, 2),
    count=jnp.int32(len(events)),
  )
