"""A local server that stands in for a vendor: it answers from a list and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.base import Gateway


@dataclass
class Reply:
    """An answer: JSON, or server-sent events if `events` are given.

    `hangs`: (the rest of) it never comes. From then on the loop's clock is an hour ahead, so that the gateway's time-out
    is over once it has asked, and no sooner, however slow the machine is.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: Iterable[str] = ()
    hangs: bool = False


@dataclass
class Asked:
    """A request as it came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Json


class Vendor:
    """Gives one reply after another, the last one again and again.

    Args:
        replies: What it answers.
        before: Called before the first answer.

    Attributes:
        url: Where it listens, without a path.
        asked: The requests so far.
    """

    def __init__(self, *replies: Reply, before: Callable[[], object] = lambda: None) -> None:
        self.replies = list(replies)
        self.before = before
        self.asked: list[Asked] = []
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Vendor]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.path, dict(request.query), headers, await request.json()))
        if len(self.asked) == 1:
            self.before()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if not reply.events:
            if reply.hangs:
                await _an_hour_later()
            return web.json_response(reply.body, status=reply.status, headers=reply.headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **reply.headers})
        await response.prepare(request)
        for event in reply.events:
            await response.write(event.encode())
        if reply.hangs:
            await _an_hour_later()
        return response


async def _an_hour_later() -> None:
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + 3600  # type: ignore[method-assign]
    await asyncio.Event().wait()


def data(*events: Any) -> list[str]:
    """Server-sent events without a name, as OpenAI and Meta send them."""
    return [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]


def named(*events: Json) -> list[str]:
    """Server-sent events with their type as name, as Anthropic sends them."""
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


@asynccontextmanager
async def started(gateway: Gateway) -> AsyncIterator[Gateway]:
    await gateway.start()
    yield gateway
    await gateway.close()


async def chunks_of(gateway: Gateway, body: Json) -> list[Json]:
    return [chunk async for chunk in gateway.stream_chat(body)]


async def refused(awaitable: Any) -> ApiError:
    """The error that a call ends with."""
    try:
        await awaitable
    except ApiError as error:
        return error
    raise AssertionError("it was answered")


def together(chunks: list[Json]) -> Json:
    """The message that the chunks of one choice make, with its finish reason, its ids and its usage."""
    message: Json = {"tool_calls": []}
    for chunk in chunks:
        message["id"] = chunk["id"]
        message["usage"] = chunk.get("usage")
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("role", "content", "reasoning_content"):
                if delta.get(name):
                    message[name] = message.get(name, "") + delta[name]
            message["thinking_blocks"] = message.get("thinking_blocks", []) + delta.get("thinking_blocks", [])
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({**call, "function": {**call["function"]}})
                else:
                    message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return message
