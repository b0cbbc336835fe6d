"""A front door in the test's own loop, and a server that streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from matrix.serving.door.server import Door
from matrix.serving.listening import Server, listen

KEY = "the-key"
AUTH = {"Authorization": f"Bearer {KEY}"}
CONTROL = {"Authorization": "Bearer the-control-key"}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def route(name: str, *urls: str, model: str = "", **more: Any) -> dict[str, Any]:
    """An app, as it is told to the door."""
    return {"name": name, "model": model or f"model-{name}", "urls": list(urls), **more}


class Client:
    """Talks to a door over HTTP, with the key."""

    def __init__(self, url: str, door: Door, session: aiohttp.ClientSession) -> None:
        self.url, self.door, self.session = url, door, session

    async def tell(self, *apps: dict[str, Any], nodes: Any = (), version: int = 1) -> dict[str, Any]:
        """Tell the door which apps there are; gives what it answers."""
        told = {"apps": list(apps), "nodes": list(nodes), "version": version}
        async with self.session.put(f"{self.url}/control/routes", json=told, headers=CONTROL) as reply:
            assert reply.status == 200, await reply.text()
            found: dict[str, Any] = await reply.json()
            return found

    async def chat(self, model: str = "a", path: str = "/v1/chat/completions", **headers: str) -> Answer:
        """Ask for a chat completion."""
        body = {"model": model, **CHAT}
        async with self.session.post(self.url + path, json=body, headers=AUTH | headers) as reply:
            return Answer(reply.status, reply.headers, await reply.json())

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Get something as JSON, or text."""
        async with self.session.get(self.url + path, headers=AUTH if headers is None else headers) as reply:
            is_json = reply.content_type == "application/json"
            return Answer(reply.status, reply.headers, await (reply.json() if is_json else reply.text()))


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Any, content: Any) -> None:
        self.status, self.headers, self.content = status, headers, content

    @property
    def replica(self) -> str:
        """Which replica answered."""
        return str(self.headers["x-matrix-replica"])

    @property
    def message(self) -> str:
        """Of an error."""
        return str(self.content["error"]["message"])


@asynccontextmanager
async def open_door() -> AsyncIterator[Client]:
    """A door that knows no app yet."""
    door = Door(KEY, "the-control-key")
    listener = listen("127.0.0.1", 0)
    server = Server(door, drain_s=2, keep_alive_s=75)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Client(f"http://127.0.0.1:{listener.getsockname()[1]}", door, session)
    finally:
        server.should_exit = True
        await serving
        await door.close()


class StreamingServer:
    """Streams `data: N` events of Server-Sent Events, one whenever the test says so.

    Attributes:
        gone: Set when a client has gone away in the middle.
    """

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.started = asyncio.Event()
        self._says: asyncio.Queue[bytes | None] = asyncio.Queue()

    def say(self, data: bytes | None) -> None:
        """Send something; None ends the answer, `b""` breaks it off."""
        self._says.put_nowait(data)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Gives the base URL."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._stream)
        app.router.add_post("/v1/size", self._size)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.started.set()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            while (data := await self._says.get()) is not None:
                if not response.prepared:
                    await response.prepare(request)
                if not data:
                    assert request.transport is not None
                    request.transport.abort()
                await response.write(data)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        return response

    async def _size(self, request: web.Request) -> web.Response:
        return web.json_response({"bytes": len(await request.read())})
