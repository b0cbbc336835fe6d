"""A local cluster that outlives the command that started it: where it is noted, how it is found, started and stopped.

Its state is a folder, `~/.matrix/clusters/local` (`MATRIX_DIR` takes the place of `~/.matrix`), that only its user can
read: `cluster.json` (address, process id of its keeper), `token` (Ray's), `keeper.log`, and `logs/` of its engines.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matrix.errors import ClusterError
from matrix.spec import AttachCluster, LocalCluster

_LAST_LINES = 15
_STOP_S = 60.0


@dataclass(frozen=True)
class KeptCluster:
    """The cluster.

    Attributes:
        folder: Where its state is.
        address: `ip:port` of its head.
        pid: Process id of its keeper, which ends it when it gets SIGTERM.
        started: Start time of that process in the kernel's ticks: an id may be given again.
        spec: What it was started with.
    """

    folder: Path
    address: str
    pid: int
    started: str
    spec: LocalCluster

    @property
    def token_path(self) -> Path:
        """File with its Ray token."""
        return self.folder / "token"

    @property
    def log_dir(self) -> Path:
        """Folder for the logs of its engines."""
        return self.folder / "logs"

    def attach(self, start_timeout_s: float = 60) -> AttachCluster:
        """What joins it."""
        return AttachCluster(
            kind="attach",
            address=self.address,
            token_path=str(self.token_path),
            start_timeout_s=start_timeout_s,
        )


def state_folder() -> Path:
    """Where the state of the kept cluster is, if there is one."""
    return Path(os.environ.get("MATRIX_DIR") or "~/.matrix").expanduser() / "clusters" / "local"


def find_kept() -> KeptCluster | None:
    """The kept cluster; None if there is none, or only what a dead one left."""
    folder = state_folder()
    try:
        found = json.loads((folder / "cluster.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    spec = LocalCluster.model_validate(found["spec"])
    kept = KeptCluster(folder, found["address"], found["pid"], found["started"], spec)
    return kept if start_time(kept.pid) == kept.started else None


def start_kept(spec: LocalCluster) -> KeptCluster:
    """Start it, unless it is there.

    Raises:
        ClusterError: It doesn't come up, with the last lines of its log.
    """
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with _alone(folder):
        kept = find_kept()
        if kept is not None:
            return kept
        (folder / "cluster.json").unlink(missing_ok=True)
        log = folder / "keeper.log"
        with log.open("wb") as output:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "matrix.cluster.keeper", str(folder), spec.model_dump_json()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while (kept := find_kept()) is None:
            if keeper.poll() is not None:
                lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
                raise ClusterError("\n".join([f"the cluster does not start ({log}):", *lines]))
            time.sleep(0.1)
        return kept


def stop_kept(kept: KeptCluster) -> None:
    """Stop it with all its apps; returns when nothing of it is left.

    Raises:
        ClusterError: Its keeper doesn't end.
    """
    os.kill(kept.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while start_time(kept.pid) == kept.started:
        if time.monotonic() > deadline:
            raise ClusterError(f"the keeper of the cluster (process {kept.pid}) does not end within {_STOP_S:.0f} s")
        time.sleep(0.1)
    (kept.folder / "cluster.json").unlink(missing_ok=True)
    kept.token_path.unlink(missing_ok=True)


def start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks (field 22 of proc(5)'s stat); None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
