"""The verdict on a program that a language model wrote.

What is defended. Each program runs in an interpreter of its own behind the
walls of `walls.py`, and is ended with all it started at its deadline. It
passes only if it gave the right value for every operand of every assert and
then, as the last thing, a random token that is made and sent when all values
have been found right. The expected values, the comparison and the token before
that moment exist only in the parent (`checks.py`), and values cross as plain
data (`plain.py`): leaving early, patched built-ins, objects that claim to equal
anything, and searching frames, memory, descriptors or files for the answer
lead to no pass. A program that knows the expected values (they were in its
prompt) and returns them passes, as it does anywhere.

What is not. The program shares its interpreter with the code that evaluates the
operands, so an assert whose claim is not a comparison with a constant, such as
`assert f(1)` or `assert f(1) == g(1)`, trusts the program's side for what it
says. A file wall other than namespaces or bubblewrap does not hide that a
file exists. Nothing here stands against an error in the kernel.

How verdicts differ from running code and asserts in one text. An object of the
program's own class equals no plain value, whatever its `__eq__` says; the
message of an assert is not evaluated; a value of more than 128 KiB, written
out, equals nothing; only the standard library can be imported; memory is
limited; and the order of sets of strings is the same in each run.
"""

import dataclasses
import secrets
from collections.abc import Sequence

from me_jax.sandbox import checks
from me_jax.sandbox.inside import plain
from me_jax.sandbox.plan import Limits, Plan
from me_jax.sandbox.process import Child
from me_jax.sandbox.walls import Walls, put_up

_DETAIL = 200
# A value far larger than what it is compared with is not equal to it; small
# enough that no choice of values keeps the parent busy.
_VALUE_BYTES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What became of a program.

  Attributes:
    category: 'pass', 'wrong_answer' (AssertionError), 'timeout' or 'failed'
      (any other exception, crashes and forbidden things included).
    detail: The last line of the error, at most 200 characters; '' for a pass.
  """

  category: str
  detail: str


class Sandbox:
  """Runs hostile programs, each on its own. Safe to share between threads."""

  def __init__(
    self,
    *,
    timeout_s: float = 2.0,
    memory_bytes: int = 1 << 30,
    isolation: str = 'auto',
  ):
    """Tries the walls, which takes about half a second.

    Args:
      timeout_s: Wall-clock seconds for code and asserts together.
      memory_bytes: Address space of one program.
      isolation: 'auto' for the strongest kind of wall that works here, or one
        of `plan.KINDS`.

    Raises:
      RuntimeError: A basic wall is missing; names it.
      ValueError: A setting is out of its range.
    """
    self._limits = Limits(timeout_s=timeout_s, memory_bytes=memory_bytes)
    self._plan: Plan
    self.walls: Walls
    self._plan, self.walls = put_up(self._limits, isolation)

  def run(self, program: str, tests: Sequence[str]) -> Outcome:
    """The outcome of a program followed by its tests.

    Args:
      program: Python source, run in fresh globals, its streams muted.
      tests: Assert statements, evaluated in those globals in order.

    Raises:
      RuntimeError: The walls that stood at the start cannot be put up now.
    """
    try:
      claims = checks.parse(tests)
    except (SyntaxError, ValueError) as e:
      return _outcome('failed', f'{type(e).__name__}: {e} (in the tests)')
    with Child(self._plan, self._limits, program, self.walls.layers) as child:
      try:
        return _judge(child, claims)
      except _Raised as e:
        return _outcome('wrong_answer' if e.is_assertion else 'failed', str(e))
      except TimeoutError:
        return _outcome(
          'timeout', f'not done after {self._limits.timeout_s:g} s'
        )
      except (EOFError, OSError):
        return _outcome('failed', child.ending())
      except ValueError as e:
        return _outcome('failed', f'wrote to the pipe of the sandbox: {e}')


class _Raised(Exception):
  """The program raised this."""

  def __init__(self, is_assertion: bool, message: str):
    super().__init__(message)
    self.is_assertion = is_assertion


def _judge(child: Child, claims: Sequence[checks.Check]) -> Outcome:
  _reply(child, 'defined', 0)
  for check in claims:
    if check.claim is None:
      child.send(('run', check.source))
      _reply(child, 'done', 0)
      continue
    limit = _VALUE_BYTES + 8 * len(check.source)

    def ask(expression: str, limit: int = limit) -> object:
      child.send(('value', expression, limit))
      return plain.decode(*_reply(child, 'value', 1, limit))

    if not _holds(check, ask):
      return _outcome('wrong_answer', f'AssertionError: {check.source}')
  token = secrets.token_hex(16)
  child.send(('token', token))
  if _reply(child, 'token', 1) != [token]:
    raise ValueError('another token')
  return Outcome(category='pass', detail='')


def _holds(check: checks.Check, ask: checks.Ask) -> bool:
  try:
    return check.holds(ask)
  except (TypeError, ArithmeticError, RecursionError) as e:
    # Of two values that cannot be compared.
    raise _Raised(False, f'{type(e).__name__}: {e}') from e


def _reply(
  child: Child, verb: str, count: int, limit: int = _VALUE_BYTES
) -> list:
  # More than the limit, for the verb and a type's name.
  found, *rest = child.receive(limit + 1000)
  if found == 'raised' and len(rest) == 2:
    raise _Raised(rest[0] is True, str(rest[1]))
  if found != verb or len(rest) != count:
    raise ValueError(f'{str(found)[:40]!r} in place of {verb!r}')
  return rest


def _outcome(category: str, detail: str) -> Outcome:
  lines = detail.strip().splitlines() or ['']
  line = ''.join(c if c.isprintable() else '?' for c in lines[-1])
  return Outcome(category=category, detail=line[:_DETAIL])
