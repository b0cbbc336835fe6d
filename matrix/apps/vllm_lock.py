"""A lock for all of vLLM's server: its own key (0.32) guards only the paths below `/v1` and a few more.

vLLM loads it by name (`--middleware matrix.apps.vllm_lock.Lock`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Asgi = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_OPEN = frozenset({"/health", "/ping"})
_BODY = b'{"error": {"message": "Unauthorized", "type": "invalid_request_error", "param": null, "code": 401}}'


class Lock:
    """ASGI middleware: 401 without the bearer token in `MATRIX_API_KEY`, but for whether the server is well.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ['MATRIX_API_KEY']}".encode()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in _OPEN or self._is_let_in(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})

    def _is_let_in(self, scope: Message) -> bool:
        given: bytes = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, self._wanted)
