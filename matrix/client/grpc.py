"""Requests by gRPC (matrix/wire/openai.proto); imported only where a server's URL is `grpc://HOST:PORT`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
import orjson
from google.protobuf.message import DecodeError, Message

from matrix.client.sessions import Shared
from matrix.client.transport import GRPC
from matrix.client.tries import TryFailedError, from_status
from matrix.errors import RequestError
from matrix.wire import openai_pb2 as pb
from matrix.wire.convert import to_json, to_message

_SERVICE = "/matrix.openai.v1.OpenAI/"
_METHODS: dict[str, tuple[str, type[Message], type[Message]]] = {
    "/chat/completions": ("Chat", pb.ChatRequest, pb.ChatResponse),
    "/completions": ("Complete", pb.CompletionRequest, pb.CompletionResponse),
    "/embeddings": ("Embed", pb.EmbeddingRequest, pb.EmbeddingResponse),
    "/execute": ("Execute", pb.ExecuteRequest, pb.ExecuteResponse),
    "/models": ("Models", pb.ModelsRequest, pb.ModelsResponse),
}
"""By the path over HTTP: the method, its request and its answer."""

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # As aiohttp, which takes a proxy only where it is told to.
    ("grpc.enable_http_proxy", 0),
    # A server that was away is looked for again before a breaker lets the next probe through; gRPC alone would wait for
    # up to two minutes (https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md). The second is also the
    # limit for a connection to come about.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # An endpoint that nobody asks any more, since its replica was replaced, isn't looked for any longer.
    ("grpc.client_idle_timeout_ms", 60_000),
    # All requests share one connection: whether it lives is asked while they wait.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    # The server speaks another protocol: no other try will help.
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""What an error is that doesn't say (from a proxy, or gRPC itself); all others are 500."""
_NONE_THERE = ("failed to connect", "errors resolving", "DNS resolution failed")
"""How gRPC's core words that there was no connection. UNAVAILABLE is also what it calls one that broke."""
_TOO_LARGE = "larger than max"


class Channels:
    """Connections of one event loop, one for each server, made when it is first asked."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: dict[tuple[str, str], Any] = {}

    def call(self, url: str, path: str) -> Any:
        """From request bytes and metadata to an awaitable of the answer's bytes."""
        found = self._calls.get((url, path))
        if found is None:
            channel = self._channels.get(url)
            if channel is None:
                channel = grpc.aio.insecure_channel(url.removeprefix(GRPC), options=_OPTIONS)
                self._channels[url] = channel
            # Bytes in and out: an answer that can't be read is our business, gRPC would only log it.
            found = self._calls[url, path] = channel.unary_unary(_SERVICE + _METHODS[path][0])
        return found

    async def close(self) -> None:
        """Close all of them."""
        self._calls.clear()
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()


class GrpcTransport:
    """See `matrix.client.transport.Transport` and `open_transport`."""

    def __init__(self, headers: Mapping[str, str], shared: Shared | None) -> None:
        self._channels = Channels() if shared is None else shared.channels(Channels)
        self._owns = shared is None
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())

    def encode(self, path: str, body: dict[str, Any]) -> bytes:
        """See `Transport`."""
        return to_message(_METHODS[path][1], body).SerializeToString()

    async def ask(self, url: str, path: str, payload: bytes) -> dict[str, Any]:
        """See `Transport`."""
        if not url.startswith(GRPC):
            raise TryFailedError("connection", f"{url}: not a gRPC URL, as those of the servers before it", "refusal")
        try:
            raw = await self._channels.call(url, path)(payload, metadata=self._metadata)
            return to_json(_METHODS[path][2].FromString(raw))
        except grpc.aio.AioRpcError as error:
            raise _from_error(url, error) from error
        except DecodeError as error:
            raise TryFailedError("bad_response", f"{url}: the answer can't be read: {error}", "fault") from error

    async def close(self) -> None:
        """See `Transport`."""
        if self._owns:
            await self._channels.close()


async def served_models(url: str, headers: Mapping[str, str]) -> list[str] | None:
    """As `matrix.client.models.served_models`; the caller limits the wait."""
    transport = GrpcTransport(headers, None)
    try:
        found = await transport.ask(url, "/models", b"")
    except TryFailedError as failure:
        if failure.kind == "http_404":
            return None
        raise RequestError(failure.kind, str(failure)) from failure
    finally:
        await transport.close()
    return [str(model["id"]) for model in found.get("data", [])]


def _from_error(url: str, error: grpc.aio.AioRpcError) -> TryFailedError:
    """Sort an error, by the HTTP status that it carries or is like."""
    said = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    details = error.details() or ""
    code = error.code()
    if "http-status" in said:
        status = int(said["http-status"])
    elif code is grpc.StatusCode.UNAVAILABLE:
        none_there = any(words in details for words in _NONE_THERE)
        return TryFailedError("connection", f"{url}: {details}", "unreachable" if none_there else "fault")
    else:
        status = 413 if _TOO_LARGE in details else _STATUS.get(code, 500)
    headers = {"Retry-After": said["retry-after"]} if "retry-after" in said else {}
    body = {"error": {"message": details, "type": said.get("error-type")}}
    return from_status(url, status, code.name, headers, orjson.dumps(body))
