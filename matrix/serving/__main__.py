"""A server of our own as a process: `python -m matrix.serving --host 127.0.0.1 --port 8000 [--grpc-port 8001]`.

What it serves is JSON in the environment variable `MATRIX_SERVING`, `{"engine": {...}, "model": {...}}` as in a
RunSpec; the key that it asks for is in `MATRIX_API_KEY`, without which it only listens on loopback. It prints its URL
once it takes requests, and ends on SIGTERM or SIGINT when those under way are over (`engine.drain_timeout_s` at most).
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import os
import sys

import uvloop
from pydantic import BaseModel, ConfigDict, ValidationError

from matrix.client.sessions import allow_many_connections
from matrix.errors import ConfigError, MatrixError, Problem
from matrix.serving.backend import Backend
from matrix.serving.backends import backend_of
from matrix.serving.listening import Server, listen, shown
from matrix.serving.server import Application
from matrix.spec.model import ModelSpec
from matrix.spec.services import EngineSpec

_KEEP_ALIVE_S = 300


class Served(BaseModel):
    """What `MATRIX_SERVING` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: EngineSpec
    model: ModelSpec


def served() -> Served:
    """Read `MATRIX_SERVING`.

    Raises:
        ConfigError: It is missing or wrong.
    """
    title = "MATRIX_SERVING is wrong:"
    given = os.environ.get("MATRIX_SERVING")
    if given is None:
        example = '{"engine": {"kind": "simulated"}, "model": {"name": "NAME"}}'
        raise ConfigError([Problem("MATRIX_SERVING", None, f"should hold JSON such as {example}")], title)
    try:
        return Served.model_validate_json(given)
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, found["loc"])) or "MATRIX_SERVING", None, found["msg"])
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigError(problems, title) from None


async def serve(backend: Backend, host: str, port: int, grpc_port: int | None, drain_s: float) -> None:
    """Serve a backend until a signal; see `main` for what it does.

    Args:
        backend: What answers.
        host: Address to listen on.
        port: Of HTTP; 0: a free one.
        grpc_port: Of gRPC; None: without.
        drain_s: Seconds for which requests under way may go on after the signal.

    Raises:
        AppError: The port is taken.
    """
    api_key = os.environ.get("MATRIX_API_KEY") or None
    if api_key is None and not _is_loopback(host):
        raise ConfigError([Problem("MATRIX_API_KEY", None, f"should hold a key: {host} isn't only this machine")])
    app = Application(backend, api_key)
    listener = listen(host, port)
    address = f"{shown(host)}:{listener.getsockname()[1]}"
    backend.reached_at(address, api_key)
    await backend.start()
    server = Server(app, drain_s=drain_s, keep_alive_s=_KEEP_ALIVE_S)
    try:
        if grpc_port is not None:
            from matrix.serving import grpc_server

            grpc = await grpc_server.start(app.backend, host, grpc_port, api_key)
            server.stop_beside = lambda: grpc.stop(drain_s)
        # What is there now stays: the collector needn't look at it again for each of thousands of requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        print(f"http://{address}/v1", flush=True)
        await server.serve(sockets=[listener])
    finally:
        await backend.close()


def main() -> int:
    """Run the server; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m matrix.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--grpc-port", type=int, help="without it there is no gRPC")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    allow_many_connections()
    try:
        what = served()
        backend = backend_of(what.engine, what.model)
        drain_s = what.engine.drain_timeout_s
        uvloop.run(serve(backend, options.host, options.port, options.grpc_port, drain_s))
    except MatrixError as error:
        print(" ".join(line.strip() for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
