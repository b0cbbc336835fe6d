"""What a role may use in its turn, bound to the role and to the row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from matrix.data.rows import Response, Score


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
