"""A server of our own as a process: `python -m matrix.serving --host 127.0.0.1 --port 8000 [--grpc-port 8001]`.

What it serves is JSON in the environment variable `MATRIX_SERVING`, `{"engine": {...}, "model": {...}}` as in a
RunSpec; the key that it asks for is in `MATRIX_API_KEY`, without which it only listens on loopback. It prints its URL
once it takes requests, and ends on SIGTERM or SIGINT when those under way are over (`engine.drain_timeout_s` at most).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
import uvloop
from pydantic import BaseModel, ConfigDict, ValidationError

from matrix.errors import AppError, ConfigError, MatrixError, Problem
from matrix.serving.backend import Backend
from matrix.serving.server import Application
from matrix.spec.engine import EngineSpec
from matrix.spec.model import ModelSpec

BACKENDS = {
    "simulated": "matrix.serving.simulated.backend:SimulatedBackend",
    "openai": "matrix.serving.gateways.openai:OpenAIGateway",
    "azure": "matrix.serving.gateways.azure:AzureGateway",
    "anthropic": "matrix.serving.gateways.anthropic:AnthropicGateway",
    "llama_api": "matrix.serving.gateways.llama_api:LlamaApiGateway",
    "gemini": "matrix.serving.gateways.gemini:GeminiGateway",
    "bedrock": "matrix.serving.gateways.bedrock:BedrockGateway",
    "sagemaker": "matrix.serving.gateways.sagemaker:SagemakerGateway",
}
"""Class of each kind of engine that we serve ourselves; made with (engine, model)."""

_BACKLOG = 16384
_KEEP_ALIVE_S = 300


class Served(BaseModel):
    """What `MATRIX_SERVING` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: EngineSpec
    model: ModelSpec

    def backend(self) -> Backend:
        """Make what answers.

        Raises:
            MatrixError: It can't be made: a credential or a file is missing.
        """
        kind = self.engine.kind
        if kind not in BACKENDS:
            served = ", ".join(BACKENDS)
            raise ConfigError([Problem("engine.kind", kind, f"has a server of its own; here there are {served}")])
        module, _, name = BACKENDS[kind].partition(":")
        made: Backend = getattr(importlib.import_module(module), name)(self.engine, self.model)
        return made


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
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    await backend.start()
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    server = _Server(config)
    try:
        if grpc_port is not None:
            from matrix.serving import grpc_server

            grpc = await grpc_server.start(app.backend, host, grpc_port, api_key)
            server.stop_beside = lambda: grpc.stop(drain_s)
        # What is there now stays: the collector needn't look at it again for each of thousands of requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        print(f"http://{shown}:{listener.getsockname()[1]}/v1", flush=True)
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
    _raise_file_limit()
    try:
        what = served()
        uvloop.run(
            serve(what.backend(), options.host, options.port, options.grpc_port, what.engine.drain_timeout_s),
        )
    except MatrixError as error:
        print(" ".join(line.strip() for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    return 0


class _Server(uvicorn.Server):
    """Ends on a signal as uvicorn does, but doesn't raise it again at the end: the backend still has to be closed."""

    stop_beside: Callable[[], Awaitable[None]] | None = None
    """Stops what listens beside it; called when it takes no more requests itself, awaited until both are done."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        beside = [] if self.stop_beside is None else [self.stop_beside()]
        await asyncio.gather(super().shutdown(sockets), *beside)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # From here on who connects is kept waiting, not refused.
        listener.listen(_BACKLOG)
    except OSError as error:
        raise AppError(f"{host}:{port} can't be listened on: {error.strerror}") from error
    return listener


def _raise_file_limit() -> None:
    """Each connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
