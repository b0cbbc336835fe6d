"""A backend that passes requests on to a server with OpenAI's HTTP API: vLLM, SGLang, or any other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import orjson

from matrix.client.models import served_models
from matrix.client.parse import error_message
from matrix.client.sessions import open_session
from matrix.client.tries import seconds
from matrix.errors import RequestError
from matrix.serving.backend import ApiError, Json, ModelBackend

_LOG = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_DATA = b"data:"
_DONE = b"[DONE]"


class RelayBackend(ModelBackend):
    """See `matrix.serving.backend.ModelBackend`.

    Args:
        url: Base URL of the server, up to and including `/v1`.
        api_key: Sent as bearer token; None: no such header.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.strip()}"
        self._models: list[str] = []
        self._problem: str | None = None

    async def start(self) -> None:
        """Connect; whether the server is there is looked at now, and every 5 s."""
        self._session = open_session()
        await self._look()
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Close the connections."""
        self._watching.cancel()
        with suppress(asyncio.CancelledError):
            await self._watching
        await self._session.close()

    def models(self) -> list[str]:
        """What the server said last."""
        return self._models

    def problem(self) -> str | None:
        """Why the server doesn't answer, as of the last look."""
        return self._problem

    def metrics(self) -> str:
        """Nothing: the server has its own."""
        return ""

    async def chat(self, body: Json) -> Json:
        """Pass on a chat completion request."""
        return await self._ask("/chat/completions", body)

    def stream_chat(self, body: Json) -> AsyncIterator[Json]:
        """The same in chunks."""
        return self._stream("/chat/completions", body)

    async def complete(self, body: Json) -> Json:
        """Pass on a text completion request."""
        return await self._ask("/completions", body)

    def stream_complete(self, body: Json) -> AsyncIterator[Json]:
        """The same in chunks."""
        return self._stream("/completions", body)

    async def embed(self, body: Json) -> Json:
        """Pass on a request for embeddings."""
        return await self._ask("/embeddings", body)

    async def _ask(self, path: str, body: Json) -> Json:
        if body.get("stream"):
            body = {name: value for name, value in body.items() if name not in {"stream", "stream_options"}}
        async with self._sent(path, body) as reply:
            raw = await reply.read()
        return _object(raw)

    async def _stream(self, path: str, body: Json) -> AsyncIterator[Json]:
        async with self._sent(path, {**body, "stream": True}) as reply:
            async for line in _lines(reply):
                if not line.startswith(_DATA):
                    continue
                data = line[len(_DATA) :].strip()
                if data == _DONE:
                    return
                chunk = _object(data)
                # vLLM and others put an error into a stream that has begun, where no status can say it.
                if "error" in chunk and "choices" not in chunk:
                    raise _failed_with(data)
                yield chunk
        raise ApiError(502, f"{self._url}: the stream broke off")

    @asynccontextmanager
    async def _sent(self, path: str, body: Json) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            payload = orjson.dumps(body)
        except TypeError as error:
            raise ApiError(400, f"the request can't be sent as JSON: {error}") from error
        try:
            async with self._session.post(
                self._url + path, data=payload, headers=self._headers, allow_redirects=False
            ) as reply:
                if not 200 <= reply.status < 300:
                    raise _refused(reply, await reply.read())
                yield reply
        except aiohttp.ClientConnectorError as error:
            raise ApiError(503, f"{self._url}: {error}") from error
        except aiohttp.ClientError as error:
            raise ApiError(502, f"{self._url}: {error}") from error

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        try:
            self._models = await served_models(self._url, self._api_key, timeout_s=_LOOK_EVERY_S) or self._models
            self._problem = None
        except RequestError as error:
            if self._problem is None:
                _LOG.warning("the server behind this one doesn't answer: %s", error)
            self._problem = str(error)


async def _lines(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length, where aiohttp's own reader takes 128 KiB at most."""
    rest = bytearray()
    async for piece in reply.content.iter_any():
        rest += piece
        if b"\n" in piece:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                yield line
    if rest:
        yield bytes(rest)


def _object(raw: bytes) -> Json:
    try:
        found: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(502, f"the answer isn't JSON ({error}): {error_message(raw)}") from error
    if not isinstance(found, dict):
        raise ApiError(502, f"the answer is no JSON object: {error_message(raw)}")
    return found


def _refused(reply: aiohttp.ClientResponse, raw: bytes) -> ApiError:
    given = reply.headers.get("Retry-After")
    status = reply.status if reply.status >= 400 else 502
    return ApiError(status, error_message(raw), retry_after_s=seconds(given) if given else None, kind=_kind(raw))


def _failed_with(raw: bytes) -> ApiError:
    error = orjson.loads(raw)["error"]
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 502
    return ApiError(status, error_message(raw), kind=_kind(raw))


def _kind(raw: bytes) -> str:
    try:
        error = orjson.loads(raw)["error"]
        return str(error.get("type") or "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
