"""vLLM as a Ray Serve app: every replica runs `vllm serve` on a port of its own, under a guard.

The command line is vLLM's stable face; the place of its Python server moves with every version, and a crash of the
engine takes nothing of Ray down with it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from matrix.apps.directory import ReplicaState, directory
from matrix.errors import AppError
from matrix.spec import ModelSpec, VllmEngine

LAST_LINES = 25
"""Lines of the engine's log that an error carries."""


def serve_command(model: ModelSpec, engine: VllmEngine, path: str, revision: str | None, *, cpu: bool) -> list[str]:
    """The `vllm serve` command, all but host and port.

    Args:
        model: The model.
        engine: The engine.
        path: Folder or hub id of the weights.
        revision: Commit of a hub id.
        cpu: Serve on the CPU.
    """
    arguments: dict[str, Any] = {
        "served_model_name": model.name,
        "max_model_len": model.context_length,
        "revision": revision,
        "tensor_parallel_size": model.tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
        "reasoning_parser": model.reasoning_parser,
        "tool_call_parser": model.tool_parser,
        "enable_auto_tool_choice": True if model.tool_parser else None,
        # Compiling takes minutes on the CPU, and pays only for long runs there.
        "enforce_eager": True if cpu else None,
        "disable_uvicorn_access_log": True,
    }
    for name, value in (model.args | engine.args).items():
        arguments[name.replace("-", "_")] = value
    command = [sys.executable, "-m", *_program(path)]
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            command.append(flag)
        elif value is False:
            command.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            command += [flag, *map(str, value)]
        elif value is not None:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return command


def engine_environment(engine: VllmEngine, api_key: str, *, cpu: bool) -> dict[str, str]:
    """What the engine process gets in its environment on top of the replica's own."""
    environment = {"VLLM_API_KEY": api_key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    if cpu:
        # vLLM keeps a core free for its server; on a laptop that is half of the speed (docs/benchmarks.md).
        environment |= {"VLLM_CPU_KVCACHE_SPACE": f"{engine.kv_cache_gb:g}", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    return environment | engine.env


class VllmReplica:
    """The class of the Serve deployment: one engine process, announced in the cluster's directory when it is ready."""

    def __init__(
        self, app: str, command: list[str], environment: dict[str, str], log_dir: str, timeout_s: float
    ) -> None:
        import ray
        from ray import serve

        self._app = app
        self._id = serve.get_replica_context().replica_id.unique_id
        self._directory = directory()
        host = ray.util.get_node_ip_address()
        _keep_serve_on(host)
        port = _free_port(host)
        self._log = Path(log_dir) / f"engine-{self._id}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # The engine has no business with Ray's token.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_TOKEN")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "matrix.apps.guard", *command, "--host", host, "--port", str(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | environment,
                start_new_session=True,
            )
        self._wait_until_healthy(f"http://{host}:{port}", time.monotonic() + timeout_s)

    def check_health(self) -> None:
        """Serve asks every few seconds; an error makes it replace the replica.

        Raises:
            AppError: The engine has ended.
        """
        if self._process.poll() is not None:
            raise self._failure()

    def __del__(self) -> None:
        """Serve's hook for a replica that goes: end the engine with all its processes."""
        self._directory.withdraw.remote(self._app, self._id)
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _wait_until_healthy(self, root: str, deadline: float) -> None:
        while not _answers(f"{root}/health"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise self._failure()
            self._announce(None, self._last_line())
            time.sleep(0.25)
        self._announce(f"{root}/v1", "ready")

    def _announce(self, url: str | None, detail: str) -> None:
        self._directory.announce.remote(self._app, ReplicaState(self._id, url, detail))

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "starting")

    def _failure(self) -> AppError:
        code = self._process.poll()
        what = "did not get healthy in time" if code is None else f"ended with exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        message = "\n".join([f"vLLM {what}; its last lines ({self._log}):", *(f"    {line}" for line in lines)])
        self._announce(None, message)
        return AppError(message)


def _program(path: str) -> list[str]:
    """The entry point: vLLM's CPU build has another distribution name, which its own `vllm serve` doesn't know."""
    if "vllm" in {distribution.name for distribution in distributions()}:
        return ["vllm.entrypoints.cli.main", "serve", path]
    return ["vllm.entrypoints.openai.api_server", "--model", path]


def _keep_serve_on(host: str) -> None:
    """Make Serve open the replica's gRPC port where Ray listens; it would take every interface (2.60, replica.py)."""
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", host))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own engine, http
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
