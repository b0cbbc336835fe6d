"""The gRPC face of a backend: the service of matrix/wire/openai.proto."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from matrix.serving.backend import CHAT, COMPLETIONS, EMBEDDINGS, EXECUTE, ApiError, Backend, Json, Route
from matrix.wire import openai_pb2 as pb
from matrix.wire.convert import to_json, to_message
from matrix.wire.openai_pb2_grpc import OpenAIServicer, add_OpenAIServicer_to_server

_LOG = logging.getLogger(__name__)

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_LONGEST_MESSAGE = 2000
"""Bytes of an error message: it travels as metadata, percent-encoded, and clients take 8 KiB of that in all."""

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two processes must not share a port by accident.
    ("grpc.so_reuseport", 0),
    # Clients ask whether the connection still lives while they wait for a long answer; gRPC's own default takes three
    # such pings within 5 minutes for an attack (https://github.com/grpc/grpc/blob/master/doc/keepalive.md).
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 60_000),
]

Context: TypeAlias = Any
"""A `grpc.aio.ServicerContext`; gRPC comes without types."""
AnyMessage = TypeVar("AnyMessage", bound=Message)


class GrpcServer:
    """A server that listens.

    Attributes:
        port: Where.
    """

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more requests, and end those under way after so many seconds."""
        await self._server.stop(grace_s)


async def start(backend: Backend, host: str, port: int, api_key: str | None) -> GrpcServer:
    """Serve a backend, which has been started and stays the caller's to close.

    Args:
        backend: What answers.
        host: Address to listen on.
        port: 0: a free one.
        api_key: Asked for in the metadata `authorization: Bearer KEY`, but for Health; None: no key is needed.

    Raises:
        OSError: The address can't be listened on.
    """
    server = grpc.aio.server(options=_OPTIONS)
    add_OpenAIServicer_to_server(_Service(backend, api_key), server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"can't listen on {host}:{port}: {error}") from error
    await server.start()
    return GrpcServer(server, bound)


class _Service(OpenAIServicer):
    def __init__(self, backend: Backend, api_key: str | None) -> None:
        self._backend = backend
        self._routes = backend.routes()
        self._bearer = None if api_key is None else f"Bearer {api_key.strip()}".encode()

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatResponse:  # noqa: N802 - as in the .proto
        return await self._answer(CHAT, pb.ChatResponse, request, context)

    async def ChatStream(self, request: pb.ChatRequest, context: Context) -> None:  # noqa: N802
        await self._stream(CHAT, pb.ChatChunk, request, context)

    async def Complete(  # noqa: N802
        self, request: pb.CompletionRequest, context: Context
    ) -> pb.CompletionResponse:
        return await self._answer(COMPLETIONS, pb.CompletionResponse, request, context)

    async def CompleteStream(self, request: pb.CompletionRequest, context: Context) -> None:  # noqa: N802
        await self._stream(COMPLETIONS, pb.CompletionResponse, request, context)

    async def Embed(self, request: pb.EmbeddingRequest, context: Context) -> pb.EmbeddingResponse:  # noqa: N802
        return await self._answer(EMBEDDINGS, pb.EmbeddingResponse, request, context)

    async def Execute(self, request: pb.ExecuteRequest, context: Context) -> pb.ExecuteResponse:  # noqa: N802
        return await self._answer(EXECUTE, pb.ExecuteResponse, request, context)

    async def Models(self, _: pb.ModelsRequest, context: Context) -> pb.ModelsResponse:  # noqa: N802
        async with _errors_told(context):
            self._check_key(context)
            models = [{"id": name, "object": "model"} for name in self._backend.models()]
            return to_message(pb.ModelsResponse, {"object": "list", "data": models})

    async def Health(self, _: pb.HealthRequest, context: Context) -> pb.HealthResponse:  # noqa: N802
        async with _errors_told(context):
            if (problem := self._backend.problem()) is not None:
                raise ApiError(503, problem)
            return pb.HealthResponse()

    async def _answer(
        self,
        path: str,
        kind: type[AnyMessage],
        request: Message,
        context: Context,
    ) -> AnyMessage:
        async with _errors_told(context):
            body = self._checked(request, context)
            return to_message(kind, await self._route(path).whole(body))

    async def _stream(
        self,
        path: str,
        kind: type[Message],
        request: Message,
        context: Context,
    ) -> None:
        async with _errors_told(context):
            body = self._checked(request, context)
            ask = self._route(path).chunks
            assert ask is not None  # noqa: S101 - both methods' paths have it
            async with _closed(ask(body)) as chunks:
                async for chunk in chunks:
                    await context.write(to_message(kind, chunk))

    def _route(self, path: str) -> Route:
        if path not in self._routes:
            raise ApiError(404, f"There is no {path} here.")
        return self._routes[path]

    def _checked(self, request: Message, context: Context) -> Json:
        self._check_key(context)
        try:
            return to_json(request)
        except ValueError as error:
            raise ApiError(400, f"a field that should hold JSON doesn't: {error}") from error

    def _check_key(self, context: Context) -> None:
        if self._bearer is None:
            return
        given = next((value for name, value in context.invocation_metadata() or () if name == "authorization"), "")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._bearer):
            raise ApiError(401, "Unauthorized")


@asynccontextmanager
async def _errors_told(context: Context) -> AsyncIterator[None]:
    """Tell the client of errors, in gRPC's terms and in HTTP's."""
    try:
        yield
    except ApiError as error:
        await _abort(context, error)
    except Exception:  # noqa: BLE001 - the boundary
        # What the backend didn't expect is logged here, and the client is told no more than that.
        _LOG.exception("a request failed")
        await _abort(context, ApiError(500, "internal server error"))


async def _abort(context: Context, error: ApiError) -> None:
    """End the call with an error; raises gRPC's own, so that nothing comes after it."""
    trailing = [("http-status", str(error.status)), ("error-type", error.kind)]
    if error.retry_after_s is not None:
        trailing.append(("retry-after", f"{error.retry_after_s:g}"))
    other = grpc.StatusCode.INVALID_ARGUMENT if error.status < 500 else grpc.StatusCode.INTERNAL
    message = error.message.encode(errors="replace")[:_LONGEST_MESSAGE].decode(errors="ignore")
    await context.abort(_CODES.get(error.status, other), message, tuple(trailing))


@asynccontextmanager
async def _closed(chunks: AsyncIterator[Json]) -> AsyncIterator[AsyncIterator[Json]]:
    """Have a generator end its work when the client left between two chunks."""
    try:
        yield chunks
    finally:
        close: Any = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
