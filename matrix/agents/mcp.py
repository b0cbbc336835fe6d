"""Servers that speak the Model Context Protocol (MCP) as sources of tools."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from matrix.agents.functions import CallError, as_text
from matrix.agents.mcp_session import START_S, Connection
from matrix.errors import ConfigError, Problem, ToolError, did_you_mean
from matrix.spec.agents import McpTools

if TYPE_CHECKING:
    from mcp import Client, MCPError
    from mcp.types import CallToolResult, ContentBlock, Tool

_PAUSE_S = 0.5
_PAGES = 100

# Servers word it as they like, and give it codes that they give other errors as well.
_SESSION_LOST = re.compile(r"session (has been |was )?(terminated|not found|expired)|session id", re.IGNORECASE)


def check_server(name: str, spec: McpTools) -> list[Problem]:
    """What can be said before the run: packages, addresses, environment variables."""
    key = f"agents.tools.{name}"
    problems = [
        Problem(key, None, f"is an MCP server, and {package} is not installed", "pip install 'matrix-llm[agents]'")
        for package in ("mcp", "jsonschema")
        if importlib.util.find_spec(package) is None
    ]
    if spec.url and urlsplit(spec.url).scheme not in ("http", "https"):
        problems.append(Problem(f"{key}.url", spec.url, "is no http address", "http://HOST:PORT/mcp"))
    if spec.url and spec.env:
        hint = f"{key}.headers_env, or start it with {key}.command"
        problems.append(Problem(f"{key}.env", None, "a server at an address gets no environment", hint))
    if spec.command and spec.headers_env:
        problems.append(Problem(f"{key}.headers_env", None, "a command gets no headers", f"{key}.env"))
    wanted = {f"{key}.env.{one}": value for one, value in spec.env.items() if value.startswith("$")}
    wanted |= {f"{key}.headers_env.{one}": variable for one, variable in spec.headers_env.items()}
    problems += [
        Problem(where, value, "this environment variable is not set", f"export {value.removeprefix('$')}=...")
        for where, value in wanted.items()
        if not os.environ.get(value.removeprefix("$"))
    ]
    return problems


class McpTool:
    """One tool of a server.

    Attributes:
        name: What a model calls it.
        spec: The tool as OpenAI defines one.
    """

    def __init__(self, server: McpServer, tool: Tool) -> None:
        from jsonschema.validators import validator_for
        from referencing import Registry

        self._server = server
        self._tool = tool.name
        # MCP allows dots and slashes in names, OpenAI's API doesn't.
        self.name = re.sub(r"[^\w-]", "_", tool.name, flags=re.ASCII)[:64]
        schema = {"type": "object", **tool.input_schema}
        # An empty registry: without one, jsonschema would fetch what a server's schema points to.
        self._validator = validator_for(schema)(schema, registry=Registry())
        self.spec: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "description": tool.description or "", "parameters": schema},
        }

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """Check the arguments by the server's schema, and have it do the call.

        Raises:
            CallError: The arguments don't fit, the tool failed, or the server didn't answer.
        """
        from jsonschema.exceptions import best_match

        if (error := best_match(self._validator.iter_errors(dict(arguments)))) is not None:
            where = ".".join(map(str, error.absolute_path))
            raise CallError(f"arguments of {self.name}: {f'{where}: ' if where else ''}{error.message}")
        return await self._server.call(self._tool, dict(arguments))


class McpServer:
    """A server's session, which all rows of a peer share. Belongs to one event loop.

    A server that goes away is started again, or connected to again, by the next call. A call whose connection broke is
    sent once more, so a tool with an effect may have it twice.

    Args:
        name: Its name in `agents.tools`.
        spec: How it is started or reached.

    Attributes:
        tools: Its tools, by the names that models have for them; once it is open.
    """

    def __init__(self, name: str, spec: McpTools) -> None:
        self.tools: dict[str, McpTool] = {}
        self._key = f"agents.tools.{name}"
        self._name = name
        self._spec = spec
        self._connection: Connection | None = None
        self._old: set[Connection] = set()

    async def open(self) -> None:
        """Start the server and ask for its tools.

        Raises:
            ToolError: It isn't there.
            ConfigError: It lacks a tool of `only`.
        """
        tools = await self._tools((await self._connected()).client)
        wanted = self._spec.only or list(tools)
        if missing := [one for one in wanted if one not in tools]:
            raise ConfigError(
                [
                    Problem(f"{self._key}.only", one, "the server has no such tool", did_you_mean(one, list(tools)))
                    for one in missing
                ]
            )
        named: dict[str, McpTool] = {}
        for each in wanted:
            tool = McpTool(self, tools[each])
            if tool.name in named:
                message = f"two of its tools are {tool.name} to a model, which knows neither dots nor slashes"
                raise ConfigError([Problem(self._key, None, message, f"take one of them: {self._key}.only=[...]")])
            named[tool.name] = tool
        self.tools = named

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """Call a tool; gives what it answers as text.

        Raises:
            CallError: It failed, or there was no answer in time.
        """
        from mcp import MCPError

        try:
            async with asyncio.timeout(self._spec.timeout_s):
                connection = await self._reached()
                try:
                    result = await connection.client.call_tool(tool, arguments)
                except MCPError as error:
                    if not self._is_lost(connection, error):
                        raise
                    self._drop(connection)
                    result = await (await self._reached()).client.call_tool(tool, arguments)
        except TimeoutError as error:
            raise CallError(f"{tool} gave no answer within {self._spec.timeout_s:g} s") from error
        except (ToolError, MCPError, RuntimeError) as error:
            raise CallError(f"{tool}: {error}") from error
        text = result_text(result)
        if result.is_error:
            raise CallError(text)
        return text

    async def close(self) -> None:
        """End the session, and the server if it is ours."""
        if self._connection is not None:
            self._drop(self._connection)
        await asyncio.gather(*(one.close() for one in self._old))

    async def _tools(self, client: Client) -> dict[str, Tool]:
        from mcp import MCPError

        found: dict[str, Tool] = {}
        cursor: str | None = None
        try:
            async with asyncio.timeout(max(START_S, self._spec.timeout_s)):
                for _ in range(_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    found.update({tool.name: tool for tool in page.tools})
                    cursor = page.next_cursor
                    if cursor is None:
                        break
        except (MCPError, TimeoutError) as error:
            raise ToolError(f"{self._key}: the server doesn't list its tools: {error or 'no answer'}") from error
        return found

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_over:
            if self._connection is not None:
                self._drop(self._connection)
            self._connection = Connection(self._name, self._spec)
        connection = self._connection
        await connection.started.wait()
        if connection.failure:
            raise ToolError(f"{self._key}: {connection.failure}")
        return connection

    async def _reached(self) -> Connection:
        """A connection; where somebody else sees to the server, it may be back in a moment."""
        while True:
            try:
                return await self._connected()
            except ToolError:
                if self._spec.command:
                    raise
            await asyncio.sleep(_PAUSE_S)

    def _is_lost(self, connection: Connection, error: MCPError) -> bool:
        from mcp.types import CONNECTION_CLOSED

        # A server may use the same code for errors of its own.
        if self._spec.command:
            return error.code == CONNECTION_CLOSED and error.message == "Connection closed"
        return connection.is_over or error.code == CONNECTION_CLOSED or bool(_SESSION_LOST.search(error.message))

    def _drop(self, connection: Connection) -> None:
        """Have a connection end by itself; the next call makes a new one."""
        connection.stop.set()
        self._old.add(connection)
        connection.task.add_done_callback(lambda _: self._old.discard(connection))
        if self._connection is connection:
            self._connection = None


def result_text(result: CallToolResult) -> str:
    """What a model gets to read: texts as they are, the rest by what it is."""
    if not result.content and result.structured_content is not None:
        return as_text(result.structured_content)
    return "\n".join(_part_text(part) for part in result.content)


def _part_text(part: ContentBlock) -> str:
    from mcp.types import AudioContent, EmbeddedResource, ImageContent, ResourceLink, TextContent, TextResourceContents

    match part:
        case TextContent():
            return part.text
        case ImageContent() | AudioContent():
            return f"[{part.type} {part.mime_type}, {len(part.data) * 3 // 4} bytes, not shown]"
        case ResourceLink():
            return f"[resource {part.name}: {part.uri}]"
        case EmbeddedResource(resource=TextResourceContents() as resource):
            return resource.text
        case EmbeddedResource():
            return f"[resource {part.resource.uri}, {part.resource.mime_type or 'of no known type'}, not shown]"
