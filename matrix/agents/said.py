"""What a role gave, or raised, as the runtime goes on with it."""

from __future__ import annotations

import traceback
from typing import Any

from matrix.agents.mark import RoleHangsError
from matrix.agents.state import Turn
from matrix.data.rows import Response, RowError
from matrix.errors import DataError, MatrixError, RequestError
from matrix.pipelines.prompt import shortened

_SILENT = Turn()
_RESERVED = frozenset({"", "error", "max_turns", "max_tokens", "max_seconds", "max_cost"})
"""Terminations that aren't a role's to give."""


class RoleRaisedError(MatrixError):
    """A role raised an exception in a process of its own."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class RoleDiedError(MatrixError):
    """The process of a role died of a turn, each time that it was tried."""


class RoleBrokenError(MatrixError):
    """A process of a role can't be started: the run can't go on."""


def to_turn(said: Any, role: str) -> Turn:
    """What a role gave, as a turn.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(said, str):
        return Turn(said)
    if said is None:
        return _SILENT
    if isinstance(said, Turn):
        if not isinstance(said.text, str):
            raise TypeError(f"{role} gave a turn whose text is {shortened(repr(said.text))}")
        if said.end is not None and (not isinstance(said.end, str) or said.end in _RESERVED):
            raise ValueError(f"{role} ends the row with {said.end!r}, which isn't a text, or stands for something else")
        return said
    if isinstance(said, Response):
        calls, reasoning = said.tool_calls, said.reasoning_content
        return Turn(
            said.text[0] if said.text else "",
            tool_calls=(calls[0] or None) if calls else None,
            reasoning=reasoning[0] if reasoning else None,
        )
    raise TypeError(f"{role} gave a {type(said).__name__}, not a Turn, a Response, a text or None")


def row_error(role: str, error: BaseException) -> RowError:
    """What a role raised, as a row's error."""
    if isinstance(error, RoleRaisedError):
        return error.error
    if isinstance(error, RequestError):
        return RowError(error.kind, f"{role}: {error}", error.attempts)
    if isinstance(error, DataError):
        return RowError("data", f"{role}: {error}", 0)
    kind = "hangs" if isinstance(error, RoleHangsError) else type(error).__name__
    if isinstance(error, RoleDiedError):
        return RowError("died", f"{role}: {error}", 1)
    message = f"{role}: {error}" if str(error) else f"{role}: {type(error).__doc__ or kind}".splitlines()[0]
    return RowError(kind, message, 1, "".join(traceback.format_exception(error))[-8000:])


def too_late(role: str, timeout_s: float) -> RowError:
    """The error of a row of which a turn took too long."""
    return RowError("timeout", f"{role} took more than {timeout_s:g} s for a turn (agents.roles.{role}.timeout_s)")
