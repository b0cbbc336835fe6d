"""A gRPC port for a server that has only OpenAI's HTTP API, such as a replica of vLLM on the same node.

python -m matrix.serving.grpc_sidecar --upstream http://127.0.0.1:8000 --host 127.0.0.1 --port 50051

The key that it asks for, and the one that it shows to the server, come from MATRIX_API_KEY. Once it listens it prints
its own URL. SIGTERM and SIGINT end it; requests under way have `--grace` seconds left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from urllib.parse import urlsplit

import uvloop

from matrix.serving import grpc_server
from matrix.serving.relay import RelayBackend

KEY_VARIABLE = "MATRIX_API_KEY"


async def serve(upstream: str, host: str, port: int, grace_s: float) -> None:
    """Serve until a signal says otherwise; see the module."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    api_key = os.environ.get(KEY_VARIABLE) or None
    url = upstream.rstrip("/")
    backend = RelayBackend(url if urlsplit(url).path else f"{url}/v1", api_key)
    await backend.start()
    try:
        server = await grpc_server.start(backend, host, port, api_key)
        print(f"grpc://{host}:{server.port}", flush=True)
        await ended.wait()
        await server.stop(grace_s)
    finally:
        await backend.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m matrix.serving.grpc_sidecar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--upstream", required=True, help="URL of the server; without a path, /v1 is meant")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds")
    given = parser.parse_args(arguments)
    uvloop.run(serve(given.upstream, given.host, given.port, given.grace))


if __name__ == "__main__":
    main()
