"""The worked examples that come before a problem of MATH.

The Minerva four (Lewkowycz et al. 2022, appendix D) are derived from their
published text by the rule that gives OpenCompass's; and a substitute for
whoever has not got them.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from me_jax.data.sources import DataSources, field, read_json, read_jsonl
from me_jax.evals import hub_tables_math, math_answers
from me_jax.evals.prompts import Turn, bot, human

SHOTS = 4
MINERVA_FILE = 'math/minerva_fewshot.json'
POOL_FILE = 'math/fewshot_pool.jsonl'
# First 16 hex digits of the SHA-256 of each turn, braces doubled.
MINERVA_HASHES = (
  '29ebfccf1353a741',
  'e5cf49352c352c9e',
  '73741d620be7500d',
  '4b924bb8f2111f60',
  '7721ea297fc488a2',
  '3d212c49fd984a89',
  'd5c7126cfc27eee3',
  'b3fbc2cdbf8de0f0',
)
_CLOSING = '\nFinal Answer: The final answer is $'
_GOODBYE = '$. I hope it is correct.'


def minerva(sources: DataSources, *, doubled: bool) -> list[Turn]:
  """The eight turns of the Minerva exemplars.

  Args:
    sources: Where `MINERVA_FILE` is.
    doubled: Every brace twice, as OpenCompass shows them to the model by an
      accident of its templates.

  Raises:
    FileNotFoundError: The file is nowhere; names the task that needs none.
    ValueError: The turns are not OpenCompass's; names those that differ.
  """
  try:
    path = sources.find(MINERVA_FILE)
  except FileNotFoundError as e:
    raise FileNotFoundError(
      f'{e} It holds the four exemplars of Lewkowycz et al. 2022, appendix D, '
      'as a list of objects with problem and solution. Without it, ask for '
      'the task math_own_exemplars.'
    ) from e
  records = read_json(path)
  if len(records) != SHOTS:
    raise ValueError(
      f'{path}: expected the four Minerva exemplars, found {len(records)}.'
    )
  turns = []
  for index, record in enumerate(records):
    turns += _minerva_round(record, index, f'{path}: record {index}')
  twice = [Turn(turn.role, _with_doubled_braces(turn.text)) for turn in turns]
  wrong = [
    f'{turn.role} of exemplar {i // 2 + 1}'
    for i, (turn, expected) in enumerate(
      zip(twice, MINERVA_HASHES, strict=True)
    )
    if hashlib.sha256(turn.text.encode()).hexdigest()[:16] != expected
  ]
  if wrong:
    raise ValueError(
      f'{path}: not the text from which the exemplars of OpenCompass derive; '
      f'the hash differs for {", ".join(wrong)}. Restore the published text, '
      'or ask for the task math_own_exemplars.'
    )
  return twice if doubled else turns


def own(sources: DataSources) -> list[Turn]:
  """The first four problems of the pool as exemplars; braces as they are.

  Raises:
    FileNotFoundError: The pool is nowhere.
    ValueError: It is too small, or a solution has no final answer.
  """
  path = sources.find(POOL_FILE, hub_tables_math.fewshot_pool())
  records = read_jsonl(path)[:SHOTS]
  if len(records) < SHOTS:
    raise ValueError(
      f'{path}: expected at least {SHOTS} problems for the exemplars, found '
      f'{len(records)}.'
    )
  turns = []
  for index, record in enumerate(records):
    where = f'{path}: record {index}'
    problem = field(record, 'problem', str, where=where)
    solution = field(record, 'solution', str, where=where)
    answer = math_answers.gold(solution)
    if answer is None:
      raise ValueError(
        f'{where}: an exemplar must box its answer, found {solution[-60:]!r}.'
      )
    turns += _round(problem, solution, answer)
  return turns


def question(problem: str) -> str:
  """What an exemplar asks; its problem is on one line."""
  return f'Problem:\n{_on_one_line(problem)}\nSolution:'


def _round(problem: str, solution: str, answer: str) -> list[Turn]:
  """One exemplar: the solution, on one line, too, and then the answer."""
  return [
    human(question(problem)),
    bot(f'{_on_one_line(solution)}{_CLOSING}{answer}{_GOODBYE}\n'),
  ]


def _minerva_round(
  record: Mapping[str, Any], index: int, where: str
) -> list[Turn]:
  problem = field(record, 'problem', str, where=where)
  text = field(record, 'solution', str, where=where)
  solution, closing, answer = text.partition(_CLOSING)
  if not closing or not answer.endswith(_GOODBYE):
    raise ValueError(
      f'{where}: the solution must end with a line {_CLOSING[1:]}...{_GOODBYE} '
      f'found {text[-60:]!r}.'
    )
  if index == 3:
    problem = problem.replace(
      'the system of equations', 'the system of equations:'
    )
  return _round(problem, solution, answer.removesuffix(_GOODBYE))


def _on_one_line(text: str) -> str:
  return ' '.join(text.split())


def _with_doubled_braces(text: str) -> str:
  return text.replace('{', '{{').replace('}', '}}')
