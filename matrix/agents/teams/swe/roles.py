"""The roles: a coder who says one shell command at a time, a reviewer of its form, an executor in the row's container.

As mini-swe-agent does it (github.com/SWE-agent/mini-swe-agent): no tools but a shell, each command in a shell of its
own, the whole conversation in each request.
"""

from __future__ import annotations

import re
from typing import Any

from matrix.agents.role import Role
from matrix.agents.services import report
from matrix.agents.state import State, Turn
from matrix.agents.tools import Container, Tools
from matrix.data.rows import Entry
from matrix.errors import DataError

MARKER = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""A command whose output begins with this line hands the work in; mini-swe-agent has the same."""
SUBMITTED = "submitted"
"""The termination of a row with a patch."""
SHELL = "shell"
"""The tool, of kind container, that the executor works with."""

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(?:bash|sh|shell)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


class Coder(Role):
    """Says what it thinks, and one command.

    Args:
        system: Its system message. Its prompt is the first message of the user, what came of its commands the others.
    """

    def __init__(self, *, system: str) -> None:
        self._system = system

    async def act(self, state: State, tools: Tools) -> Turn:
        """Ask the model for the next command."""
        if not state.history:
            # Rows that end before they are handed in count, too.
            state.metrics |= {"submitted": 0.0, "commands": 0.0, "malformed": 0.0}
        opening = [{"role": "system", "content": self._system}, {"role": "user", "content": tools.prompt()}]
        response = await tools.llm([*opening, *_conversation(state.history, tools.role)])
        reasoning = response.reasoning_content[0] if response.reasoning_content else None
        return Turn(response.text[0], reasoning=reasoning)


class Reviewer(Role):
    """Lets answers with exactly one shell block through, and tells the coder about others. Its prompt gets `count`."""

    async def act(self, state: State, tools: Tools) -> Turn:
        """Look at the form of the answer before."""
        found = commands(state.last.text if state.last else "")
        if len(found) == 1:
            return Turn(data={"command": found[0]}, next="executor")
        state.metrics["malformed"] += 1
        return Turn(tools.prompt(count=len(found)), next="coder")


class Executor(Role):
    """Runs the command in the row's container, and takes the patch out of it when the work is handed in.

    Args:
        output_chars: Of a command's output that the coder gets to read; the middle of a longer one is left out.
    """

    def __init__(self, *, output_chars: int = 10_000) -> None:
        self._chars = output_chars

    async def act(self, state: State, tools: Tools) -> Turn:
        """Run it."""
        container = tools.container(SHELL)
        if "base" not in state.scratch:
            # Not the row's `base_commit`: an image may have commits of its own on top of it.
            state.scratch["base"] = (await _git(container, "git rev-parse HEAD")).strip()
        ran = await container.execute(_command(state.last))
        state.metrics["commands"] += 1
        if ran.exit_code == 0 and ran.output.lstrip().partition("\n")[0].strip() == MARKER:
            state.metrics["submitted"] = 1.0
            patch = await _patch(container, state.scratch["base"])
            return Turn("handed in", end=SUBMITTED, data={"patch": patch})
        return Turn(report(ran, self._chars), next="coder", data={"exit_code": ran.exit_code})


def commands(text: str) -> list[str]:
    """What stands in the shell blocks of an answer."""
    return [found.strip("\n") for found in _BLOCK.findall(text)]


def _conversation(history: list[Entry], coder: str) -> list[dict[str, Any]]:
    """What was said so far; a reviewer who had nothing to say isn't heard."""
    return [
        {"role": "assistant" if entry.agent == coder else "user", "content": entry.text}
        for entry in history
        if entry.agent == coder or entry.text
    ]


def _command(turn: Entry | None) -> str:
    if turn is None or not turn.data or "command" not in turn.data:
        raise DataError("the executor's turn comes after one with a command: the reviewer's")
    return str(turn.data["command"])


async def _patch(container: Container, base: str) -> str:
    """All that was changed since the begin, new files and what was committed included; not what Python compiled."""
    sources = "-- :/ ':(top,exclude,glob)**/__pycache__/**'"
    return await _git(container, f"git add -A 2>/dev/null && git diff --cached --binary {base} {sources}")


async def _git(container: Container, command: str) -> str:
    ran = await container.execute(command, env={"GIT_PAGER": "cat"})
    if ran.exit_code != 0 or ran.cut:
        raise DataError(f"{command!r} in the container: {report(ran, 500)}")
    return ran.output
