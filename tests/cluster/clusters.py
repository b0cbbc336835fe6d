"""Clusters of jobs without jobs: folders, states and specs, for tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from matrix.cluster.folder import ClusterFolder, create, home_of, locked
from matrix.cluster.slurm import JobStatus
from matrix.cluster.states import Command, Node, WorkerJob
from matrix.cluster.waiting import LiveLine
from matrix.spec import SlurmCluster


def spec(root: Path, **more: Any) -> SlurmCluster:
    """A spec with everything filled in that Slurm would be asked for."""
    sizes = {"cpus_per_node": 1, "gpus_per_node": 0, "mem_gb_per_node": 1, "max_hours": 1}
    return SlurmCluster.model_validate({"kind": "slurm", "root": str(root), "executor": "local", **sizes, **more})


def new(root: Path, *, for_runs: bool = False, **more: Any) -> ClusterFolder:
    """The folder of a new cluster."""
    wanted = spec(root, **more)
    with locked(home_of(wanted)):
        return create(wanted, for_runs=for_runs)


def node(job: str, phase: str = "up", *, ago: float = 0, **more: Any) -> Node:
    """What a head or worker says of itself; `ago`: seconds since then."""
    found = {"host": "h1", "ip": "10.0.0.1", "pid": 1, "heartbeat": time.time() - ago, "started": time.time() - ago}
    return Node(job, phase=phase, **{**found, **more})  # type: ignore[arg-type]


def head(folder: ClusterFolder, phase: str = "up", *, ago: float = 0, **more: Any) -> None:
    """Write what the head says of itself."""
    node("h", phase, ago=ago, **{"address": "10.0.0.1:6379", **more}).write(folder.head_file)


def worker(folder: ClusterFolder, job: str, phase: str | None = "up", *, ago: float = 0, **more: Any) -> None:
    """Note a worker, and write what it says of itself if there is a phase."""
    folder.add_workers([WorkerJob(job, spec=folder.cluster().spec, **more)])
    if phase:
        node(job, phase, ago=ago).write(folder.node_file(job))


def command(folder: ClusterFolder, key: str, phase: str = "waiting", **more: Any) -> Command:
    """Write a command."""
    given = {"argv": ("run",), "cwd": str(folder.path), "submitted": time.time(), **more}
    found = Command(key, phase, **given)  # type: ignore[arg-type]
    found.write(folder.command_file(key))
    return found


def status(job: str, state: str = "RUNNING", reason: str = "", started: float = 0) -> JobStatus:
    """What Slurm says of a job."""
    return JobStatus(job, state, reason, "", 0, started, 0)


class Said(LiveLine):
    """Keeps what is said and shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def show(self, text: str) -> None:
        self.lines.append(text)

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
