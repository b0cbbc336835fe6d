"""`python -m matrix.serving.door`: the server process. It prints its URLs once it listens, and ends with SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys

import uvicorn
import uvloop

from matrix.serving.door.server import Door

_BACKLOG = 4096
_KEEP_ALIVE_S = 75
"""Clients keep idle connections for a shorter time (aiohttp 15 s, httpx 5 s), so that none runs into the close."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; requests under way may end."""
    parser = argparse.ArgumentParser(prog="matrix.serving.door", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--grpc-port", type=int, help="0: a free one; not given: no gRPC")
    parser.add_argument("--drain", type=int, default=60, help="seconds that requests under way get at the end")
    options = parser.parse_args()
    key = os.environ.get("MATRIX_API_KEY")
    if not key:
        print("MATRIX_API_KEY is not set: nothing listens without a key", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    uvloop.run(_serve(options, key, os.environ.get("MATRIX_CONTROL_KEY") or key))
    return 0


async def _serve(options: argparse.Namespace, key: str, control_key: str) -> None:
    door = Door(key, control_key)
    listener = listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    rpc = None
    if options.grpc_port is not None:
        from matrix.serving.door.rpc import RpcDoor

        rpc = RpcDoor(key, door.table, door.figures)
        grpc_port = await rpc.start(options.host, options.grpc_port)
    print(f"http://{shown}:{port}", *([f"grpc://{shown}:{grpc_port}"] if rpc else []), flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn ends orderly, then raises the signal once more: that must not cut short what follows.
        signal.signal(number, lambda *_: None)
    try:
        await server_of(door, options.drain).serve(sockets=[listener])
    finally:
        if rpc is not None:
            await rpc.close(options.drain)
        await door.close()


def server_of(door: Door, drain_s: int) -> uvicorn.Server:
    """The HTTP server; requests under way have `drain_s` seconds at its end."""
    config = uvicorn.Config(
        door,
        http="httptools",
        ws="none",
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
        log_config=None,
        access_log=False,
        # A replica's own pass through.
        server_header=False,
        date_header=False,
        # Who may use /control is told by the address of the connection, not by what a client says.
        proxy_headers=False,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: a free one."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)
    return listener


if __name__ == "__main__":
    sys.exit(main())
