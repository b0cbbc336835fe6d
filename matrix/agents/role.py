"""What a role is: a class with `act`, or an async function with its signature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from matrix.agents.state import State, Turn
from matrix.agents.tools import Tools
from matrix.data.rows import Response

Said: TypeAlias = Turn | Response | str | None
"""What a role may give back; None adds nothing to the history."""

Act: TypeAlias = Callable[[State, Tools], Awaitable[Said]]
"""One turn."""


class Role(ABC):
    """An agent. Keyword arguments of `__init__` are the role's `options`, checked by their annotations.

    One instance in each peer serves all rows at once: nothing about a row belongs into it.
    """

    @abstractmethod
    async def act(self, state: State, tools: Tools) -> Said:
        """Take a turn.

        Args:
            state: The row's workflow so far.
            tools: What the role may use, bound to the row.
        """

    async def release(self, state: State, held: dict[str, Any]) -> None:  # noqa: B027 - most hold nothing
        """Give back what the row holds: called once when the row is over, however that came, in whichever peer.

        Args:
            state: The row's workflow at its end; almost empty if its peers died of it.
            held: What its calls of `tools.once` gave, by name, in whichever peer they were made.
        """
