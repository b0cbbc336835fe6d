"""A kept cluster of a test's own, by the commands of a user, and the processes of its engines."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.command import ROOT, environment


class Cluster:
    """The commands of a user with a cluster of their own.

    Args:
        folder: Takes the place of `~/.matrix`.
    """

    def __init__(self, folder: Path) -> None:
        self.env = {**environment(), "MATRIX_DIR": str(folder)}
        self.logs = folder / "clusters" / "local" / "logs"

    @classmethod
    @contextmanager
    def until_the_end(cls, folder: Path) -> Iterator[Self]:
        """A cluster that is stopped in the end; the first deploy starts it."""
        cluster = cls(folder)
        try:
            yield cluster
        finally:
            cluster.command("stop_cluster")
        # Nothing of it is left: a second stop finds none.
        cluster.command("stop_cluster", code=1)

    def start(self, **spec: Any) -> None:
        """Start it before anything is deployed; else the first deploy does.

        Args:
            spec: Of `LocalCluster`.
        """
        script = (
            "import sys; from matrix.cluster.kept import *; start_kept(LocalCluster.model_validate_json(sys.argv[1]))"
        )
        command = [sys.executable, "-c", script, json.dumps({"kind": "local", **spec})]
        subprocess.run(command, env=self.env, check=True, timeout=360)

    def command(self, *arguments: str, code: int = 0, timeout_s: float = 360) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from matrix.cli import main; main()", *arguments],
            env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def deploy(self, *arguments: str, code: int = 0, timeout_s: float = 360) -> str:
        done = self.command("deploy_applications", *arguments, code=code, timeout_s=timeout_s)
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.command("status", "--json").stdout))

    def app(self, name: str = "pretend") -> dict[str, Any]:
        return next(app for app in self.status()["apps"] if app["name"] == name)

    def urls(self, name: str = "pretend") -> list[str]:
        return sorted(replica["url"] for replica in self.app(name)["replicas"] if replica["url"])

    def door(self, name: str = "pretend") -> str:
        return f"{self.status()['front_door']}/{name}/v1"

    def until(self, true: Callable[[], bool], timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.25)

    @property
    def key(self) -> str:
        return self.command("status", "--key").stdout.strip()


def processes(*words: str) -> dict[int, list[str]]:
    """Command lines of this machine's processes that have all these words in theirs, guards excluded."""
    # The nodes of a Slurm that other tests start have process namespaces, and ports, of their own.
    ours = Path("/proc/self/ns/pid").readlink()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                here = (entry / "ns" / "pid").readlink() == ours
            except OSError:
                continue
            if here and set(words) <= set(line) and "matrix.apps.guard" not in line:
                found[int(entry.name)] = line
    return found


def engine_pids(url: str) -> list[int]:
    """Processes of the server that listens at a replica's address."""
    return list(processes(url.split(":")[2].removesuffix("/v1")))
