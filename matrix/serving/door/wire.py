"""ASGI and HTTP: reading a request's body, sending an answer, and which headers may pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from matrix.serving.backend import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

LARGEST_BODY = 1 << 30
"""Bytes."""

# RFC 9110, 7.6.1: they are about one connection.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"}
    | {b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
# The door has its own, and answers `Expect` itself.
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"authorization", b"content-length", b"expect", b"x-request-timeout"}
_JSON = (b"content-type", b"application/json")


class ClientGoneError(Exception):
    """Whoever asked has closed the connection."""


class BrokenOffError(Exception):
    """An answer ended in the middle, and the client already has a part of it."""


async def read_body(receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413, it is larger than LARGEST_BODY.
        ClientGoneError: It never comes.
    """
    if int(headers.get(b"content-length", b"0")) > LARGEST_BODY:
        raise _too_large()
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return bytes(message["body"])
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        parts.append(message["body"])
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise _too_large()
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise ClientGoneError


def _too_large() -> ApiError:
    return ApiError(413, f"the request is larger than {LARGEST_BODY >> 20} MiB")


def sent_on(headers: Headers, key: str) -> list[tuple[str, str]]:
    """A request's headers as a replica gets them."""
    passed = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name not in _NOT_SENT_ON]
    passed.append(("Authorization", f"Bearer {key}"))
    return passed


def sent_back(raw: tuple[tuple[bytes, bytes], ...], replica: bytes) -> Headers:
    """A replica's headers as the client gets them."""
    passed = [(name, value) for name, value in raw if name.lower() not in _HOP_BY_HOP]
    passed.append((b"x-matrix-replica", replica))
    return passed


async def respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole answer."""
    headers = [(b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, content: object, status: int = 200) -> None:
    """Send a JSON object."""
    await respond(send, status, orjson.dumps(content), [_JSON])


async def refuse(send: Send, error: ApiError) -> None:
    """Send an error, in OpenAI's shape."""
    headers: Headers = [_JSON]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await respond(send, error.status, orjson.dumps(error.body()), headers)
