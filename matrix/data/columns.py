"""Values of a row by key path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def find(columns: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a key path: `text`, or `request.messages` for what is nested.

    A column whose own name has dots in it is found by that name, before anything nested.

    Returns:
        The value; `default` if a part of the path isn't there.
    """
    if path in columns:
        return columns[path]
    value: Any = columns
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def names(columns: Mapping[str, Any]) -> str:
    """The columns that a row has, for messages."""
    return ", ".join(map(str, columns)) or "none"
