"""A vendor's server on 127.0.0.1: gives the answers of a script in turn, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import struct
from binascii import crc32
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from matrix.serving.backend import Json


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What the server says.

    Attributes:
        pieces: Parts of the body, sent one after another; the connection breaks off before an `...`.
        delay_s: Wait before anything is said.
    """

    pieces: Sequence[Any] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0


def of_json(body: object, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer([json.dumps(body).encode()], status, {"Content-Type": "application/json", **named})


def of_sse(*chunks: Json) -> Answer:
    return Answer([f"data: {json.dumps(chunk)}\r\n\r\n".encode() for chunk in chunks])


def of_events(*messages: bytes) -> Answer:
    return Answer(messages, headers={"Content-Type": "application/vnd.amazon.eventstream"})


def event(kind: str, payload: bytes, message_type: str = "event") -> bytes:
    """A message of AWS's event stream, as botocore.eventstream reads it.

    Big endian: length of all, length of the headers, CRC-32 of these eight bytes; headers (length of the name, name, type 7
    for text, length, text); payload; CRC-32 of all before.
    """
    named = {f":{message_type}-type": kind, ":message-type": message_type, ":content-type": "application/json"}
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in named.items()
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", crc32(prelude)) + headers + payload
    return message + struct.pack("!I", crc32(message))


class Vendor:
    """The script and what was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.script: list[Answer] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.read()
        self.asked.append(Asked(request.method, request.raw_path.partition("?")[0], dict(request.query), headers, body))
        said = self.script.pop(0)
        await asyncio.sleep(said.delay_s)
        response = web.StreamResponse(status=said.status, headers=said.headers)
        await response.prepare(request)
        for piece in said.pieces:
            if piece is ...:
                assert request.transport is not None
                request.transport.abort()
                break
            await response.write(piece)
        return response


@asynccontextmanager
async def serving() -> AsyncIterator[Vendor]:
    """A server of its own."""
    vendor = Vendor()
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", vendor.answer)
    async with TestServer(app) as server:
        vendor.url = str(server.make_url("")).rstrip("/")
        yield vendor


async def collected(chunks: AsyncGenerator[Json, None] | AsyncIterator[Json]) -> list[Json]:
    return [chunk async for chunk in chunks]


def text_of(chunks: list[Json], name: str = "content") -> str:
    return "".join(c["choices"][0]["delta"].get(name) or "" for c in chunks if c["choices"])
