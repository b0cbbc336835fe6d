"""The tools of a team: Python functions and MCP servers, called alike."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from matrix.agents.functions import CallError, FunctionTool
from matrix.agents.mcp import McpServer, check_server
from matrix.errors import ConfigError, Problem
from matrix.spec.agents import ContainerTool, McpTools, SandboxTool
from matrix.spec.agents import Tool as ToolSpec

logger = logging.getLogger(__name__)


class Tool(Protocol):
    """One tool.

    Attributes:
        spec: As OpenAI defines one.
    """

    spec: dict[str, Any]

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """Call it.

        Raises:
            CallError: It came to nothing.
        """


class Toolbox:
    """All tools of a team. Belongs to one event loop.

    Args:
        tools: `agents.tools`.
        resolve: Gives what the `use` of a function names; it gets the config key as well, for its errors.

    Raises:
        ConfigError: With everything that is wrong with them and can be seen without starting a server.
    """

    def __init__(self, tools: Mapping[str, ToolSpec], resolve: Callable[[str, str], object]) -> None:
        problems: list[Problem] = []
        self._functions: dict[str, FunctionTool] = {}
        self._servers: dict[str, McpServer] = {}
        self._tables: dict[tuple[str, ...], dict[str, Tool]] = {}
        for name, spec in tools.items():
            if isinstance(spec, McpTools):
                problems += check_server(name, spec)
                self._servers[name] = McpServer(name, spec)
                continue
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
                message = "is no name for a tool: a model knows it by letters, digits, _ and -, 64 at most"
                problems.append(Problem(f"agents.tools.{name}", None, message))
            try:
                if isinstance(spec, SandboxTool | ContainerTool):
                    self._functions[name] = FunctionTool(name, _ASKED[spec.kind], spec.kind)
                    continue
                found = resolve(spec.use, f"agents.tools.{name}.use")
                self._functions[name] = FunctionTool(name, found, spec.use)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    async def open(self) -> None:
        """Start the servers, or connect to them.

        Raises:
            ToolError: One isn't there.
            ConfigError: One lacks a tool that the config wants.
        """
        opened = await asyncio.gather(*(server.open() for server in self._servers.values()), return_exceptions=True)
        for outcome in opened:
            if outcome is not None:
                await self.close()
                raise outcome
        self._tables.clear()

    async def close(self) -> None:
        """End the servers that were started, and the sessions with the others."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    def specs(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Tools as OpenAI defines them, for a request's `tools`; the toolbox has to be open.

        Args:
            names: Those of `agents.tools`; a server's name stands for all its tools.

        Raises:
            ConfigError: A model would know two of them by the same name.
        """
        return [tool.spec for tool in self._table(names).values()]

    async def call(self, name: str, arguments: Mapping[str, Any] | str, names: Sequence[str] | None = None) -> str:
        """Call a tool.

        Args:
            name: What the model calls it.
            arguments: As a dict, or as the JSON text that the model wrote.
            names: As for `specs`: those that the caller may use; None: all.

        Returns:
            What the tool gave, as text, or `error: ...`, in words that a model can do something about.
        """
        tools = self._table(names)
        if name not in tools:
            return f"error: there is no tool {name}; there are: {', '.join(tools) or 'none'}"
        try:
            return await tools[name].call(_parsed(name, arguments))
        except CallError as error:
            return f"error: {error}"
        except Exception as error:
            logger.debug("the tool %s failed", name, exc_info=True)
            return f"error: {type(error).__name__}: {error}"

    async def checked(self, name: str, arguments: Mapping[str, Any] | str) -> str:
        """What a tool that is an app is to run.

        Raises:
            CallError: The arguments don't fit.
        """
        return await self._functions[name].call(_parsed(name, arguments))

    def _table(self, names: Sequence[str] | None) -> dict[str, Tool]:
        """The tools by the names that a model has for them."""
        key = tuple([*self._functions, *self._servers] if names is None else names)
        if key in self._tables:
            return self._tables[key]
        table: dict[str, Tool] = {}
        owners: dict[str, str] = {}
        for entry in key:
            of_server = entry in self._servers
            tools: Mapping[str, Tool] = self._servers[entry].tools if of_server else {entry: self._functions[entry]}
            for name, tool in tools.items():
                if name in table:
                    message = f"{owners[name]} and {entry} both have a tool {name}"
                    raise ConfigError(
                        [Problem("agents.tools", None, message, "leave one out: `only` of an MCP server")]
                    )
                table[name], owners[name] = tool, entry
        self._tables[key] = table
        return table


async def _program(code: str) -> str:
    """Run a program and read what it prints. Nothing stays for the next one.

    Args:
        code: The whole program.
    """
    return code


async def _command(command: str) -> str:
    """Run a shell command and read its output. Files stay, a `cd` or `export` doesn't.

    Args:
        command: For bash, without a terminal.
    """
    return command


# What a model may ask of a tool that is an app: signature and docstring become its schema.
_ASKED = {"sandbox": _program, "container": _command}


def _parsed(name: str, arguments: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(arguments, str):
        try:
            # Models send nothing at all to a tool without arguments.
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise CallError(f"arguments of {name} are no JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise CallError(f"arguments of {name} are no JSON object, but a {type(arguments).__name__}")
    return arguments
