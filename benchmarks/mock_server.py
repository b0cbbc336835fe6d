"""A model server that costs next to nothing: `python benchmarks/mock_server.py [--latency 0.2]` prints its URL.

It answers `POST /v1/chat/completions` and `/v1/completions` over HTTP/1.1 with a fixed body of 300 bytes, after a fixed
time, and doesn't read what it is asked. No framework and no parser: a request is its head, searched for its length,
and that many bytes. So what is measured against it is the client.

`--busy 0.01` and `--broken 0.01` refuse that share of the requests at once, with 429 or 503, drawn from a fixed seed.
`GET /stats` tells `requests`, `refused`, `in_flight`, `max_in_flight` (since the last time it was asked) and `cpu_s` of
the worker that answers. Anything else is a 404. One after another on each connection, as HTTP/1.1 has it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import re
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import uvloop

BODY_BYTES = 300

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_BACKLOG = 8192
_PR_SET_PDEATHSIG = 1


class MockServer:
    """What all connections of a worker share.

    Args:
        latency_s: Seconds from a whole request to its answer; within about 1 ms, however many are in flight.
        busy: Share of the requests that get 429.
        broken: Share that gets 503.
        retry_after_s: The `Retry-After` of refusals; None: without.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        *,
        busy: float = 0.0,
        broken: float = 0.0,
        retry_after_s: float | None = None,
    ) -> None:
        self.requests = self.refused = self.max_in_flight = 0
        self._latency_s = latency_s
        self._busy, self._broken = busy, broken
        self._chance = random.Random(0)
        after = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
        error = {"error": {"message": "injected", "type": "Injected", "param": None, "code": None}}
        self._too_many = _reply("429 Too Many Requests", json.dumps(error).encode(), after)
        self._unavailable = _reply("503 Service Unavailable", json.dumps(error).encode(), after)
        # The latency is the same for all, so that answers fall due in the order of the requests: one timer is enough.
        self._due: deque[tuple[float, asyncio.Transport, bytes]] = deque()

    def answer(self, transport: asyncio.Transport, reply: bytes) -> None:
        """Answer one request for a completion, now or when its time has come."""
        self.requests += 1
        if self._busy or self._broken:
            drawn = self._chance.random()
            if drawn < self._busy + self._broken:
                self.refused += 1
                transport.write(self._too_many if drawn < self._busy else self._unavailable)
                return
        if not self._latency_s:
            transport.write(reply)
            return
        if not self._due:
            self._wake_in(self._latency_s)
        self._due.append((time.monotonic() + self._latency_s, transport, reply))
        self.max_in_flight = max(self.max_in_flight, len(self._due))

    def stats(self) -> bytes:
        """What happened, as an answer."""
        found = {
            "requests": self.requests,
            "refused": self.refused,
            "in_flight": len(self._due),
            "max_in_flight": self.max_in_flight,
            "cpu_s": time.process_time(),
        }
        self.max_in_flight = len(self._due)
        return _reply("200 OK", json.dumps(found).encode())

    def _wake_in(self, seconds: float) -> None:
        # libuv counts whole milliseconds: half of one more, or it wakes too early as often as not.
        asyncio.get_running_loop().call_later(seconds + 0.0005, self._send_due)

    def _send_due(self) -> None:
        now, due = time.monotonic(), self._due
        while due and due[0][0] <= now:
            _, transport, reply = due.popleft()
            if not transport.is_closing():
                transport.write(reply)
        if due:
            self._wake_in(due[0][0] - now)


class _Connection(asyncio.Protocol):
    __slots__ = ("_rest", "_server", "_transport")

    def __init__(self, server: MockServer) -> None:
        self._server = server
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(data, 0, end)
            end += 4 + (int(length[1]) if length else 0)
            if len(data) < end:
                break
            self._answer(data)
            data = data[end:]
        self._rest = data

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"POST /v1/chat/completions "):
            self._server.answer(self._transport, CHAT)
        elif request.startswith(b"POST /v1/completions "):
            self._server.answer(self._transport, COMPLETION)
        elif request.startswith(b"GET /stats "):
            self._transport.write(self._server.stats())
        else:
            self._transport.write(_reply("404 Not Found", b"{}"))


def _reply(status: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _completion(kind: str, choice: Callable[[str], dict[str, Any]]) -> bytes:
    """An answer of exactly BODY_BYTES; its text fills what the rest leaves."""

    def body(text: str) -> bytes:
        choices = [{"index": 0, "finish_reason": "stop", **choice(text)}]
        usage = {"prompt_tokens": 16, "completion_tokens": 16, "total_tokens": 32}
        answer = {"id": "mock-0", "object": kind, "created": 0, "model": "mock", "choices": choices, "usage": usage}
        return json.dumps(answer).encode()

    text = "The quick brown fox jumps over the lazy dog. " * 10
    return _reply("200 OK", body(text[: BODY_BYTES - len(body(""))]))


CHAT = _completion("chat.completion", lambda text: {"message": {"role": "assistant", "content": text}})
COMPLETION = _completion("text_completion", lambda text: {"text": text})


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Each worker has a socket of its own on the one port; the kernel spreads connections over them.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


async def _serve(listener: socket.socket, server: MockServer, url: str) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await loop.create_server(lambda: _Connection(server), sock=listener, backlog=_BACKLOG)
    if url:
        print(url, flush=True)
    await stop.wait()


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--workers", type=int, default=1, help="processes on the one port")
    parser.add_argument("--busy", type=float, default=0.0, help="share of requests that get 429")
    parser.add_argument("--broken", type=float, default=0.0, help="share of requests that get 503")
    parser.add_argument("--retry-after", type=float, help="seconds, in refusals")
    options = parser.parse_args()
    listener = _listen(options.host, options.port)
    port = listener.getsockname()[1]
    url = f"http://{options.host}:{port}/v1"
    for _ in range(options.workers - 1):
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            listener.close()
            listener, url = _listen(options.host, port), ""
            break
    server = MockServer(options.latency, busy=options.busy, broken=options.broken, retry_after_s=options.retry_after)
    uvloop.run(_serve(listener, server, url))


if __name__ == "__main__":
    main()
