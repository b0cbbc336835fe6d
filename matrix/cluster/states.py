"""What is written about a cluster, and by whom. Each file has one writer and is replaced as a whole.

- `cluster.json` (commands, under a lock): what was asked for
- `head.json` (the head's job): where it is, and how it is
- `nodes/NAME.json` (each worker): the same of a worker
- `ray.json` (the observer, a process beside the head): nodes, apps and front door as Ray knows them
- `commands/KEY.json` (the head): how far a command is that runs inside the cluster
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from matrix.errors import ClusterError

_SILENT_S = 8.0
_TRIES = 4
_RETRY_S = 0.5
STALE_S = 30.0
"""Whoever has written nothing for so long is gone, or cut off."""


@dataclass(frozen=True)
class State:
    """One file."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What the file holds; None if there is none.

        Raises:
            ClusterError: It holds something else.
        """
        text = _text_of(path)
        if text is None:
            return None
        try:
            return cls.of(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            way_out = "to end a cluster in spite of that, scancel its jobs (squeue --me) and remove the file"
            message = f"{path} can't be read ({error}): another version of matrix may have made it; {way_out}"
            raise ClusterError(message) from error

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """From what was read; fields that a newer version added are passed over."""
        names = {one.name for one in fields(cls)}
        return cls(**{key: value for key, value in found.items() if key in names})

    def write(self, path: Path) -> None:
        """Replace the file as a whole."""
        write(path, json.dumps(asdict(self), indent=2))

    def beat(self, path: Path) -> None:
        """The same for what is written again in a moment: it need not outlive a power failure."""
        write(path, json.dumps(asdict(self), indent=2), durable=False)


@dataclass(frozen=True)
class WorkerJob(State):
    """One worker job: a task of an array, or a job of several nodes.

    Attributes:
        job_id: Slurm's (`123_0` for a task of an array), or a process id for `executor=local`.
        nodes: Nodes that it has.
        partition: Where it was asked for; empty: Slurm's default.
        account: On whose account.
        qos: With which quality of service.
        wanted: False: it was told to go.
        replaces: The lost job that this one was submitted for.
        spec: The cluster spec that it was submitted with, as plain data.
    """

    job_id: str
    nodes: int = 1
    partition: str = ""
    account: str = ""
    qos: str = ""
    wanted: bool = True
    replaces: str = ""
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster(State):
    """`cluster.json`.

    Attributes:
        id: Name of the cluster.
        spec: The cluster spec, as plain data.
        head_job: The head's job; empty until it is submitted.
        workers: The worker jobs.
        for_runs: It was started by a run, and ends with the last command inside it.
        stopping: It is being stopped.
        created: Unix time.
    """

    id: str
    spec: dict[str, Any]
    head_job: str = ""
    workers: tuple[WorkerJob, ...] = ()
    for_runs: bool = False
    stopping: bool = False
    created: float = 0.0

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """From what was read."""
        specs = found["specs"]
        workers = tuple(WorkerJob.of({**one, "spec": specs[one["spec"]]}) for one in found["workers"])
        return super().of({**found, "workers": workers})

    def write(self, path: Path) -> None:
        """Replace the file as a whole, with each spec once: a thousand workers share one, and read it all the time."""
        specs: list[dict[str, Any]] = []
        plain = asdict(self)
        for worker in plain["workers"]:
            if worker["spec"] not in specs:
                specs.append(worker["spec"])
            worker["spec"] = specs.index(worker["spec"])
        write(path, json.dumps({**plain, "specs": specs}, indent=1))

    @property
    def executor(self) -> str:
        """Submitit's executor."""
        return str(self.spec["executor"])


NodePhase = Literal["starting", "up", "draining", "requeued", "ended", "failed"]


@dataclass(frozen=True)
class Node(State):
    """`head.json`, or a worker's file.

    Attributes:
        job_id: Of its job.
        host: Name of its machine.
        ip: Its address.
        pid: Process id of the job there.
        phase: How it is; `requeued`: its time was over, and Slurm will start it again.
        node_id: Ray's id of the node.
        address: Of Ray's control plane, `ip:port`.
        dashboard_port: On the head's loopback; 0: none.
        metrics: `ip:port` of its Prometheus page.
        monitoring: Ports on the head's loopback by name (`prometheus`, `grafana`).
        detail: What there is to say: why it failed, what it drains for.
        heartbeat: Unix time of the last write.
        started: Unix time.
    """

    job_id: str
    host: str
    ip: str
    pid: int
    phase: NodePhase
    node_id: str = ""
    address: str = ""
    dashboard_port: int = 0
    metrics: str = ""
    monitoring: dict[str, int] = field(default_factory=dict)
    detail: str = ""
    heartbeat: float = 0.0
    started: float = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether it was heard of lately."""
        return time.time() - self.heartbeat < STALE_S

    @property
    def is_silent(self) -> bool:
        """Whether it has missed some heartbeats, so that it is worth asking Slurm about its job."""
        return time.time() - self.heartbeat > _SILENT_S


CommandPhase = Literal["waiting", "running", "requeued", "succeeded", "failed", "stopped", "lost"]


@dataclass(frozen=True)
class Command(State):
    """A command that runs inside the cluster: a run, a sweep, a deploy.

    Attributes:
        key: Its name in the cluster.
        phase: How far it is; `requeued`: cut off with the head, and goes on with it.
        exit_code: Once it has ended.
        argv: What `matrix` is called with.
        cwd: Folder in which it was typed.
        run_dir: Where it writes, or its sweep does; empty for a command that isn't a run.
        pid: Of its process on the head's node.
        submitted: Unix time.
        heartbeat: Unix time of the last write.
        starts: Times that it was started.
    """

    key: str
    phase: CommandPhase
    argv: tuple[str, ...]
    cwd: str
    run_dir: str = ""
    exit_code: int | None = None
    pid: int = 0
    submitted: float = 0.0
    heartbeat: float = 0.0
    starts: int = 0

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """From what was read."""
        return super().of({**found, "argv": tuple(found["argv"])})

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.phase in ("succeeded", "failed", "stopped", "lost")


def _text_of(path: Path) -> str | None:
    """What a file holds, None if there is none; a file system that is away for a moment is asked again.

    Raises:
        ClusterError: It can't be read.
    """
    for left in reversed(range(_TRIES)):
        try:
            return path.read_text()
        except FileNotFoundError:
            if path.parent.is_dir() or not left:
                return None
        except OSError as error:
            if not left:
                raise ClusterError(f"{path}: {error.strerror}") from error
        time.sleep(_RETRY_S)
    return None


def write(path: Path, text: str, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file as a whole."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    aside.replace(path)
