"""The door for gRPC: calls of the service in matrix/wire/openai.proto, sent on as the bytes that they are.

On the wire an answer is a stream of one message, so all methods are alike here. Only imported where gRPC is asked for.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import grpc
import grpc.aio

from matrix.client.tries import seconds
from matrix.serving.backend import ApiError
from matrix.serving.door.figures import Figures
from matrix.serving.door.forward import FAULTS, HOLD_S, MAX_TRIES, TOO_MANY, another
from matrix.serving.door.pool import Pool, Taken
from matrix.serving.door.server import WAIT_S
from matrix.serving.door.table import App, Table

_SERVICE = "/matrix.openai.v1.OpenAI/"
_ANY_LENGTH = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# Clients ask while they wait whether the connection lives; gRPC's default takes three such pings in 5 minutes for an
# attack (github.com/grpc/grpc/blob/master/doc/keepalive.md). Two servers must not share a port by accident.
_SERVER = [*_ANY_LENGTH, ("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)]
# A replica that was away is looked for again about as soon as its breaker lets a request through, and one that nobody
# asks any more isn't looked for (github.com/grpc/grpc/blob/master/doc/connection-backoff.md).
_CHANNEL = [
    *_ANY_LENGTH,
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.client_idle_timeout_ms", 60_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_NONE_THERE = ("failed to connect", "errors resolving", "DNS resolution failed")
"""How gRPC's core words that there was no connection; UNAVAILABLE is also what it calls one that broke."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
}

Verdict = Literal["unreachable", "broken", "refused", "final"]
"""Of an error: no connection; it broke; this replica refuses, others may not; the request's own fault, or late."""

Context: TypeAlias = grpc.aio.ServicerContext


class RpcDoor(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The server; has to be made in the event loop.

    Args:
        key: What clients send, and replicas get, in the metadata as `authorization: Bearer KEY`.
        table: The apps.
        figures: Where calls are counted.
    """

    def __init__(self, key: str, table: Table, figures: Figures) -> None:
        self._table, self._figures = table, figures
        self._bearer = f"Bearer {key}"
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: dict[tuple[str, str], Callable[..., Any]] = {}
        self._server = grpc.aio.server(options=_SERVER)
        self._server.add_generic_rpc_handlers((self,))

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port.

        Raises:
            OSError: The address can't be listened on.
        """
        try:
            bound: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"can't listen on {host}:{port}: {error}") from error
        await self._server.start()
        return bound

    async def close(self, grace_s: float) -> None:
        """Take no more calls; those under way may take so many seconds."""
        await self._server.stop(grace_s)
        for channel in self._channels.values():
            await channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """What answers a method; see `grpc.GenericRpcHandler`."""
        method: str = handler_call_details.method
        if not method.startswith(_SERVICE):
            return None

        async def answer(request: bytes, context: Context) -> None:
            try:
                await self._answer(method, request, context)
            except ApiError as error:
                await _refuse(context, error)
            except grpc.aio.AioRpcError as error:
                # As the replica ended it.
                await context.abort(error.code(), error.details() or "", tuple(_said(error).items()))

        return grpc.unary_stream_rpc_method_handler(answer)

    async def _answer(self, method: str, request: bytes, context: Context) -> None:
        given = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        if method == f"{_SERVICE}Health" and "application" not in given:
            # An empty message: the server is there.
            await context.write(b"")
            return
        if not hmac.compare_digest(given.get("authorization", "").encode(), self._bearer.encode()):
            raise ApiError(401, "the key is missing or wrong: send the metadata 'authorization: Bearer KEY'")
        app, request = self._app(given.get("application"), request)
        started_at = time.monotonic()
        status = "CANCELLED"
        app.enter()
        try:
            await self._until_answered(app.grpc, method, request, given, context)
            status = grpc.StatusCode.OK.name
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            raise
        except ApiError as error:
            status = _code(error.status).name
            raise
        finally:
            app.leave()
            self._figures.count(app.name, status, time.monotonic() - started_at)

    def _app(self, application: str | None, request: bytes) -> tuple[App, bytes]:
        """The app that a call is for, and the request with the name that its replicas know."""
        model = model_of(request)
        if application is not None:
            app = self._table.by_model(application)
        elif (only := self._table.only()) is not None:
            app = only
        elif model is not None:
            app = self._table.by_model(model)
        else:
            raise ApiError(400, "the call names no app: send the metadata 'application: NAME', or a model")
        if model == app.name != app.route.model:
            request += _model_field(app.route.model)
        return app, request

    async def _until_answered(
        self, pool: Pool, method: str, request: bytes, given: dict[str, str], context: Context
    ) -> None:
        affinity = given.get("x-session-id") or given.get("serve_multiplexed_model_id")
        left_s = context.time_remaining()
        deadline = time.monotonic() + (WAIT_S if left_s is None else min(left_s, WAIT_S))
        tried: set[str] = set()
        faults = 0
        following: Taken | None = None
        while True:
            taken = following or pool.pick(affinity, tried) or await pool.take(affinity, tried, deadline)
            tried.add(taken.replica.url)
            following = None
            sent_at = time.monotonic()
            call = self._call(taken.replica.url, method)(
                request, metadata=(("authorization", self._bearer),), timeout=context.time_remaining()
            )
            started = False
            try:
                async for message in call:
                    if not started:
                        started = True
                        taken.owner.succeeded(taken.replica)
                        await context.send_initial_metadata((("x-matrix-replica", taken.replica.url),))
                    await context.write(message)
            except grpc.aio.AioRpcError as error:
                verdict = _note(taken, error, sent_at)
                # Without a connection nothing was sent: that may be tried until the deadline.
                faults += verdict != "unreachable"
                if started or verdict == "final" or faults >= MAX_TRIES:
                    raise
                if verdict == "refused" and (following := another(pool, affinity, tried)) is None:
                    raise
            else:
                return
            finally:
                # Tells the replica when the client has gone; nothing, after the end.
                call.cancel()
                pool.release(taken)

    def _call(self, url: str, method: str) -> Callable[..., Any]:
        found = self._calls.get((url, method))
        if found is None:
            channel = self._channels.get(url)
            if channel is None:
                channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"), options=_CHANNEL)
                self._channels[url] = channel
            found = self._calls[url, method] = channel.unary_stream(method)
        return found


