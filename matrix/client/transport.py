"""How a try gets to a server and its answer back: by HTTP here, by gRPC in `grpc.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import aiohttp
import orjson

from matrix.client.parse import Answer
from matrix.client.sessions import Shared, open_session
from matrix.client.tries import from_error, from_status
from matrix.errors import ConfigError, Problem

GRPC = "grpc://"
"""What the URL of a server begins with that is asked by gRPC: `grpc://HOST:PORT`."""


class Transport(Protocol):
    """Sends requests of one client, on one event loop."""

    def encode(self, path: str, body: dict[str, Any]) -> bytes:
        """What is sent for a body.

        Raises:
            TypeError: It isn't JSON.
            ValueError: A text in it isn't valid Unicode.
        """

    async def ask(self, url: str, path: str, payload: bytes) -> Answer:
        """Send a request to a server and wait for the whole answer.

        Args:
            url: Base URL of the server.
            path: Where in OpenAI's API it goes: `/chat/completions`, ...
            payload: What `encode` gave.

        Raises:
            TryFailedError: There was none, or one that doesn't say OK.
        """

    async def close(self) -> None:
        """Close the connections, if they are its own."""


def open_transport(url: str, headers: Mapping[str, str], shared: Shared | None) -> Transport:
    """The transport for servers with such a URL; needs a running event loop.

    Args:
        url: Of one of the servers: all of a client are asked the same way.
        headers: For every request.
        shared: Whose connections are used; None: its own, which `close` closes.

    Raises:
        ConfigError: gRPC isn't installed.
    """
    if not url.startswith(GRPC):
        return HttpTransport(headers, shared)
    check_grpc("url", url)
    # Loading gRPC takes longer than a whole small batch over HTTP.
    from matrix.client.grpc import GrpcTransport

    return GrpcTransport(headers, shared)


def check_grpc(key: str, url: str) -> None:
    """See that what `key` names can be asked by gRPC; called before gRPC is imported.

    Raises:
        ConfigError: gRPC isn't installed.
    """
    if find_spec("grpc") is None or find_spec("google.protobuf") is None:
        raise ConfigError([Problem(key, url, "needs grpcio and protobuf", "pip install 'matrix-llm[grpc]'")])
    # It would write each connection that breaks to stderr, beside the client's own log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


class HttpTransport:
    """JSON over HTTP; see `Transport` and `open_transport`."""

    def __init__(self, headers: Mapping[str, str], shared: Shared | None) -> None:
        self._session = shared.session if shared else open_session()
        self._owns = shared is None
        self._headers = {"Content-Type": "application/json", **headers}

    def encode(self, path: str, body: dict[str, Any]) -> bytes:  # noqa: ARG002 - all paths take JSON
        """See `Transport`."""
        return orjson.dumps(body)

    async def ask(self, url: str, path: str, payload: bytes) -> Answer:
        """See `Transport`."""
        try:
            # Without `async with`, which would close once more what reading to the end, or failing to, has closed.
            reply = await self._session.post(url + path, data=payload, headers=self._headers, allow_redirects=False)
            raw = await reply.read()
        except aiohttp.ClientError as error:
            raise from_error(url, error) from error
        if not 200 <= reply.status < 300:
            raise from_status(url, reply.status, reply.reason, reply.headers, raw)
        return raw

    async def close(self) -> None:
        """See `Transport`."""
        if self._owns:
            await self._session.close()
