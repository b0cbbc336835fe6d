"""A small backend for servers of matrix: it answers with the last message, or as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from matrix.serving import grpc_server
from matrix.serving.backend import Json, ModelBackend


class EchoBackend(ModelBackend):
    """Answers with the last message.

    Args:
        latency_s: Before each answer, and before each chunk.
        fail: From the body to the error that is raised, or None.

    Attributes:
        requests: Bodies as received.
        in_flight: Requests being worked on.
        cancelled: Requests whose work was cancelled.
    """

    def __init__(self, latency_s: float = 0.0, fail: Callable[[Json], Exception | None] = lambda _: None) -> None:
        self.latency_s, self.fail = latency_s, fail
        self.requests: list[Json] = []
        self.in_flight = self.cancelled = 0
        self.trouble: str | None = None

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def models(self) -> list[str]:
        return ["echo"]

    def problem(self) -> str | None:
        return self.trouble

    def metrics(self) -> str:
        return ""

    async def chat(self, body: Json) -> Json:
        text = await self._work(body)
        message = {"role": "assistant", "content": text, "tool_calls": [], "refusal": None}
        return self._whole("chat.completion", {"message": message, "logprobs": None})

    async def complete(self, body: Json) -> Json:
        return self._whole("text_completion", {"text": await self._work(body), "logprobs": None})

    async def embed(self, body: Json) -> Json:
        await self._work(body)
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.25]}],
            "model": "e",
        }

    async def stream_chat(self, body: Json) -> AsyncIterator[Json]:
        async for word in self._words(body):
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            yield {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}

    async def stream_complete(self, body: Json) -> AsyncIterator[Json]:
        async for word in self._words(body):
            yield {"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": word}]}

    async def _words(self, body: Json) -> AsyncIterator[str]:
        for word in (await self._work(body)).split():
            await self._wait()
            yield word
            if word == "break":
                raise RuntimeError("in the middle")

    async def _work(self, body: Json) -> str:
        self.requests.append(body)
        await self._wait()
        if (error := self.fail(body)) is not None:
            raise error
        return str(body["messages"][-1]["content"] if "messages" in body else body.get("prompt"))

    async def _wait(self) -> None:
        self.in_flight += 1
        try:
            await asyncio.sleep(self.latency_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    def _whole(self, kind: str, choice: dict[str, Any]) -> Json:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "finish_reason": "stop", **choice}]
        return {"id": "1", "object": kind, "created": 1, "model": "echo", "choices": choices, "usage": usage}


@contextmanager
def in_thread(backend: Any, api_key: str | None = None) -> Iterator[str]:
    """The URL of a gRPC server around it, for code that has no event loop or blocks it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(grpc_server.start(backend, "127.0.0.1", 0, api_key), loop).result(10)
    try:
        yield f"grpc://127.0.0.1:{server.port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
