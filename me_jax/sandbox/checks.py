"""What the tests of a program claim, judged outside the program.

A test is an `assert`. Its operands are values of the program, which come from
the child as plain data; what they are compared with and the comparison itself
stay here. So a program passes `assert f(2) == 4` by saying 4, and in no other
way: the 4 never enters its process.
"""

import ast
import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

# The value of an expression of the program.
Ask = Callable[[str], Any]

_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
  ast.Eq: operator.eq,
  ast.NotEq: operator.ne,
  ast.Lt: operator.lt,
  ast.LtE: operator.le,
  ast.Gt: operator.gt,
  ast.GtE: operator.ge,
  ast.In: lambda item, container: item in container,
  ast.NotIn: lambda item, container: item not in container,
  ast.Is: operator.is_,
  ast.IsNot: operator.is_not,
}
_CONSTRUCTORS = {
  'set': set,
  'frozenset': frozenset,
  'list': list,
  'tuple': tuple,
  'dict': dict,
}
_SINGLETONS = (type(None), bool)


@dataclasses.dataclass(frozen=True)
class Check:
  """One statement of the tests.

  Attributes:
    source: Its text.
    claim: What an `assert` says; None for any other statement, which is part
      of the program.
  """

  source: str
  claim: ast.expr | None

  def holds(self, ask: Ask) -> bool:
    """Whether the claim is true.

    `and`, `or`, `not` and comparisons are taken apart and judged here, in
    Python's order. Of anything else the program's side says whether it is
    true.

    Raises:
      Exception: Whatever `ask` or the comparison of two values raises.
    """
    return self._holds(self.claim, ask)

  def _holds(self, node: ast.expr, ask: Ask) -> bool:
    if isinstance(node, ast.BoolOp):
      together = all if isinstance(node.op, ast.And) else any
      return together(self._holds(v, ask) for v in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
      return not self._holds(node.operand, ask)
    if isinstance(node, ast.Compare) and _comparable(node):
      left = self._value(node.left, ask)
      for op, right_node in zip(node.ops, node.comparators, strict=True):
        right = self._value(right_node, ask)
        if not _COMPARISONS[type(op)](left, right):
          return False
        left = right
      return True
    return bool(self._value(node, ask))

  def _value(self, node: ast.expr, ask: Ask) -> Any:
    try:
      return _constant(node)
    except (ValueError, TypeError):
      segment = ast.get_source_segment(self.source, node)
      # Brackets: it may go over several lines, the last one a comment.
      return ask(f'({segment}\n)')


def parse(tests: Sequence[str]) -> list[Check]:
  """The statements of the tests in order. Raises SyntaxError or ValueError."""
  checks = []
  for test in tests:
    for node in ast.parse(test).body:
      claim = node.test if isinstance(node, ast.Assert) else None
      source = test if claim else ast.get_source_segment(test, node)
      checks.append(Check(source, claim))
  return checks


def _constant(node: ast.expr) -> Any:
  # What it is without the program; ValueError or TypeError if that is unknown.
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    if node.func.id in _CONSTRUCTORS and not node.keywords:
      make = _CONSTRUCTORS[node.func.id]
      return make(*[ast.literal_eval(a) for a in node.args])
  return ast.literal_eval(node)


def _comparable(node: ast.Compare) -> bool:
  # Identity does not survive the way here, except that of None, True, False.
  return all(
    not isinstance(op, ast.Is | ast.IsNot)
    or (isinstance(right, ast.Constant) and type(right.value) in _SINGLETONS)
    for op, right in zip(node.ops, node.comparators, strict=True)
  )
