"""A session with an MCP server, by its command or its address."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TextIO

from matrix.spec.agents import McpTools

if TYPE_CHECKING:
    from mcp import Client

logger = logging.getLogger(__name__)

START_S = 60
"""A server gets this long to start, or the time of a call where that is more."""

_LAST_BYTES = 2000

# What `matrix.cluster.reaper` knows the processes of a local cluster by. MCP's client hands no other variable on.
_MARK = "MATRIX_CLUSTER_MARK"


class Connection:
    """A session in a task of its own, since what opened it has to close it.

    Attributes:
        started: Set once it can be used, or has failed.
        failure: Why it can't be used; empty if it can.
        stop: Set it to have it end.
        client: To call the server with.
        task: Runs until it has ended.
    """

    client: Client

    def __init__(self, name: str, spec: McpTools) -> None:
        self.started = asyncio.Event()
        self.failure = ""
        self.stop = asyncio.Event()
        self._spec = spec
        self._last = bytearray()
        self.task = asyncio.create_task(self._run(), name=f"mcp {name}")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to."""
        return self.stop.is_set() or self.task.done()

    async def close(self) -> None:
        """End it, and wait for that."""
        self.stop.set()
        if not self.started.is_set():
            self.task.cancel()
        await asyncio.wait({self.task})

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(max(START_S, self._spec.timeout_s)) as limit, self._opened() as self.client:
                limit.reschedule(None)
                self.started.set()
                await self.stop.wait()
        except Exception as error:
            self.failure = self._why(error)
            logger.debug("%s has ended", self.task.get_name(), exc_info=True)
        finally:
            self.stop.set()
            self.failure = self.failure or "the session has ended"
            self.started.set()

    def _opened(self) -> AbstractAsyncContextManager[Client]:
        return _by_command(self._spec, self._last) if self._spec.command else _by_address(self._spec)

    def _why(self, error: BaseException) -> str:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        what = f"the command {self._spec.command[0]}" if self._spec.command else f"the server at {self._spec.url}"
        said = "no answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        last = self._last.decode(errors="replace").strip()
        return f"{what} doesn't serve: {said}" + (f"; its last lines:\n{last}" if last else "")


@asynccontextmanager
async def _by_command(spec: McpTools, last: bytearray) -> AsyncIterator[Client]:
    from mcp import Client, StdioServerParameters, stdio_client

    ours = {_MARK: os.environ[_MARK]} if _MARK in os.environ else {}
    env = {name: os.environ[value[1:]] if value.startswith("$") else value for name, value in spec.env.items()}
    server = StdioServerParameters(command=spec.command[0], args=spec.command[1:], env={**ours, **env})
    async with _kept(last) as errors, Client(stdio_client(server, errlog=errors)) as client:
        yield client


@asynccontextmanager
async def _by_address(spec: McpTools) -> AsyncIterator[Client]:
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    headers = {name: os.environ[variable] for name, variable in spec.headers_env.items()}
    # Calls have deadlines of their own. One that ran into a limit here would end the session, and all other calls.
    timeout = httpx2.Timeout(30, read=2 * spec.timeout_s + 300, pool=None)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, limits=limits) as http,
        Client(streamable_http_client(spec.url or "", http_client=http, max_sse_event_size=64 << 20)) as client,
    ):
        yield client


@asynccontextmanager
async def _kept(last: bytearray) -> AsyncIterator[TextIO]:
    """A file whose last lines are kept, for the standard error of a server."""
    ours, theirs = os.pipe()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0))

    async def read() -> None:
        while data := await reader.read(65536):
            last.extend(data)
            del last[:-_LAST_BYTES]

    reading = asyncio.create_task(read())
    try:
        with os.fdopen(theirs, "w") as errors:
            yield errors
    finally:
        # The last words of a server that has ended are on their way; one of its children may keep the pipe open.
        await asyncio.wait({reading}, timeout=1)
        reading.cancel()
        pipe.close()
