"""The world of one conversation: databases as the task begins with them, and as tool calls changed them.

Nothing of it is kept between turns: it is made anew from the task and the conversation, whose calls are done again.
Only those that may change something are, so this takes well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matrix.agents.teams.tau2.conversation import Message, calls
from matrix.agents.teams.tau2.database import Record
from matrix.agents.teams.tau2.domain import Domain
from matrix.agents.teams.tau2.kit import Requestor, Result, ToolError
from matrix.errors import DataError

_SIDES: dict[str, Requestor] = {"agent_data": "assistant", "user_data": "user"}


class World:
    """Tools of both sides over databases of their own.

    Args:
        domain: Where they begin.
        task: A row's columns; `initial_state` may say that they begin elsewhere.

    Raises:
        DataError: The task's beginning isn't possible.
    """

    def __init__(self, domain: Domain, task: Mapping[str, Any]) -> None:
        self._kits = domain.kits()
        begin = task.get("initial_state") or {}
        for name, tables in (begin.get("initialization_data") or {}).items():
            if tables:
                self._kits[_SIDES[name]].db.merge(tables)
        for action in begin.get("initialization_actions") or ():
            try:
                self.function(action["env_type"], action["func_name"], action["arguments"])
            except ToolError as error:
                raise DataError(f"initialization action {action['func_name']}: {error}") from error

    def call(self, side: Requestor, name: str, arguments: object) -> Result:
        """Call a tool as a model of that side asks for it."""
        kit = self._kits.get(side)
        return Result(f"Error: Tool '{name}' not found.", error=True) if kit is None else kit.call(name, arguments)

    def function(self, side: Requestor, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call a tool or a function that serves tasks.

        Raises:
            ToolError: It refuses.
        """
        kit = self._kits.get(side)
        if kit is None:
            raise ToolError(f"Function '{name}' not found.")
        return kit.function(name, arguments)

    def replay(self, messages: Iterable[Message]) -> None:
        """Do the calls of a conversation again that may have changed something."""
        for side, name, arguments in calls(messages):
            kit = self._kits.get(side)
            if kit is not None and kit.is_write(name):
                kit.call(name, arguments)

    def changes(self) -> dict[Requestor, dict[str, dict[str, Record]]]:
        """What is different from the domain's databases."""
        return {side: kit.db.changes() for side, kit in self._kits.items()}
