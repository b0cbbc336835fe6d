"""Sums that a model writes: numbers, + - * / and parentheses, without Python's eval."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from matrix.agents.teams.tau2.kit import ToolError

# Deep nesting would exhaust Python's stack, and a tower of powers its patience.
_LONGEST = 300
_MOST_BITS = 4096

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculated(expression: str) -> str:
    """The value, rounded to two places.

    Raises:
        ToolError: It has none.
    """
    if not all(character in "0123456789+-*/(). " for character in expression):
        raise ToolError("Invalid characters in expression")
    if len(expression) > _LONGEST:
        raise ToolError(f"The expression is longer than {_LONGEST} characters")
    try:
        return str(round(float(_value(ast.parse(expression.strip(), mode="eval").body)), 2))
    except (SyntaxError, ArithmeticError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ToolError(f"Invalid expression: {error}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand))
    if not isinstance(node, ast.BinOp):
        raise TypeError("not a sum")
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Pow) and isinstance(left, int) and abs(right) * left.bit_length() > _MOST_BITS:
        raise OverflowError("too large a power")
    return _BINARY[type(node.op)](left, right)
