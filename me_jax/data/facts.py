"""The facts to edit in, by name, and a seeded draw from them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from me_jax import files
from me_jax.data import counterfact, sample, sources, zsre
from me_jax.data.pool import FactPool
from me_jax.data.request import EditRequest

SUBJECTS = ('distinct', 'any')


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FactFile:
  path: str
  load: Callable[..., FactPool]
  hub: sources.HubFile | sources.HubTable | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactSet:
  """Facts drawn for one run.

  Attributes:
    requests: In the order in which they are to be written.
    case_ids: Of `requests`.
    sha256: Hex digest of the canonical JSON of `requests`.
    counts: Those of the pool, and `dropped_repeated_subject` or
      `dropped_repeated_question`, `available` and `drawn`.
  """

  requests: tuple[EditRequest, ...]
  case_ids: tuple[str, ...]
  sha256: str
  counts: dict[str, int]


def load_facts(
  name: str, data: sources.DataSources, target: str = 'alt'
) -> FactPool:
  """The usable facts of a data set, in the order of its file.

  Args:
    name: One of `fact_names()`.
    data: Where to look for the file; 'sample' needs none.
    target: 'alt' writes the counterfactual answer, 'true' the first true one.

  Raises:
    ValueError: Unknown name or target, or a malformed file.
    FileNotFoundError: The file is nowhere.
  """
  if name == 'sample':
    return sample.load_sample(target=target)
  if name not in _FILES:
    raise ValueError(
      f'Unknown facts {name!r}; expected one of {", ".join(fact_names())}.'
    )
  entry = _FILES[name]
  path = data.find(entry.path, entry.hub)
  return entry.load(path, name=name, target=target)


def fact_names() -> tuple[str, ...]:
  """The names that `load_facts` knows."""
  return ('sample', *_FILES)


def draw(
  requests: Sequence[EditRequest],
  n: int,
  *,
  seed: int,
  subjects: str = 'distinct',
) -> FactSet:
  """`n` requests in random order; a smaller `n` gives the head of a larger.

  Args:
    requests: From `load_facts`, whose counts are carried over, or any others.
    n: How many.
    seed: Of the order.
    subjects: 'distinct' keeps the first request about each subject only:
      later edits of a subject overwrite earlier ones. 'any' keeps the first of
      each subject and prompt, for two would ask for different answers to one
      question; those that 'distinct' keeps come first, in the same order.

  Raises:
    ValueError: Fewer than `n` are available, or an argument is not valid.
  """
  if subjects not in SUBJECTS:
    raise ValueError(f'subjects must be one of {SUBJECTS}, got {subjects!r}.')
  if n < 1:
    raise ValueError(f'n must be at least 1, got {n}.')
  pool = requests if isinstance(requests, FactPool) else FactPool(requests)
  random = np.random.default_rng(seed)
  distinct = _first_of_each(pool, lambda r: r.subject)
  eligible = _shuffled(distinct, random)
  dropped = 'dropped_repeated_subject'
  questions = _first_of_each(pool, lambda r: (r.subject, r.prompt))
  if subjects == 'any':
    there = {r.subject: r for r in distinct}
    more = [r for r in questions if r is not there[r.subject]]
    eligible += _shuffled(more, random)
    dropped = 'dropped_repeated_question'
  if n > len(eligible):
    counts = ', '.join(f'{name} {count}' for name, count in pool.counts.items())
    raise ValueError(
      f'Asked for {n} facts, but {len(eligible)} are available with '
      f'subjects={subjects!r} ({len(pool)} before; {counts}). Ask for fewer'
      + (
        ", or use subjects='any'."
        if subjects == 'distinct' and n <= len(questions)
        else '.'
      )
    )
  drawn = tuple(eligible[:n])
  content = files.canonical_json([r.to_json() for r in drawn])
  return FactSet(
    requests=drawn,
    case_ids=tuple(r.case_id for r in drawn),
    sha256=hashlib.sha256(content.encode()).hexdigest(),
    counts={
      **pool.counts,
      dropped: len(pool) - len(eligible),
      'available': len(eligible),
      'drawn': n,
    },
  )


def _first_of_each(
  requests: Iterable[EditRequest], key: Callable[[EditRequest], Any]
) -> list[EditRequest]:
  first: dict[Any, EditRequest] = {}
  for request in requests:
    first.setdefault(key(request), request)
  return list(first.values())


def _shuffled(
  requests: Sequence[EditRequest], random: np.random.Generator
) -> list[EditRequest]:
  return [requests[i] for i in random.permutation(len(requests))]


def _json_list(rows: Iterable[Mapping[str, Any]]) -> str:
  return json.dumps([dict(row) for row in rows], ensure_ascii=False)


_FILES: Mapping[str, _FactFile] = {
  'zsre': _FactFile(
    path='zsre/zsre_mend_eval_portability_gpt4.json', load=zsre.load_eval
  ),
  'zsre_extra': _FactFile(
    path='zsre/zsre_eval_extra.json', load=zsre.load_eval
  ),
  'zsre_knowedit': _FactFile(
    path='zsre/ZsRE-test-all.json',
    load=zsre.load_knowedit,
    hub=sources.HubFile(
      repo='zjunlp/KnowEdit', filename='benchmark/ZsRE/ZsRE-test-all.json'
    ),
  ),
  'zsre_train': _FactFile(path='zsre/zsre_train.json', load=zsre.load_train),
  'counterfact': _FactFile(
    path='counterfact/counterfact-edit.json', load=counterfact.load_easyedit
  ),
  'counterfact_train': _FactFile(
    path='counterfact/counterfact-train.json', load=counterfact.load_easyedit
  ),
  'counterfact_val': _FactFile(
    path='counterfact/counterfact-val.json', load=counterfact.load_easyedit
  ),
  'counterfact_rome': _FactFile(
    path='counterfact/counterfact_portability_gpt4.json',
    load=counterfact.load_rome,
  ),
  # All 21,919 records of the original release, in ROME's format.
  'counterfact_full': _FactFile(
    path='counterfact/counterfact.json',
    load=counterfact.load_rome,
    hub=sources.HubTable(
      repo='azhx/counterfact', split='train+test', to_text=_json_list
    ),
  ),
}
