"""The clients that `data_plane.py` compares with, one a process: `python benchmarks/clients.py NAME URL COUNT ...`.

Each sends the same requests and reads the answers as objects, nothing more: no journal, no retries.

- `aiohttp`: one session, orjson, what a Python client can do with a well-kept library;
- `aiohttp-tuned`: the same with the garbage collector set as matrix sets it: harder to reach than common practice;
- `wire`: bytes that were made beforehand on plain sockets, what this machine and the server can do;
- `openai`: one `AsyncOpenAI` for all requests;
- `client`: matrix's own `ModelClient`, without the pipeline around it, for the open loop.

`--rate` sends on a clock, without waiting for answers (open loop); otherwise `--in-flight` requests are out at any
time. A first round of requests opens the connections and isn't counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import repeat
from typing import Any, cast

import orjson
import uvloop
from measure import Stopwatch

Send = Callable[[], Awaitable[object]]

BODY: dict[str, Any] = {
    "model": "mock",
    "messages": [{"role": "user", "content": "What is 17 + 25? Answer with the number."}],
    "temperature": 0.0,
    "max_tokens": 16,
    "seed": 0,
}


@asynccontextmanager
async def plain_aiohttp(url: str) -> AsyncIterator[Send]:
    """One session without a limit, as it should be used."""
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/json"},
    ) as session:

        async def send() -> object:
            async with session.post(f"{url}/chat/completions", data=orjson.dumps(BODY)) as answer:
                return orjson.loads(await answer.read())["choices"][0]["message"]["content"]

        yield send


@asynccontextmanager
async def openai_sdk(url: str) -> AsyncIterator[Send]:
    """The SDK as it comes; its own limit is 1,000 connections."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def send() -> object:
            answer = await client.chat.completions.create(**BODY)
            return answer.choices[0].message.content

        yield send


@asynccontextmanager
async def matrix_client(url: str) -> AsyncIterator[Send]:
    """Ours, below the pipeline."""
    import sys
    from pathlib import Path

    # This checkout, also where another one is installed.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from matrix.client.endpoints import Endpoints
    from matrix.client.http import ModelClient

    async with ModelClient(Endpoints([url]), api_key=None, timeout_s=600, max_attempts=6) as client:

        async def send() -> object:
            return (await client.chat(BODY)).text[0]

        yield send


class _Socket(asyncio.Protocol):
    """One keep-alive connection, one request at a time. All answers are as long as the first one was."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[bytes]
        self._got = b""
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._size:
            head, _, _ = self._got.partition(b"\r\n\r\n")
            self._size = len(head) + 4 + int(head.rpartition(b"Content-Length: ")[2].split(b"\r\n")[0])
        if len(self._got) >= self._size:
            self._got, got = b"", self._got
            self._answer.set_result(got)

    def request(self, raw: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future has the whole answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._answer


@asynccontextmanager
async def wire(url: str) -> AsyncIterator[Send]:
    """No HTTP library at all."""
    host, port = url.split("/")[2].split(":")
    body = orjson.dumps(BODY)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    raw = head.encode() + body
    idle: list[_Socket] = []
    loop = asyncio.get_running_loop()

    async def send() -> object:
        connection = idle.pop() if idle else (await loop.create_connection(_Socket, host, int(port)))[1]
        answer = await connection.request(raw)
        idle.append(connection)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return answer

    yield send


CLIENTS: dict[str, Callable[[str], AbstractAsyncContextManager[Send]]] = {
    "aiohttp": plain_aiohttp,
    "aiohttp-tuned": plain_aiohttp,
    "client": matrix_client,
    "openai": openai_sdk,
    "wire": wire,
}


async def closed_loop(send: Send, count: int, in_flight: int) -> list[float]:
    """Send `count` requests, `in_flight` at a time; returns their latencies in seconds."""
    latencies: list[float] = []

    async def worker(turns: Iterator[None]) -> None:
        for _ in turns:
            began = time.perf_counter()
            await send()
            latencies.append(time.perf_counter() - began)

    turns = repeat(None, count)
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker(turns))
    return latencies


async def open_loop(send: Send, count: int, rate: float) -> list[float]:
    """Send `count` requests, `rate` a second; returns their latencies in seconds.

    They count from when a request was due, so that a client that falls behind can't hide it.
    """
    latencies: list[float] = []

    async def one(due: float) -> None:
        await send()
        latencies.append(time.perf_counter() - due)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due = began + number / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(one(due))
    return latencies


async def measure(options: argparse.Namespace) -> None:
    """Warm up, then measure."""
    async with CLIENTS[options.client](options.url) as send:
        if options.client in ("aiohttp-tuned", "client"):
            # What matrix does for its own run (matrix/run/workload.py).
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
        await closed_loop(send, options.in_flight, options.in_flight)
        watch = Stopwatch()
        if options.rate:
            watch.report(await open_loop(send, options.count, options.rate))
        else:
            watch.report(await closed_loop(send, options.count, options.in_flight))


def main() -> None:
    """Run one client and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("url", help="up to and including /v1")
    parser.add_argument("count", type=int, help="requests")
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, as an open loop")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
