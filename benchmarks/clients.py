"""The clients that send the load of a benchmark, one a process: `python benchmarks/clients.py NAME URL COUNT ...`.

Each sends the same requests and reads the answers as objects, nothing more: no journal, no retries.

- `aiohttp`: one session, orjson, what a Python client can do with a well-kept library;
- `aiohttp-tuned`: the same with the garbage collector set as matrix sets it: harder to reach than common practice;
- `wire`: bytes that were made beforehand on plain sockets, what this machine and the server can do;
- `openai`: one `AsyncOpenAI` for all requests;
- `client`: matrix's own `ModelClient`, without the pipeline around it; by gRPC where the URL is `grpc://HOST:PORT`.

`--rate` sends on a clock, without waiting for answers (open loop); otherwise `--in-flight` requests are out at any
time, `--seconds` long instead of COUNT requests. A first round of requests opens the connections and isn't counted.
The API key, where the server asks for one, is in BENCHMARK_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import repeat, takewhile
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


@dataclass(frozen=True)
class Target:
    """What is asked.

    Attributes:
        url: Up to and including `/v1`, or `grpc://HOST:PORT`.
        body: The request, the same each time.
        key: API key; None: the server asks for none.
    """

    url: str
    body: dict[str, Any]
    key: str | None

    @property
    def headers(self) -> dict[str, str]:
        """Those that each request has."""
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return {"Content-Type": "application/json", **key}


@asynccontextmanager
async def plain_aiohttp(target: Target) -> AsyncIterator[Send]:
    """One session without a limit, as it should be used."""
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=target.headers,
    ) as session:

        async def send() -> object:
            async with session.post(f"{target.url}/chat/completions", data=orjson.dumps(target.body)) as answer:
                answer.raise_for_status()
                return orjson.loads(await answer.read())["choices"][0]["message"]["content"]

        yield send


@asynccontextmanager
async def openai_sdk(target: Target) -> AsyncIterator[Send]:
    """The SDK as it comes; its own limit is 1,000 connections."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=target.url, api_key=target.key or "none", max_retries=0) as client:

        async def send() -> object:
            answer = await client.chat.completions.create(**target.body)
            return answer.choices[0].message.content

        yield send


@asynccontextmanager
async def matrix_client(target: Target) -> AsyncIterator[Send]:
    """Ours, below the pipeline."""
    import sys
    from pathlib import Path

    # This checkout, also where another one is installed.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from matrix.client.endpoints import Endpoints
    from matrix.client.http import ModelClient

    async with ModelClient(Endpoints([target.url]), api_key=target.key, timeout_s=600, max_attempts=6) as client:

        async def send() -> object:
            return (await client.chat(target.body)).text[0]

        yield send


class _Socket(asyncio.Protocol):
    """One keep-alive connection, one request at a time; the answer has to say how long it is."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[bytes]
        self._got = b""
        self._size = 0
        """Of the answer, once that is known."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._size:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            length = self._got[:end].lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._size = end + 4 + int(length)
        if len(self._got) >= self._size:
            self._got, self._size, got = b"", 0, self._got
            self._answer.set_result(got)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def request(self, raw: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future has the whole answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._answer


@asynccontextmanager
async def wire(target: Target) -> AsyncIterator[Send]:
    """No HTTP library at all."""
    _, _, place, *path = target.url.split("/")
    host, port = place.split(":")
    body = orjson.dumps(target.body)
    headers = {"Host": place, **target.headers, "Content-Length": str(len(body))}
    lines = [f"POST /{'/'.join(path)}/chat/completions HTTP/1.1", *(f"{key}: {headers[key]}" for key in headers)]
    raw = "\r\n".join([*lines, "", ""]).encode() + body
    idle: list[_Socket] = []
    loop = asyncio.get_running_loop()

    async def send() -> object:
        connection = idle.pop() if idle else (await loop.create_connection(_Socket, host, int(port)))[1]
        answer = await connection.request(raw)
        idle.append(connection)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return answer

    yield send


CLIENTS: dict[str, Callable[[Target], AbstractAsyncContextManager[Send]]] = {
    "aiohttp": plain_aiohttp,
    "aiohttp-tuned": plain_aiohttp,
    "client": matrix_client,
    "openai": openai_sdk,
    "wire": wire,
}


async def closed_loop(send: Send, count: int, in_flight: int, seconds: float = 0.0) -> list[float]:
    """Send `count` requests, `in_flight` at a time; returns their latencies in seconds.

    Args:
        send: Sends one.
        count: How many.
        in_flight: At a time.
        seconds: As many as are begun in this time, instead of `count`.
    """
    latencies: list[float] = []

    async def worker(turns: Iterator[None]) -> None:
        for _ in turns:
            began = time.perf_counter()
            await send()
            latencies.append(time.perf_counter() - began)

    ends_at = time.perf_counter() + seconds
    turns = takewhile(lambda _: time.perf_counter() < ends_at, repeat(None)) if seconds else repeat(None, count)
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
    body = {**BODY, "model": options.model}
    if options.prompt_bytes:
        body["messages"] = [{"role": "user", "content": "word " * (options.prompt_bytes // 5)}]
    target = Target(options.url, body, os.environ.get("BENCHMARK_API_KEY"))
    async with CLIENTS[options.client](target) as send:
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
            watch.report(await closed_loop(send, options.count, options.in_flight, options.seconds))


def main() -> None:
    """Run one client and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("url", help="up to and including /v1, or grpc://HOST:PORT for client")
    parser.add_argument("count", type=int, help="requests")
    parser.add_argument("--model", default=BODY["model"])
    parser.add_argument("--prompt-bytes", type=int, default=0, help="0: a short question")
    parser.add_argument("--seconds", type=float, default=0.0, help="send so long, instead of COUNT requests")
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, as an open loop")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
