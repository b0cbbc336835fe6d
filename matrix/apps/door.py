"""The front door as a Serve app: a process of ours (`matrix.serving.door`) that is told each second who is where."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matrix.apps.directory import AppRecord, ReplicaState, directory
from matrix.apps.process import GuardedProcess, free_port
from matrix.apps.replica import keep_serve_on
from matrix.apps.status import look
from matrix.errors import AppError

NAME = "matrix.door"
_LOG = logging.getLogger(__name__)
_FEED_S = 1.0
_START_S = 60.0
_PORT = 8000
"""The port that it takes if it is free."""


class Door:
    """The class of its Serve deployment.

    Args:
        log_dir: Folder for its log.
    """

    def __init__(self, log_dir: str) -> None:
        import ray

        self._directory = directory()
        self._key: str = ray.get(self._directory.api_key.remote())
        host = ray.util.get_node_ip_address()
        keep_serve_on(host)
        before = ray.get(self._directory.door.remote()) or {}
        port = _port(host, before.get("port", _PORT))
        grpc_port = _port(host, before.get("grpc_port") or 0)
        self._root = f"http://{host}:{port}"
        command = [sys.executable, "-m", "matrix.serving.door", "--host", host, "--port", str(port)]
        command += ["--grpc-port", str(grpc_port)]
        # Whoever may use the apps may not say where they are.
        self._control_key = secrets.token_urlsafe(32)
        environment = {"MATRIX_API_KEY": self._key, "MATRIX_CONTROL_KEY": self._control_key, "PYTHONUNBUFFERED": "1"}
        self._process = GuardedProcess("the front door", command, environment, Path(log_dir) / "door.log", {})
        deadline = time.monotonic() + _START_S
        while not self._feed():
            if self._process.exit_code is not None or time.monotonic() > deadline:
                raise AppError(self._process.failure())
            time.sleep(0.1)
        addresses = {"url": self._root, "port": port, "grpc_url": f"grpc://{host}:{grpc_port}", "grpc_port": grpc_port}
        ray.get(self._directory.open_door.remote(addresses))
        threading.Thread(target=self._go_on_feeding, name="door-feeder", daemon=True).start()

    def check_health(self) -> None:
        """Serve asks every few seconds; an error makes it replace the door, at the same port.

        Raises:
            AppError: The process has ended.
        """
        if self._process.exit_code is not None:
            raise AppError(self._process.failure())

    def __del__(self) -> None:
        """Serve's hook for one that goes."""
        self._process.end()

    def _go_on_feeding(self) -> None:
        while self._process.exit_code is None:
            time.sleep(_FEED_S)
            if not self._feed():
                _LOG.warning("The front door didn't take its routes")
        # Serve asks three times before it believes one that says it is ill, and once when it is gone.
        os._exit(1)

    def _feed(self) -> bool:
        """Tell the process who is where, and the directory how many requests it holds."""
        import ray

        body = json.dumps(_routes(self._directory)).encode()
        headers = {"Authorization": f"Bearer {self._control_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._root}/control/routes", body, headers, method="PUT")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own process, http
                demand = json.loads(answer.read())["demand"]
        except OSError:
            return False
        ray.get(self._directory.queue_at_door.remote(demand))
        return True


def open_door(log_dir: Path) -> None:
    """Ask for the cluster's front door, if there is none; returns at once."""
    from ray import serve

    if NAME not in serve.status().applications:
        deployment = serve.deployment(
            Door,
            name="door",
            num_replicas=1,
            ray_actor_options={"num_cpus": 0},
            max_constructor_retry_count=1,
            health_check_period_s=2.0,
            graceful_shutdown_wait_loop_s=0.1,
        )
        target = serve.RunTarget(deployment.bind(str(log_dir)), name=NAME, route_prefix=None)
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def wait_for_door() -> dict[str, Any]:
    """Addresses of the front door, once it is open.

    Raises:
        AppError: It doesn't open.
    """
    import ray
    from ray import serve

    deadline = time.monotonic() + 2 * _START_S
    while True:
        addresses: dict[str, Any] | None = ray.get(directory().door.remote())
        status = serve.status().applications[NAME]
        if addresses is not None and status.status == "RUNNING":
            return addresses
        if status.status == "DEPLOY_FAILED" or time.monotonic() > deadline:
            raise AppError(f"the front door doesn't open: {status.message or 'it takes too long'}")
        time.sleep(0.1)


def _routes(known: Any) -> dict[str, Any]:
    import ray

    records = ray.get(known.apps.remote())
    states = ray.get([known.replicas.remote(record.name) for record in records])
    apps = [
        {
            "name": record.name,
            "model": record.model_name,
            "kind": record.kind,
            "min_replicas": record.replicas.min,
            "models": [record.model_name, *_adapters(record.args)],
            "urls": [state.url for state in found if state.url],
            "grpc_urls": [state.grpc_url for state in found if state.grpc_url],
            "failed": _why_failed(record, found),
        }
        for record, found in zip(records, states, strict=True)
    ]
    nodes = [
        {"name": node["NodeName"], "metrics_url": f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"}
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort")
    ]
    return {"apps": apps, "nodes": nodes}


def _why_failed(record: AppRecord, found: list[ReplicaState]) -> str | None:
    own = [state for state in found if state.version == record.version]
    # Serve, which takes its time, is asked only where it looks like that.
    if any(state.url for state in found) or not any(state.failed for state in own):
        return None
    status = look(record.name, record.version, record.replicas)
    return (status.detail.strip() or "no reason was given") if status.phase == "failed" else None


def _adapters(args: Mapping[str, Any]) -> list[str]:
    """Names of LoRA adapters, which requests may ask for like models: `lora_modules` of vLLM."""
    given = args.get("lora_modules") or args.get("lora-modules") or []
    return [str(one["name"]) if isinstance(one, dict) else str(one).partition("=")[0] for one in given]


def _port(host: str, wanted: int) -> int:
    """The wanted port if it is free, else another one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            return free_port(host)
        return int(probe.getsockname()[1])
