"""One Ray cluster for the experiments of this process."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix.cluster.inside import inside
from matrix.cluster.kept import find_kept
from matrix.cluster.reaper import MARK
from matrix.errors import ClusterError
from matrix.spec import AttachCluster, ClusterSpec, LocalCluster, SlurmCluster

_LOOPBACK = ("127.0.0.1", "localhost")
_LISTENS_S = 10.0


@dataclass
class RayCluster:
    """A cluster that this process is connected to.

    Attributes:
        spec: What was asked for.
        reaper: Process that ends what Ray leaves of a cluster that was started here; None for one that was there.
    """

    spec: ClusterSpec
    reaper: subprocess.Popen[bytes] | None

    def stop(self) -> None:
        """Disconnect, and end the cluster if it was started here; returns when nothing of it is left."""
        import ray

        ray.shutdown()
        if self.reaper is not None:
            self.reaper.communicate()


def connect(spec: ClusterSpec) -> RayCluster:
    """Start a local cluster or join the one that the spec names.

    Raises:
        ClusterError: It could not be started or reached, and why.
    """
    match spec:
        case LocalCluster():
            return _start_local(spec)
        case AttachCluster():
            return _attach(spec)
        case SlurmCluster():
            return _join_inside(spec)


def _join_inside(spec: SlurmCluster) -> RayCluster:
    folder = inside()
    head = None if folder is None else folder.head()
    if folder is None or head is None or head.phase != "up":
        raise ClusterError(f"the cluster {spec.id} is joined by commands inside it: python run.py cluster=slurm ...")
    _attach(
        AttachCluster(
            kind="attach",
            address=head.address,
            token_path=str(folder.token),
            start_timeout_s=spec.start_timeout_s,
        )
    )
    return RayCluster(spec, None)


def _start_local(spec: LocalCluster) -> RayCluster:
    temp_dir = tempfile.mkdtemp(prefix="matrix-ray-")
    mark = secrets.token_hex(8)
    reaper = subprocess.Popen(
        [sys.executable, "-m", "matrix.cluster.reaper", mark, temp_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    cluster = RayCluster(spec, reaper)
    os.environ |= {
        MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray binds every interface unless it takes this machine for one that can't have a cluster.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_raylet_start_wait_time_s": str(int(spec.start_timeout_s)),
        # Ray gives its workers, and so an engine, a niceness of 15: each other process of the machine would go first.
        "RAY_worker_niceness": "0",
    }
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        _init(
            "start Ray on this machine",
            num_cpus=spec.cpus,
            num_gpus=spec.gpus_per_node,
            object_store_memory=int(spec.object_store_gb * 1e9),
            include_dashboard=spec.dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=temp_dir,
        )
    except BaseException:
        cluster.stop()
        raise
    finally:
        # What this process starts later is none of the cluster's.
        del os.environ[MARK]
    return cluster


def _attach(spec: AttachCluster) -> RayCluster:
    asked = spec
    kept = find_kept() if spec.address == "auto" else None
    if kept is not None:
        spec = kept.attach(spec.start_timeout_s)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if spec.token_path:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(spec.token_path).expanduser())
        os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_gcs_rpc_server_connect_timeout_s"] = str(int(spec.start_timeout_s))
    what = f"reach the Ray cluster at cluster.address={spec.address}"
    host, _, port = spec.address.rpartition(":")
    if host and port.isdigit():
        _refuse_dead(what, host, int(port))
    if host in _LOOPBACK:
        # Ray would take the machine's other address instead, where a cluster of loopback doesn't listen.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    _init(what, address=spec.address)
    return RayCluster(asked, None)


def _refuse_dead(what: str, host: str, port: int) -> None:
    """Say at once that nobody listens: Ray itself goes on trying for minutes, whatever its time-outs are."""
    try:
        socket.create_connection((host, port), _LISTENS_S).close()
    except OSError as error:
        raise ClusterError(f"cannot {what}: {error.strerror or error}; give ip:port of a head that is up") from error


def _init(what: str, **options: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(namespace="matrix", log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        raise ClusterError(f"cannot {what}: {error}") from error
    finally:
        # Ray ends the process at SIGTERM, whatever there is still to do.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                # None: one that wasn't set from Python, which can't be set from there either.
                if handler is not None:
                    signal.signal(number, handler)
