"""The public copy of MATH, as the files that it stands for."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from me_jax.data.sources import HubTable

_REPO = 'EleutherAI/hendrycks_math'
_COLUMNS = ('problem', 'level', 'type', 'solution')


def test(subject: str) -> HubTable:
  """`math/test/{subject}.jsonl`: the test problems of one of the subjects."""
  return HubTable(repo=_REPO, config=subject, split='test', to_text=_jsonl)


def fewshot_pool() -> HubTable:
  """`math/fewshot_pool.jsonl`: the first training problems, of algebra."""
  return HubTable(
    repo=_REPO, config='algebra', split='train[:4]', to_text=_jsonl
  )


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
  records = [{name: row[name] for name in _COLUMNS} for row in rows]
  return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records)
