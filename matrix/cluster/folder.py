"""The folder of a cluster on the shared file system: the meeting place of commands, head and workers.

`ROOT/ID/current` names the folder of the cluster that lives now, `ROOT/ID/CREATED/`; a cluster that is started anew
gets a new one, so that what an old job still does is never taken for the new cluster's. `ROOT/ID/lock` is held by
whoever changes `cluster.json` or starts or ends a cluster. Only its user can read any of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matrix.cluster.states import Cluster, Command, Node, WorkerJob, write
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster

_KEPT = 5
"""Folders of dead clusters whose logs stay."""
_LOCK_S = 300.0
_SAY_LOCKED_S = 3.0


@dataclass(frozen=True)
class ClusterFolder:
    """The folder of one cluster, living or dead.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def home(self) -> Path:
        """Folder of all clusters of this id."""
        return self.path.parent

    @property
    def is_current(self) -> bool:
        """Whether this is the cluster that its id stands for now.

        Raises:
            ClusterError: The folder of its id isn't there: the file system is away, or somebody has removed it.
        """
        try:
            return (self.home / "current").read_text() == self.path.name
        except FileNotFoundError as error:
            # Who clears a cluster away leaves the lock.
            if not (self.home / "lock").exists():
                raise ClusterError(f"{self.home} is not there") from error
            return False

    @property
    def token(self) -> Path:
        """File with Ray's token."""
        return self.path / "token"

    @property
    def key(self) -> Path:
        """File with the key of the cluster's apps, once there are some."""
        return self.path / "key"

    @property
    def jobs(self) -> Path:
        """Folder for submitit: scripts and logs of the jobs."""
        return self.path / "jobs"

    @property
    def logs(self) -> Path:
        """Folder for the logs of engines, observer and monitoring."""
        return self.path / "logs"

    @property
    def ray(self) -> Path:
        """What the observer writes."""
        return self.path / "ray.json"

    @property
    def head_file(self) -> Path:
        """What the head writes of itself."""
        return self.path / "head.json"

    def cluster(self) -> Cluster:
        """What was asked for.

        Raises:
            ClusterError: It can't be read.
        """
        found = Cluster.read(self.path / "cluster.json")
        if found is None:
            raise ClusterError(f"{self.path} holds no cluster")
        return found

    def spec(self) -> SlurmCluster:
        """The spec that the cluster was started with.

        Raises:
            ClusterError: It can't be read.
        """
        try:
            return SlurmCluster.model_validate(self.cluster().spec)
        except ValueError as error:
            raise ClusterError(f"{self.path} was made by another version of matrix: {error}") from error

    def change(self, **changes: Any) -> Cluster:
        """Change fields of `cluster.json`; the caller holds the lock."""
        changed = replace(self.cluster(), **changes)
        changed.write(self.path / "cluster.json")
        return changed

    def add_workers(self, new: list[WorkerJob]) -> None:
        """Note workers; the caller holds the lock."""
        self.change(workers=(*self.cluster().workers, *new))

    def dismiss(self, job_ids: list[str]) -> None:
        """Note that workers should go; the caller holds the lock."""
        workers = self.cluster().workers
        self.change(workers=tuple(replace(w, wanted=w.wanted and w.job_id not in job_ids) for w in workers))

    def front_door(self) -> str | None:
        """Base URL of the front door, as the observer sees it."""
        try:
            found: str | None = json.loads(self.ray.read_text())["front_door"]
        except (FileNotFoundError, ValueError):
            return None
        return found

    def head(self) -> Node | None:
        """How the head is; None before its job starts."""
        return Node.read(self.head_file)

    def node_file(self, name: str) -> Path:
        """What the worker of this name writes of itself."""
        return self.path / "nodes" / f"{name}.json"

    def nodes(self) -> dict[str, Node]:
        """How the workers are whose jobs have started, by name."""
        found = {path.stem: Node.read(path) for path in sorted((self.path / "nodes").glob("*.json"))}
        return {name: node for name, node in found.items() if node is not None}

    def command_file(self, key: str, ending: str = "json") -> Path:
        """Of a command: `json` its state, `log` its output, `env` its environment, `stop`: it should stop."""
        return self.path / "commands" / f"{key}.{ending}"

    def commands(self) -> list[Command]:
        """The commands inside the cluster, in the order in which they came."""
        found = [Command.read(path) for path in sorted((self.path / "commands").glob("*.json"))]
        return sorted((one for one in found if one is not None), key=lambda one: one.submitted)

    @contextmanager
    def lock(self, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keep other commands from changing the cluster."""
        with locked(self.home, say):
            yield

    def try_lock(self) -> AbstractContextManager[bool]:
        """The same, but without waiting; gives whether it is held now."""
        return _tried(self.home)

    def retire(self) -> None:
        """The cluster is no more: what may not outlive it goes, its logs stay; the caller holds the lock."""
        if self.is_current:
            (self.home / "current").unlink(missing_ok=True)
        self.remove_secrets()

    def remove_secrets(self) -> None:
        """Remove the token, the key and the environments of commands."""
        self.token.unlink(missing_ok=True)
        self.key.unlink(missing_ok=True)
        for path in (self.path / "commands").glob("*.env"):
            path.unlink(missing_ok=True)


def home_of(spec: SlurmCluster) -> Path:
    """Folder of all clusters of a spec's id."""
    return root_of(spec.root) / spec.id


def root_of(given: str | None) -> Path:
    """Folder of all clusters; None: the user's own."""
    return Path(given or f"{os.environ.get('MATRIX_DIR') or '~/.matrix'}/clusters").expanduser().absolute()


def find(home: Path) -> ClusterFolder | None:
    """The cluster that an id stands for now, living or not yet cleared away."""
    try:
        name = (home / "current").read_text()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        # Another user's, where several have one root.
        return None
    folder = ClusterFolder(home / name)
    return folder if name and (folder.path / "cluster.json").is_file() else None


def find_all(root: Path) -> list[ClusterFolder]:
    """All clusters below a root."""
    if not root.is_dir():
        return []
    found = [find(home) for home in sorted(root.iterdir()) if home.is_dir()]
    return [folder for folder in found if folder is not None]


def find_old(root: Path, name: str = "") -> list[ClusterFolder]:
    """All clusters below a root, or of one id, also those that are no more but for their logs."""
    return [ClusterFolder(path.parent) for path in sorted(root.glob(f"{name or '*'}/*/cluster.json"))]


def create(spec: SlurmCluster, *, for_runs: bool) -> ClusterFolder:
    """Make the folder of a new cluster; the caller holds the lock."""
    home = home_of(spec)
    _prune(home)
    folder = ClusterFolder(home / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    for path in (folder.path, folder.path / "nodes", folder.path / "commands", folder.jobs, folder.logs):
        path.mkdir(mode=0o700)
    write(folder.token, secrets.token_hex(32), 0o600)
    cluster = Cluster(spec.id, spec.model_dump(mode="json"), for_runs=for_runs, created=time.time())
    cluster.write(folder.path / "cluster.json")
    write(home / "current", folder.path.name)
    return folder


@contextmanager
def locked(home: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keep other commands from starting, changing or ending the cluster of this id.

    Raises:
        ClusterError: Another one takes too long, or the folder can't be made.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (home / "lock").open("w")
    except OSError as error:
        raise ClusterError(
            f"cluster.root={home.parent}: {error.strerror}; give a folder that can be written"
        ) from error
    with lock:
        began, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
            if waited > _LOCK_S:
                raise ClusterError(f"another command has held {home / 'lock'} for {_LOCK_S:.0f} s; see who it is")
            if waited > _SAY_LOCKED_S and not said:
                said = True
                say(f"Another command changes the cluster {home.name}; waiting for it ...")
            time.sleep(0.1)
        yield


@contextmanager
def _tried(home: Path) -> Iterator[bool]:
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _prune(home: Path) -> None:
    """Remove what older clusters left, but for the last few logs."""
    old = sorted(path for path in home.iterdir() if path.is_dir() and os.path.lexists(path / "cluster.json"))
    for path in old[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)
