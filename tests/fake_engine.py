"""A stand-in for an engine: a small HTTP server that speaks OpenAI's chat and completions API and can be told to fail.

In a coroutine:

    async with FakeEngine(answer=lambda body: "4", fail=[Fault.http(503), Fault.reset()]) as engine:
        ...  # engine.url, then engine.requests

From code that isn't async (it gets a thread and a loop of its own):

    with FakeEngine.in_thread(latency_s=0.2) as engine:
        ...

As a process, for what must survive this one; the URL is the first line that it prints:

    python tests/fake_engine.py --port 0 --latency 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

Body = dict[str, Any]
Answer = str | Mapping[str, Any]
"""The text, or a whole `message` for tool calls and reasoning; its `finish_reason` goes where it belongs."""


@dataclass(frozen=True)
class Fault:
    """One way to fail; made by the functions below."""

    kind: Literal["http", "hang", "reset", "disconnect", "garbage", "half", "not_http"]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""

    @classmethod
    def http(
        cls, status: int, message: str = "injected", headers: Mapping[str, str] | None = None, body: str | None = None
    ) -> Fault:
        """A refusal; `body` instead of an error object in vLLM's shape around the message."""
        error = {"error": {"message": message, "type": "Injected", "param": None, "code": status}}
        return cls("http", status, headers or {}, json.dumps(error) if body is None else body)

    @classmethod
    def hang(cls) -> Fault:
        """Take the request and say nothing."""
        return cls("hang")

    @classmethod
    def reset(cls) -> Fault:
        """A TCP reset, as when the process dies."""
        return cls("reset")

    @classmethod
    def disconnect(cls) -> Fault:
        """An orderly close without an answer."""
        return cls("disconnect")

    @classmethod
    def garbage(cls, body: str = '{"choices": [{"ind') -> Fault:
        """200 with a whole body that isn't an answer."""
        return cls("garbage", body=body)

    @classmethod
    def half(cls) -> Fault:
        """200, and the connection ends in the middle of the body."""
        return cls("half")

    @classmethod
    def not_http(cls) -> Fault:
        """Something that isn't HTTP at all."""
        return cls("not_http")


