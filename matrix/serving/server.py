"""HTTP around a backend: an ASGI application without a framework, since a request should cost little."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any, cast

import orjson

from matrix.serving.backend import ApiError, Backend, Json
from matrix.serving.meter import Meter

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LOOK_S = 0.5
"""How often it is looked for clients that went away; most requests are over before the first time."""
_JSON = (b"content-type", b"application/json")
_SSE: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")

_log = logging.getLogger(__name__)


class _Flight:
    """A request that is being worked on."""

    __slots__ = ("is_gone", "receive", "task", "watcher")

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.is_gone = False
        self.watcher: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self.task.cancel()


class Application:
    """An HTTP API around a backend.

    The backend's routes (of a model those of OpenAI's API), `/v1/models`, `/health`, `/metrics`. A client that goes
    away cancels its request, within a second.

    Args:
        backend: What answers; the caller starts and closes it.
        api_key: Asked for everywhere but at `/health`; None: nobody is asked.
    """

    def __init__(self, backend: Backend, api_key: str | None) -> None:
        self.backend = Meter(backend)
        """The backend, counted; for what serves it in another way."""
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._created = int(time.time())
        self._flights: dict[_Flight, None] = {}
        """Those that nobody watches yet."""
        self._looks = False
        self._asked = self.backend.routes()
        self._told = {"/v1/models": self._tell_models, "/health": self._tell_health, "/metrics": self._tell_metrics}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        try:
            answer = self._route(scope)
            if answer is None:
                await self._ask(scope, receive, send)
            else:
                await _send(send, *answer)
        except ApiError as error:
            # Those of the backend are counted already.
            await _send_error(send, error)

    def _route(self, scope: Message) -> tuple[int, tuple[bytes, bytes], bytes] | None:
        """What can be told at once; None for a request to the backend."""
        path, method = scope["path"], scope["method"]
        if path != "/health" and not self._is_allowed(scope["headers"]):
            raise self._refusal(401, "This server asks for another API key (Authorization: Bearer ...).")
        if path in self._asked:
            if method != "POST":
                raise self._refusal(405, f"{path} takes POST, not {method}.")
            return None
        if path not in self._told:
            raise self._refusal(404, f"There is no {path} here.")
        if method not in {"GET", "HEAD"}:
            raise self._refusal(405, f"{path} takes GET, not {method}.")
        return self._told[path]()

    def _is_allowed(self, headers: list[tuple[bytes, bytes]]) -> bool:
        if self._key is None:
            return True
        given = next((value for name, value in headers if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._key)

    def _refusal(self, status: int, message: str, kind: str = "") -> ApiError:
        self.backend.refused(status)
        return ApiError(status, message, kind=kind)

    def _tell_models(self) -> tuple[int, tuple[bytes, bytes], bytes]:
        models = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "matrix"}
            for name in self.backend.models()
        ]
        return 200, _JSON, orjson.dumps({"object": "list", "data": models})

    def _tell_health(self) -> tuple[int, tuple[bytes, bytes], bytes]:
        if problem := self.backend.problem():
            return 503, _JSON, orjson.dumps(ApiError(503, problem).body())
        return 200, _JSON, b'{"status":"ok"}'

    def _tell_metrics(self) -> tuple[int, tuple[bytes, bytes], bytes]:
        return 200, _TEXT, self.backend.metrics().encode()

    async def _ask(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request to the backend, and its answer to the client."""
        raw = await _read(receive)
        if raw is None:
            return
        body = self._parse(raw)
        flight = _Flight(receive)
        self._take_off(flight)
        try:
            whole, chunks = self._asked[scope["path"]]
            if chunks is not None and body.get("stream"):
                await self._stream(chunks(body), flight, send)
            else:
                answer = orjson.dumps(await whole(body))
                self._land(flight)
                await _send(send, 200, _JSON, answer)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the boundary
            if told := _normalised(error, flight):
                raise told from None
        finally:
            self._land(flight)

    def _parse(self, raw: bytes) -> Json:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise self._refusal(400, f"The body isn't JSON: {error}") from None
        if not isinstance(body, dict):
            raise self._refusal(400, "The body should be a JSON object.")
        model = body.get("model")
        if model is not None and model not in self.backend.models():
            raise self._refusal(404, f"The model `{model}` does not exist.", "NotFoundError")
        return body

    async def _stream(self, chunks: AsyncIterator[Json], flight: _Flight, send: Send) -> None:
        """Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
        end = b"data: [DONE]\n\n"
        async with aclosing(cast("Any", chunks)) as rest:
            # An error before the first chunk still has a status of its own.
            body = b"data: %b\n\n" % orjson.dumps(await anext(rest))
            await send({"type": "http.response.start", "status": 200, "headers": _SSE})
            try:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                async for chunk in rest:
                    body = b"data: %b\n\n" % orjson.dumps(chunk)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the boundary
                told = _normalised(error, flight)
                if told is None:
                    return
                end = b"data: %b\n\n" % orjson.dumps(told.body())
        self._land(flight)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _take_off(self, flight: _Flight) -> None:
        self._flights[flight] = None
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """Have the disconnect of all requests watched that aren't over yet.

        That takes a task, about 10 us: as much as parsing the body, for requests of which most are over soon.
        """
        for flight in self._flights:
            flight.watcher = asyncio.create_task(flight.watch())
        self._flights.clear()
        self._looks = False

    def _land(self, flight: _Flight) -> None:
        """Stop watching: from its last byte on, a server reports every request as disconnected."""
        self._flights.pop(flight, None)
        if flight.watcher:
            flight.watcher.cancel()


def _normalised(error: BaseException, flight: _Flight) -> ApiError | None:
    """What the client gets to see of what ended its request; None if it isn't there any more."""
    if flight.is_gone:
        return None
    if isinstance(error, ApiError):
        return error
    if isinstance(error, asyncio.CancelledError):
        # The server ends and has waited long enough; the task ends with the answer.
        return ApiError(503, "The server is being shut down.", retry_after_s=1)
    _log.error("A request failed", exc_info=error)
    return ApiError(500, "Internal error of the server; its log has more.")


async def _read(receive: Receive) -> bytes | None:
    """The whole body of a request; None if the client goes away before."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return cast("bytes", message["body"])
    parts = []
    while message["type"] == "http.request":
        parts.append(message["body"])
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    return None


async def _send(
    send: Send, status: int, kind: tuple[bytes, bytes], body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    head = [kind, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _send_error(send: Send, error: ApiError) -> None:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_s is not None:
        # Whole seconds: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
        headers = ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    await _send(send, error.status, _JSON, orjson.dumps(error.body()), headers)
