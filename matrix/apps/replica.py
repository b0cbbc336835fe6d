"""The class of an app's Serve deployment: an engine's processes, announced when they are ready, watched, drained."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from matrix.apps.directory import NEWS_S, ReplicaState, directory
from matrix.apps.launch import GRPC_PORT, HEAD, HEAD_PORT, HOST, PORT, Launch
from matrix.apps.process import GuardedProcess, free_port
from matrix.errors import AppError
from matrix.serving.metric_names import Load, load_of

_ASK_S = 0.1
"""Seconds between two questions whether an engine that loads is ready."""
_TELL_S = 1.0
"""Seconds between two looks at its log meanwhile."""
_LOOK_S = 1.0
"""Seconds between two looks at the engine's figures."""
_ANSWERS_S = 10.0
"""An engine whose /health takes longer hangs."""
_NODE_ANSWERS_S = 60.0
"""Another node of the replica that doesn't answer for so long is gone; the first answer waits for its start."""
_ENDS_S = 10.0
"""Seconds for what runs on other nodes to end."""
_HANGS_AFTER = 3
"""Looks in a row that may fail."""


class Stall:
    """Tells a working engine from one that hangs: with requests running the tokens have to grow.

    Args:
        limit_s: Seconds without a token after which it hangs.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._tokens = -1.0
        self._since = 0.0

    def seen(self, load: Load, now: float) -> str | None:
        """Look at the figures; returns what is wrong, if something is."""
        if not load.running or load.tokens_total != self._tokens:
            self._tokens, self._since = load.tokens_total, now
        if now - self._since <= self._limit_s:
            return None
        return f"{load.running:.0f} requests running and no token for {now - self._since:.0f} s"


class Replica:
    """One replica.

    Args:
        app: Name of the app.
        version: Fingerprint of what is deployed.
        launch: Its processes.
        log_dir: Folder for their logs.
        limits: Seconds: `start`, `drain`, `hang`.
    """

    def __init__(self, app: str, version: str, launch: Launch, log_dir: str, limits: dict[str, float]) -> None:
        import ray
        from ray import serve

        self._app, self._version, self._launch, self._limits = app, version, launch, limits
        self._id = serve.get_replica_context().replica_id.unique_id
        self._directory = directory()
        self._log_dir = Path(log_dir)
        self._going = threading.Event()
        self._trouble: str | None = None
        host = ray.util.get_node_ip_address()
        keep_serve_on(host)
        port, grpc_port = free_port(host), free_port(host) if launch.grpc else None
        self._root = f"http://{host}:{port}"
        self._urls = (f"{self._root}/v1", f"grpc://{host}:{grpc_port}" if grpc_port else None)
        fill_in = {HOST: host, PORT: str(port), GRPC_PORT: str(grpc_port)}
        self._others: list[Any] = []
        if len(launch.commands) > 1:
            head_port = str(free_port(host))
            fill_in |= {HEAD: host, f"{HEAD}:{HEAD_PORT}": f"{host}:{head_port}", HEAD_PORT: head_port}
            self._others = _start_others(launch, fill_in, self._log_dir, self._id)
        self._engine = GuardedProcess(
            launch.title, launch.commands[0], launch.environment, self._log("engine"), fill_in, launch.secrets
        )
        self._processes = [self._engine]
        self._wait_until_healthy(time.monotonic() + limits["start"])
        if launch.grpc == "sidecar":
            self._start_sidecar(host, port, grpc_port)
        self._announce(ready=True, detail="ready")
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def check_health(self) -> None:
        """Serve asks every few seconds; an error makes it replace the replica.

        Raises:
            AppError: The engine has ended, or hangs.
        """
        if self._trouble:
            raise AppError(self._trouble)

    def __del__(self) -> None:
        """Serve's hook for a replica that goes: finish what is under way, then end all processes of the engine."""
        import ray

        self._going.set()
        patient = ray.get(self._directory.withdraw.remote(self._app, self._id))
        if patient and not self._trouble:
            self._drain(time.monotonic() + self._limits["drain"])
        self._end()

    def _wait_until_healthy(self, deadline: float) -> None:
        told_at = 0.0
        while not _answers(f"{self._root}/health", 5):
            failed = self._ended()
            if failed or time.monotonic() > deadline:
                message = failed or self._engine.failure()
                self._announce(ready=False, detail=message, failed=True)
                raise AppError(message)
            if time.monotonic() - told_at > _TELL_S:
                told_at = time.monotonic()
                self._announce(ready=False, detail=self._engine.last_line())
            time.sleep(_ASK_S)

    def _start_sidecar(self, host: str, port: int, grpc_port: int | None) -> None:
        command = [sys.executable, "-m", "matrix.serving.grpc_sidecar", "--upstream", f"http://{host}:{port}"]
        command += ["--host", host, "--port", str(grpc_port)]
        sidecar = GuardedProcess("the gRPC server", command, self._launch.environment, self._log("grpc"), {})
        self._processes.append(sidecar)
        deadline = time.monotonic() + 60
        while not _listens(host, grpc_port or 0):
            if sidecar.exit_code is not None or time.monotonic() > deadline:
                raise AppError(sidecar.failure())
            time.sleep(0.1)

    def _watch(self) -> None:
        """Look after the engine until it goes: tell its load, and end this replica when it is past help."""
        stall, silent, heard_at = Stall(self._limits["hang"]), 0, time.monotonic()
        while not self._going.wait(_LOOK_S):
            trouble = self._ended()
            text = None if trouble else _get(f"{self._root}/metrics", self._launch, _ANSWERS_S)
            silent = 0 if text is not None else silent + 1
            if text is not None:
                heard_at = time.monotonic()
                load = load_of(text)
                self._directory.report.remote(self._app, self._id, load.running, load.waiting)
                trouble = stall.seen(load, time.monotonic()) if self._launch.counts_tokens else None
            if silent >= _HANGS_AFTER:
                silence = f"{self._launch.title} did not answer for {time.monotonic() - heard_at:.0f} s"
                trouble = trouble or f"{silence}; its last line: {self._engine.last_line()}"
            if trouble and not self._going.is_set():
                self._give_up(trouble)
                return

    def _give_up(self, trouble: str) -> None:
        """Nobody may come here any more; Serve learns of it at its next look, and starts another replica."""
        import ray

        self._trouble = trouble
        ray.get(self._directory.fail.remote(self._app, self._id, trouble))
        self._end()
        # Serve asks three times before it believes a replica that says it is ill, and once when it is gone.
        os._exit(1)

    def _end(self) -> None:
        """End all processes, on all nodes; returns when they are gone."""
        import ray

        ending = [other.end.remote() for other in self._others]
        for process in reversed(getattr(self, "_processes", [])):
            process.end()
        if ending:
            ray.wait(ending, num_returns=len(ending), timeout=_ENDS_S)
        for other in self._others:
            ray.kill(other)

    def _drain(self, deadline: float) -> None:
        """Wait until nobody is served any more, and long enough that all clients have seen that it is going."""
        time.sleep(min(NEWS_S + 1, max(deadline - time.monotonic(), 0)))
        while time.monotonic() < deadline:
            text = _get(f"{self._root}/metrics", self._launch, _ANSWERS_S)
            load = load_of(text) if text is not None else None
            if load is None or load.running + load.waiting == 0:
                return
            time.sleep(0.25)

    def _ended(self) -> str | None:
        """What has ended of its processes, which end each other; None if all run."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        failures = [process.failure() for process in self._processes if process.exit_code is not None]
        for rank, other in enumerate(self._others, 1):
            try:
                failure: str | None = ray.get(other.failure.remote(), timeout=_NODE_ANSWERS_S)
            except (RayActorError, GetTimeoutError):
                failure = f"{self._launch.title} (node {rank} of the replica) is gone, and maybe its machine"
            failures += [failure] if failure else []
        return "\n".join(failures) or None

    def _announce(self, *, ready: bool, detail: str, failed: bool = False) -> None:
        url, grpc_url = self._urls if ready else (None, None)
        state = ReplicaState(self._id, self._version, url, grpc_url, detail, failed=failed)
        self._directory.announce.remote(self._app, state)

    def _log(self, what: str) -> Path:
        return self._log_dir / f"{what}-{self._id}.log"


class OtherNode:
    """An actor on another node of a replica: runs that node's process of the engine."""

    def __init__(self, launch: Launch, rank: int, fill_in: dict[str, str], log: str) -> None:
        import ray

        here = {**fill_in, HOST: ray.util.get_node_ip_address()}
        title = f"{launch.title} (node {rank} of the replica)"
        command = launch.commands[rank]
        self._process = GuardedProcess(title, command, launch.environment, Path(log), here, launch.secrets)

    def failure(self) -> str | None:
        """Why it isn't running any more; None if it is."""
        return None if self._process.exit_code is None else self._process.failure()

    def end(self) -> None:
        """End it; returns when it is gone."""
        self._process.end()


def _start_others(launch: Launch, fill_in: dict[str, str], log_dir: Path, replica: str) -> list[Any]:
    """One actor in each bundle of the replica's placement group but the first, which is the replica's own."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.get_current_placement_group()
    actors = []
    for rank in range(1, len(launch.commands)):
        bundle = group.bundle_specs[rank]
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        actor = ray.remote(num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), scheduling_strategy=where)(
            OtherNode
        )
        actors.append(actor.remote(launch, rank, fill_in, str(log_dir / f"engine-{replica}-node{rank}.log")))
    return actors


def keep_serve_on(host: str) -> None:
    """Make Serve open the replica's gRPC port where Ray listens; it would take every interface (2.60, replica.py)."""
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", host))


def _answers(url: str, timeout_s: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - our own engine, http
            return bool(answer.status == 200)
    except OSError:
        return False


def _get(url: str, launch: Launch, timeout_s: float) -> str | None:
    """The page, empty if the server refuses it; None if nobody answers."""
    key = launch.environment.get("MATRIX_API_KEY", "")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - as above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 - as above
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError:
        return ""
    except OSError:
        return None


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True
