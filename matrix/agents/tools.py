"""What a role may use in its turn, bound to the role and to the row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matrix.client.containers import Ran
    from matrix.data.rows import Response, Score
    from matrix.sandbox.execution import Executed


class Container(Protocol):
    """A container that a row has for itself, from its first use to the row's end; made anew if it is lost.

    Each call is a step. What is in the making at a crash is done again.
    """

    async def execute(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Ran:
        """Run a shell command and wait for its end.

        Args:
            command: For bash. Each has a shell of its own: a `cd` is forgotten with it.
            cwd: Folder; None: the tool's.
            env: On top of the tool's.
            timeout_s: Seconds that it may take; None: the tool's.

        Raises:
            RequestError: There is no container, or it can't be told what came of the command.
            DataError: The tool's `setup` fails.
        """

    async def read_file(self, path: str) -> bytes:
        """Content of a file; raises as `execute` does."""

    async def write_file(self, path: str, content: str) -> None:
        """Write a file, and make the folders above it; raises as `execute` does."""


class Tools(Protocol):
    """Each call is a step of the row that is done once: its result is journalled, and read back at a replay.

    So a role has to make the same calls in the same order, given the same state.

    Attributes:
        role: The role's name.
    """

    role: str

    @property
    def specs(self) -> list[dict[str, Any]]:
        """The role's tools as OpenAI defines them, for a request's `tools`."""

    def prompt(self, **extra: Any) -> str:
        """The role's prompt, rendered over the row's columns and `extra`; empty if it has none.

        Raises:
            DataError: The template asks for what is neither.
        """

    async def llm(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Response:
        """Ask the role's app for a chat completion.

        Args:
            messages: OpenAI chat messages.
            fields: Of the request, on top of the sampling of role and run. `tools` are the role's own by default.

        Raises:
            RequestError: It failed for good, after its retries; a role that doesn't catch it ends its row.
        """

    async def call(self, name: str, arguments: Mapping[str, Any] | str) -> str:
        """Call one of the role's tools; `arguments` as a dict, or as the JSON text that a model gave.

        Returns:
            What the tool gave, as text; `error: ...` for arguments that its schema forbids, and for its own errors.
        """

    async def answer(self, tool_call: Mapping[str, Any]) -> dict[str, Any]:
        """Do what an OpenAI tool call asks for; gives the message with the result, for the next request."""

    async def sandbox(self, name: str, code: str, **fields: Any) -> Executed:
        """Run a program in a sandbox.

        Args:
            name: One of the role's tools, of kind `sandbox`.
            code: The program.
            fields: More of the execution, such as `stdin`, `files`, `test` (docs/sandbox.md).

        Raises:
            RequestError: It wasn't run. A program that fails is no error.
        """

    def container(self, name: str) -> Container:
        """The row's container; roles that have the tool share it.

        Args:
            name: One of the role's tools, of kind `container`.
        """

    async def once(self, name: str, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Call any function with an effect that mustn't be repeated.

        Args:
            name: What the history calls it.
            function: Gives something that JSON can hold.
            arguments: For the function.
        """

    async def score(self, label: str, text: str) -> Score:
        """Have a text judged by one of `agents.scorers`.

        Raises:
            DataError: The row has no reference for it.
        """
