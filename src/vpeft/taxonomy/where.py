"""Filters such as `mergeable and memory < 0.5`: a small part of Python's expressions, read and never executed.

Allowed are the names of the properties, strings, numbers, True and False, `and`, `or`, `not`, parentheses, and the
comparisons `== != < <= > >= in`, also in chains. `"attn" in places` looks for a part of any member.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from vpeft.errors import VpeftError, nearest

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.In: ("in", lambda left, right: _within(left, right)),
    ast.NotIn: ("not in", lambda left, right: not _within(left, right)),
}
_LONGEST = 500  # deeply nested expressions exhaust the stack


class BadFilter(VpeftError):
    """A filter that cannot be read, or compares what cannot be compared."""


class Filter:
    """A filter over records that all have the fields of `example`.

    Args:
        text: the expression.
        example: one record; its fields are the names that may stand in `text`, its values show their types.

    Raises:
        BadFilter: it says which part and what may stand there.
    """

    def __init__(self, text: str, example: Mapping[str, Any]) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise BadFilter(f"The filter has {len(text):,} characters; {_LONGEST} are the most.")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            where = getattr(error, "offset", None)
            at = f" at character {where}" if where else ""
            raise BadFilter(
                f'The filter {text!r} cannot be read{at}. Write it like "mergeable and memory < 0.5".'
            ) from None
        self._check(self._tree, example)

    def __call__(self, record: Mapping[str, Any]) -> bool:
        """Whether the record passes."""
        return bool(self._value(self._tree, record))

    def _check(self, node: ast.expr, example: Mapping[str, Any]) -> None:
        """Visit everything, also what a short-circuit would skip."""
        match node:
            case ast.Name():
                if node.id not in example:
                    raise BadFilter(f"The filter knows no {node.id!r}. {nearest(node.id, example)}")
            case ast.Constant(value=bool() | int() | float() | str()):
                pass
            case ast.BoolOp():
                for part in node.values:
                    self._check(part, example)
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                self._check(node.operand, example)
                if isinstance(node.op, ast.USub):
                    self._value(node, example)
            case ast.Compare():
                for part in (node.left, *node.comparators):
                    self._check(part, example)
                sides = [self._value(part, example) for part in (node.left, *node.comparators)]
                for left, right, op in zip(sides, sides[1:], node.ops, strict=False):
                    self._compare(left, op, right)
            case _:
                raise BadFilter(
                    f"The filter {self.text!r} has {ast.unparse(node)!r}, which is no part of it: names, strings,"
                    f" numbers, and, or, not, and the comparisons {' '.join(sign for sign, _ in _COMPARE.values())}"
                    f" are. The names: {', '.join(example)}."
                )

    def _value(self, node: ast.expr, record: Mapping[str, Any]) -> Any:
        match node:
            case ast.Name():
                return record[node.id]
            case ast.Constant():
                return node.value
            case ast.BoolOp(op=ast.And()):
                return all(bool(self._value(part, record)) for part in node.values)
            case ast.BoolOp():
                return any(bool(self._value(part, record)) for part in node.values)
            case ast.UnaryOp(op=ast.Not()):
                return not self._value(node.operand, record)
            case ast.UnaryOp():
                number = self._value(node.operand, record)
                if not isinstance(number, (int, float)):
                    raise BadFilter(f"In the filter {self.text!r} only a number can follow '-'.")
                return -number
            case ast.Compare():
                left = self._value(node.left, record)
                for op, other in zip(node.ops, node.comparators, strict=True):
                    right = self._value(other, record)
                    if not self._compare(left, op, right):
                        return False
                    left = right
                return True
        raise AssertionError(ast.dump(node))  # _check has refused everything else

    def _compare(self, left: Any, op: ast.cmpop, right: Any) -> bool:
        if type(op) not in _COMPARE:
            raise BadFilter(f"The filter {self.text!r} compares by `is`; write `==`.")
        sign, compare = _COMPARE[type(op)]
        if sign.endswith("in"):
            fits = isinstance(left, str) and isinstance(right, (str, tuple))
        elif isinstance(left, (int, float)) and isinstance(right, (int, float)):
            fits = True
        else:
            fits = isinstance(left, str) and isinstance(right, str)
        if not fits:
            raise BadFilter(
                f"The filter {self.text!r} cannot tell whether {_shown(left)} {sign} {_shown(right)}:"
                f" the one is {_kind(left)}, the other {_kind(right)}."
            )
        return bool(compare(left, right))


def _within(left: str, right: str | tuple[str, ...]) -> bool:
    return left in right if isinstance(right, str) else any(left in member for member in right)


def _shown(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, tuple) else repr(value)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, (int, float)):
        return "a number"
    return "text" if isinstance(value, str) else "several texts"