def model_of(request: bytes) -> str | None:
    """The model that a request names: field 1 of all requests, which comes first as protobuf writes them."""
    if not request.startswith(b"\x0a"):
        return None
    length, shift, place = 0, 0, 1
    while place < len(request):
        byte = request[place]
        length |= (byte & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if byte < 0x80:
            return request[place : place + length].decode(errors="replace")
    return None


def _model_field(model: str) -> bytes:
    """Put behind a request it replaces the model: of a field that is there twice, protobuf takes the last."""
    text = model.encode()
    length, size = bytearray(), len(text)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"\x0a" + bytes(length) + text


def _said(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}


def _note(taken: Taken, error: grpc.aio.AioRpcError, sent_at: float) -> Verdict:
    """Note what an error says about its replica."""
    said = _said(error)
    status = int(said.get("http-status", 0))
    wait_s = seconds(said.get("retry-after"))
    why = f"{taken.replica.url}: {error.details()}"
    verdict: Verdict = "final"
    if not status and error.code() is grpc.StatusCode.UNAVAILABLE:
        verdict = "unreachable" if any(words in why for words in _NONE_THERE) else "broken"
        taken.owner.failed(taken.replica, sent_at, why, unreachable=verdict == "unreachable")
    elif status == TOO_MANY or (status == 503 and wait_s):
        verdict = "refused"
        taken.owner.succeeded(taken.replica)
        taken.owner.hold(taken.replica, wait_s or HOLD_S)
    elif status in FAULTS:
        verdict = "refused"
        taken.owner.failed(taken.replica, sent_at, why)
    elif status:
        taken.owner.succeeded(taken.replica)
    return verdict


async def _refuse(context: Context, error: ApiError) -> None:
    trailing = [("http-status", str(error.status)), ("error-type", error.kind)]
    if error.retry_after_s is not None:
        trailing.append(("retry-after", f"{error.retry_after_s:g}"))
    await context.abort(_code(error.status), error.message, tuple(trailing))


def _code(status: int) -> grpc.StatusCode:
    return _CODES.get(status, grpc.StatusCode.INTERNAL)
