"""ZsRE in its three file formats: a question, a counterfactual answer, a
paraphrase, and an unrelated question for locality."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from me_jax.data import pool, sources
from me_jax.data.request import LocalityPrompt


def load_eval(path: pathlib.Path, *, name: str, target: str) -> pool.FactPool:
  """The facts of a `zsre_mend_eval` file (MEND, EasyEdit).

  Args:
    path: JSON list with src, alt, answers, rephrase, loc, loc_ans, subject.
    name: Prefix of the case ids; the index in the file follows.
    target: 'alt' or 'true'.

  Raises:
    ValueError: The file or a record is malformed; names it.
  """
  return pool.collect(
    (
      _mend_record(r, f'{name}-{i}', f'{path}: record {i}')
      for i, r in enumerate(sources.read_json(path))
    ),
    target=target,
  )


def load_train(path: pathlib.Path, *, name: str, target: str) -> pool.FactPool:
  """The facts of `zsre_train.json`: as `load_eval`, but where `alt` is null
  the first true answer is the target, and some records have more paraphrases.

  Raises:
    ValueError: The file or a record is malformed; names it.
  """
  return pool.collect(
    (
      _train_record(r, f'{name}-{i}', f'{path}: record {i}')
      for i, r in enumerate(sources.read_json(path))
    ),
    target=target,
  )


def load_knowedit(
  path: pathlib.Path, *, name: str, target: str
) -> pool.FactPool:
  """The facts of KnowEdit's `ZsRE-test-all.json`.

  Its locality prompts are about the subject itself (other relations).

  Raises:
    ValueError: The file or a record is malformed; names it.
  """
  return pool.collect(
    (
      _knowedit_record(r, f'{name}-{i}', f'{path}: record {i}')
      for i, r in enumerate(sources.read_json(path))
    ),
    target=target,
  )


def _mend_record(
  raw: Mapping[str, Any], case_id: str, where: str
) -> pool.Record:
  question = sources.field(raw, 'src', str, where=where)
  subject = sources.field(raw, 'subject', str, where=where)
  return pool.Record(
    case_id=case_id,
    subject=subject,
    question=question,
    slot=pool.find_subject(question, subject),
    alt=sources.field(raw, 'alt', str, where=where),
    true_answers=sources.strings(raw, 'answers', where=where),
    rephrase_prompts=(sources.field(raw, 'rephrase', str, where=where),),
    locality_prompts=(
      LocalityPrompt(
        prompt=sources.field(raw, 'loc', str, where=where),
        answer=sources.field(raw, 'loc_ans', str, where=where),
      ),
    ),
  )


def _train_record(
  raw: Mapping[str, Any], case_id: str, where: str
) -> pool.Record:
  answers = sources.strings(raw, 'answers', where=where)
  alt = sources.field(raw, 'alt', (str, type(None)), where=where)
  if alt is None:
    alt = answers[0] if answers else ''
  record = _mend_record({**raw, 'alt': alt}, case_id, where)
  if 'rephrases' not in raw:
    return record
  more = sources.strings(raw, 'rephrases', where=where)
  # The first paraphrase is one of these too: keep each once.
  rephrases = dict.fromkeys([*record.rephrase_prompts, *more])
  return dataclasses.replace(record, rephrase_prompts=tuple(rephrases))


def _knowedit_record(
  raw: Mapping[str, Any], case_id: str, where: str
) -> pool.Record:
  question = sources.field(raw, 'prompt', str, where=where)
  subject = sources.field(raw, 'subject', str, where=where)
  locality = sources.field(raw, 'locality', dict, where=where)
  return pool.Record(
    case_id=case_id,
    subject=subject,
    question=question,
    slot=pool.find_subject(question, subject),
    alt=sources.field(raw, 'target_new', str, where=where),
    true_answers=sources.strings(raw, 'ground_truth', where=where),
    rephrase_prompts=(sources.field(raw, 'rephrase_prompt', str, where=where),),
    locality_prompts=tuple(
      _knowedit_locality(item, where)
      for group in locality
      for item in sources.field(locality, group, list, where=where)
    ),
  )


def _knowedit_locality(item: Any, where: str) -> LocalityPrompt:
  where = f'{where}: locality'
  if not isinstance(item, dict):
    raise ValueError(f'{where}: expected an object, found {item!r:.60}.')
  answers = sources.strings(item, 'ground_truth', where=where)
  if not answers:
    raise ValueError(f'{where}: ground_truth is empty.')
  return LocalityPrompt(
    prompt=sources.field(item, 'prompt', str, where=where), answer=answers[0]
  )
