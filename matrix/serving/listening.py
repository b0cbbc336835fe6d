"""What all HTTP servers of ours have in common: a socket that listens, and uvicorn as we want it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from matrix.errors import AppError

_BACKLOG = 16384


class Server(uvicorn.Server):
    """uvicorn without its logs and headers. It ends on SIGTERM or SIGINT, and leaves what comes then to its caller.

    Args:
        app: An ASGI application.
        drain_s: Seconds for which requests under way may go on after the signal.
        keep_alive_s: Seconds that an idle connection is kept.
    """

    def __init__(self, app: Any, *, drain_s: float, keep_alive_s: int) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            # Who asks is told by the address of the connection, not by what a client says.
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=keep_alive_s,
            timeout_graceful_shutdown=max(1, round(drain_s)),
        )
        super().__init__(config)
        self.stop_beside: Callable[[], Awaitable[None]] | None = None
        """Stops what listens beside it; called when it takes no more requests itself, awaited until both are done."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for requests under way, here and beside."""
        beside = [] if self.stop_beside is None else [self.stop_beside()]
        await asyncio.gather(super().shutdown(sockets), *beside)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, don't raise the signal again at the end: the caller has to clean up."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: from here on who connects is kept waiting, not refused.

    Args:
        host: Address to listen on.
        port: 0: a free one.

    Raises:
        AppError: The address can't be listened on.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise AppError(f"{host}:{port} can't be listened on: {error.strerror}") from error
    return listener


def shown(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