def echo(body: Body) -> str:
    """The content of the last message, or the prompt."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


class FakeEngine:
    """The server.

    Args:
        answer: From the request to the answer; called once for each of `n`.
        latency_s: Seconds before each answer, or a function of the request.
        fail: Faults in the order of requests, None meaning none, then no more; or a function of the request.
        api_key: Refuse requests without this bearer token.
        model: The name in /v1/models.
        port: 0 for a free one; it stays the same over `stop` and `start`.
        host: Address of loopback to listen at.

    Attributes:
        requests: Bodies as received, the ones that failed included.
        headers: Request headers, in the same order.
        clients: Address and port of every connection that brought a request.
        in_flight: Requests being worked on; `max_in_flight` is the most there were.
        healthy: What /health says.
    """

    def __init__(
        self,
        answer: Callable[[Body], Answer] = echo,
        *,
        latency_s: float | Callable[[Body], float] = 0.0,
        fail: Iterable[Fault | None] | Callable[[Body], Fault | None] = (),
        api_key: str | None = None,
        model: str = "fake",
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.answer, self.latency_s, self.api_key, self.model, self.port = answer, latency_s, api_key, model, port
        script = iter(()) if callable(fail) else iter(fail)
        self._fault = fail if callable(fail) else lambda _: next(script, None)
        self.requests: list[Body] = []
        self.headers: list[Mapping[str, str]] = []
        self.clients: set[tuple[str, int]] = set()
        self.in_flight = self.max_in_flight = 0
        self.healthy = True

    @property
    def url(self) -> str:
        """Base URL, up to and including /v1."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def root(self) -> str:
        """The URL without /v1: /health is here."""
        return f"http://{self.host}:{self.port}"

    def routes(self, app: web.Application) -> None:
        """More routes; for those that play a server with other paths."""

    async def start(self) -> None:
        """Listen; `url` is right from here on."""
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self.routes(app)
        # A client that leaves ends its handler, and stopping waits for none: hanging requests must not hold a test up.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close everything, requests in flight included."""
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @classmethod
    @contextmanager
    def in_thread(cls, *args: Any, **options: Any) -> Iterator[Self]:
        """The same server, for code that has no event loop or blocks it."""
        engine, loop = cls(*args, **options), asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="fake-engine", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(engine.start(), loop).result(10)
            try:
                yield engine
            finally:
                asyncio.run_coroutine_threadsafe(engine.stop(), loop).result(10)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        self.requests.append(body)
        self.headers.append(request.headers.copy())
        if request.transport is not None:
            self.clients.add(request.transport.get_extra_info("peername"))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            fault = self._fault(body)
            if fault is not None:
                return await self._break(request, fault)
            await asyncio.sleep(self.latency_s(body) if callable(self.latency_s) else self.latency_s)
            return web.json_response(self._completion(body))
        finally:
            self.in_flight -= 1

    async def _break(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if fault.kind == "hang":
            await asyncio.sleep(3600)
        elif fault.kind == "reset":
            no_linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            transport.abort()
        elif fault.kind == "disconnect":
            transport.close()
        elif fault.kind == "not_http":
            transport.write(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")
            transport.close()
        elif fault.kind == "half":
            whole = json.dumps(self._completion(await request.json())).encode()
            response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
            await response.prepare(request)
            await response.write(whole[: len(whole) // 2])
            transport.close()
            return response
        return web.Response(
            status=fault.status, headers=fault.headers, text=fault.body, content_type="application/json"
        )

    def _completion(self, body: Body) -> dict[str, Any]:
        as_text = "prompt" in body
        choices = [(self._text if as_text else self._choice)(body, index) for index in range(body.get("n") or 1)]
        asked = [body["prompt"]] if as_text else [message.get("content") for message in body["messages"]]
        prompt = sum(len(str(content or "").split()) for content in asked)
        answers = [choice["text"] if as_text else choice["message"]["content"] for choice in choices]
        completion = sum(len((answer or "").split()) for answer in answers)
        return {
            "id": f"chatcmpl-{len(self.requests)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model", self.model),
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }

    def _choice(self, body: Body, index: int) -> dict[str, Any]:
        answer = self.answer(body)
        message = {"role": "assistant", "content": None, **({"content": answer} if isinstance(answer, str) else answer)}
        reason = message.pop("finish_reason", "tool_calls" if message.get("tool_calls") else "stop")
        words: list[str] = (message["content"] or "").split()
        logprobs = {"content": [{"token": word, "logprob": -0.5, "top_logprobs": []} for word in words]}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs if body.get("logprobs") else None,
            "finish_reason": reason,
        }

    def _text(self, body: Body, index: int) -> dict[str, Any]:
        text = str(self.answer(body))
        words, top = text.split(), body.get("logprobs")
        logprobs = {
            "tokens": words,
            "token_logprobs": [-0.5] * len(words),
            "top_logprobs": [{word: -0.5} for word in words] if top else None,
            "text_offset": [0] * len(words),
        }
        return {
            "index": index,
            "text": text,
            "logprobs": None if top is None else logprobs,
            "prompt_logprobs": None if body.get("prompt_logprobs") is None else [None, {"7": {"logprob": -1.0}}],
            "finish_reason": "stop",
        }

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)


async def _serve(engine: FakeEngine) -> None:
    async with engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until killed; prints the URL once it listens."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--host", choices=["127.0.0.1"], help="for who starts it like vLLM")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"))
    parser.add_argument("--model", default="fake")
    options = parser.parse_args()
    engine = FakeEngine(latency_s=options.latency, api_key=options.api_key, model=options.model, port=options.port)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(engine))


if __name__ == "__main__":
    main()
