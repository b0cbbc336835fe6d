"""`python -m matrix.serving.door`: the server process. It prints its URLs once it listens, and ends with SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import sys

import uvloop

from matrix.errors import AppError
from matrix.serving.door.server import Door
from matrix.serving.listening import Server, listen, shown

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
    try:
        uvloop.run(_serve(options, key, os.environ.get("MATRIX_CONTROL_KEY") or key))
    except AppError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


async def _serve(options: argparse.Namespace, key: str, control_key: str) -> None:
    door = Door(key, control_key)
    listener = listen(options.host, options.port)
    urls = [f"http://{shown(options.host)}:{listener.getsockname()[1]}"]
    server = Server(door, drain_s=options.drain, keep_alive_s=_KEEP_ALIVE_S)
    if options.grpc_port is not None:
        from matrix.serving.door.rpc import RpcDoor

        rpc = RpcDoor(key, door.table, door.figures)
        urls.append(f"grpc://{shown(options.host)}:{await rpc.start(options.host, options.grpc_port)}")
        server.stop_beside = lambda: rpc.close(options.drain)
    print(*urls, flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        await door.close()


if __name__ == "__main__":
    sys.exit(main())
