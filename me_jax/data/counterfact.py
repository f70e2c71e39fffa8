"""CounterFact in its two file formats: a statement to be completed, with a
false object to write."""

import pathlib
from collections.abc import Mapping
from typing import Any

from me_jax.data import pool, sources
from me_jax.data.request import LocalityPrompt


def load_easyedit(
  path: pathlib.Path, *, name: str, target: str
) -> pool.FactPool:
  """The facts of a file whose `prompt` is a full sentence (EasyEdit).

  Args:
    path: A JSON list, or `.jsonl` with one record a line.
    name: Prefix of the case ids; the record's own `case_id` follows.
    target: 'alt' or 'true'.

  Raises:
    ValueError: The file or a record is malformed; names it.
  """
  path = pathlib.Path(path)
  lines = path.suffix == '.jsonl'
  records = sources.read_jsonl(path) if lines else sources.read_json(path)
  return pool.collect(
    (
      _easyedit_record(r, name, f'{path}: record {i}')
      for i, r in enumerate(records)
    ),
    target=target,
  )


def load_rome(path: pathlib.Path, *, name: str, target: str) -> pool.FactPool:
  """The facts of a file whose `prompt` has a slot `{}` (ROME).

  Args:
    path: JSON list with requested_rewrite, paraphrase_prompts and
      neighborhood_prompts, whose answer is `target_true`.
    name: Prefix of the case ids; the record's own `case_id` follows.
    target: 'alt' or 'true'.

  Raises:
    ValueError: The file or a record is malformed; names it.
  """
  return pool.collect(
    (
      _rome_record(r, name, f'{path}: record {i}')
      for i, r in enumerate(sources.read_json(path))
    ),
    target=target,
  )


def _easyedit_record(
  raw: Mapping[str, Any], name: str, where: str
) -> pool.Record:
  case = sources.field(raw, 'case_id', (int, str), where=where)
  question = sources.field(raw, 'prompt', str, where=where)
  subject = sources.field(raw, 'subject', str, where=where)
  return pool.Record(
    case_id=f'{name}-{case}',
    subject=subject,
    question=question,
    slot=pool.find_subject(question, subject),
    alt=sources.field(raw, 'target_new', str, where=where),
    true_answers=(sources.field(raw, 'ground_truth', str, where=where),),
    rephrase_prompts=(sources.field(raw, 'rephrase_prompt', str, where=where),),
    locality_prompts=(
      LocalityPrompt(
        prompt=sources.field(raw, 'locality_prompt', str, where=where),
        answer=sources.field(raw, 'locality_ground_truth', str, where=where),
      ),
    ),
  )


def _rome_record(raw: Mapping[str, Any], name: str, where: str) -> pool.Record:
  case = sources.field(raw, 'case_id', (int, str), where=where)
  rewrite = sources.field(raw, 'requested_rewrite', dict, where=where)
  prompt = sources.field(rewrite, 'prompt', str, where=where)
  subject = sources.field(rewrite, 'subject', str, where=where).strip()
  new = sources.field(rewrite, 'target_new', dict, where=where)
  true = sources.field(rewrite, 'target_true', dict, where=where)
  answer = sources.field(true, 'str', str, where=where)
  if prompt.count('{}') != 1:
    raise ValueError(
      f'{where}: prompt must hold exactly one {{}} in the place of the '
      f'subject, found {prompt!r}.'
    )
  slot = prompt.index('{}')
  return pool.Record(
    case_id=f'{name}-{case}',
    subject=subject,
    question=prompt[:slot] + subject + prompt[slot + 2 :],
    slot=slot,
    alt=sources.field(new, 'str', str, where=where),
    true_answers=(answer,),
    rephrase_prompts=sources.strings(raw, 'paraphrase_prompts', where=where),
    locality_prompts=tuple(
      LocalityPrompt(prompt=p, answer=answer)
      for p in sources.strings(raw, 'neighborhood_prompts', where=where)
    ),
  )
