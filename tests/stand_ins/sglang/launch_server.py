"""`python -m sglang.launch_server` with SGLang's arguments (docs/advanced_features/server_arguments.md of 0.5).

Options come from `--config` (YAML) and the command line, which wins. Node 0 waits at `--dist-init-addr` for the other
nodes and serves; the others serve nothing, and end when node 0 does, as SGLang's do.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import threading
from pathlib import Path

import yaml
from aiohttp import web

from tests.fake_engine import FakeEngine


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--api-key")
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--revision")
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--pp-size", type=int, default=1)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--dist-init-addr")
    parser.add_argument("--tool-call-parser")
    parser.add_argument("--reasoning-parser")
    parser.add_argument("--mem-fraction-static", type=float)
    parser.add_argument("--device")
    parser.add_argument("--enable-metrics", action="store_true")
    known, _ = parser.parse_known_args(["--model-path", "x", *sys.argv[1:]])
    if known.config:
        given = yaml.safe_load(Path(known.config).read_text())
        parser.set_defaults(**{name.replace("-", "_"): value for name, value in given.items()})
    return parser.parse_args()


def meet(given: argparse.Namespace) -> list[socket.socket]:
    """Connect the nodes of one server with each other."""
    host, port = given.dist_init_addr.rsplit(":", 1)
    if given.node_rank:
        while True:
            try:
                return [socket.create_connection((host, int(port)), 1)]
            except OSError:
                continue
    with socket.create_server((host, int(port))) as server:
        return [server.accept()[0] for _ in range(given.nnodes - 1)]


class StandIn(FakeEngine):
    """FakeEngine with SGLang's own paths."""

    def __init__(self, given: argparse.Namespace) -> None:
        name = given.served_model_name or given.model_path
        super().__init__(api_key=given.api_key, model=name, port=given.port, host=given.host)
        self.given = given

    def routes(self, app: web.Application) -> None:
        app.router.add_get("/health_generate", self._health)
        app.router.add_get("/get_server_info", self._info)
        app.router.add_get("/metrics", self._metrics)

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response({key: value for key, value in vars(self.given).items() if key != "api_key"})

    async def _metrics(self, _: web.Request) -> web.Response:
        label = f'{{model_name="{self.model}"}}'
        lines = [
            f"sglang:num_running_reqs{label} {self.in_flight}",
            f"sglang:num_queue_reqs{label} 0",
            f"sglang:generation_tokens_total{label} {len(self.requests)}",
        ]
        return web.Response(text="\n".join(lines) + "\n")


async def serve(given: argparse.Namespace) -> None:
    async with StandIn(given):
        print("The server is fired up and ready to roll!", flush=True)
        await asyncio.Event().wait()


def end_with(other: socket.socket) -> None:
    """End when the other node does."""
    import os

    other.recv(1)
    os._exit(1)


if __name__ == "__main__":
    GIVEN = options()
    if GIVEN.model_path == "broken":
        print("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", flush=True)
        sys.exit(1)
    OTHERS = meet(GIVEN) if GIVEN.nnodes > 1 else []
    for OTHER in OTHERS:
        threading.Thread(target=end_with, args=(OTHER,), daemon=True).start()
    if GIVEN.node_rank:
        threading.Event().wait()
    asyncio.run(serve(GIVEN))
