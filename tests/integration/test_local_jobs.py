"""A cluster whose jobs are processes of this machine: real Ray, no Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PRETEND = ["engine=simulated", "model=api", "model.name=pretend", "engine.cpus=0.5", "tracker=none", "dataset.limit=24"]
SMALL = [
    "cluster=slurm", "cluster.cpus_per_node=1", "cluster.object_store_gb=0.1", "cluster.drain_s=3",
    "cluster.start_timeout_s=400",
]  # fmt: skip
LOCAL = [*SMALL, "cluster.executor=local"]
SLOW = [*PRETEND, "engine.first_token_s=1", "run.dir=stopped"]


class User:
    """The commands of a user whose clusters are in a folder of their own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.cwd = place / "work"
        self.cwd.mkdir()
        self.env = {**environment(), "MATRIX_DIR": str(place / "matrix")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from matrix.cli import main; main()", *arguments],
            env={**self.env, "PYTHONPATH": str(ROOT)}, cwd=self.cwd, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def matrix(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=360)
        assert process.returncode == code, f"{arguments}\n{out}\n{err}"
        return out + err

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.matrix("status", "--json")))

    def ups(self) -> list[str]:
        """Jobs of the workers that have joined."""
        workers = self.status()["workers"]
        return [one["job"] for one in workers if one["on"] and one["on"][0]["phase"] == "up"]

    def left(self) -> list[str]:
        """Processes that were started by this user, and what may not outlive a cluster."""
        marks = {f"MATRIX_DIR={self.env['MATRIX_DIR']}".encode()}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if marks & set((entry / "environ").read_bytes().split(b"\0")):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        files = [path for name in ("token", "key", "*.env", "current") for path in self.place.rglob(name)]
        return [line for line in found if line] + [str(path) for path in files]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    found = User(tmp_path_factory.mktemp("jobs"))
    yield found
    wait_for(lambda: not found.left(), "nothing is left", 20)


@pytest.fixture(scope="module")
def stays(user: User) -> Iterator[User]:
    """With a cluster that stays."""
    user.matrix("start_cluster", *LOCAL)
    yield user
    user.matrix("stop_cluster")
    user.matrix("stop_cluster", code=1)


@pytest.mark.parametrize("executor", ["local", "debug"])
def test_a_cluster_that_a_run_starts_ends_with_it(user: User, executor: str) -> None:
    said = user.matrix("run", *SMALL, f"cluster.executor={executor}", *PRETEND, f"run.dir={executor}")
    assert "24 ok, 0 errors" in said
    assert len((user.cwd / executor / "rows.jsonl").read_text().splitlines()) == 24
    wait_for(lambda: not user.left(), "nothing is left", 20)
    # What it said can be read again.
    assert "24 ok, 0 errors" in user.matrix("attach", executor)


def test_a_cluster_of_a_run_that_is_left_alone_ends_by_itself(user: User) -> None:
    user.matrix("run", *LOCAL, *PRETEND, "run.dir=alone", "run.detach=true")
    wait_for(lambda: not user.left(), "nothing is left")
    assert "24 ok, 0 errors" in user.matrix("attach", "alone")


def test_ctrl_c_stops_the_run_and_nothing_else(stays: User) -> None:
    process = stays.start("run", *LOCAL, *SLOW, "workload.concurrency=1")
    rows = stays.cwd / "stopped" / "rows"
    wait_for(lambda: any(path.stat().st_size for path in rows.glob("*")), "it has rows")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=360)
    assert process.returncode == 130, out + err
    assert "Asked it to stop" in err
    found = stays.status()
    assert found["phase"] == "up"
    assert (found["commands"][-1]["phase"], found["commands"][-1]["exit_code"]) == ("stopped", 130)
    # It goes on where it was, left alone, and is seen again.
    assert "matrix attach" in stays.matrix("run", *LOCAL, *SLOW, "run.detach=true")
    assert "24 ok, 0 errors" in stays.matrix("attach", "stopped")


def test_workers_come_are_lost_and_go(stays: User) -> None:
    (first,) = stays.ups()
    stays.matrix("start_cluster", *LOCAL)
    assert len(stays.ups()) == 2
    # With its process, as a machine that fails would.
    for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    os.kill(int(first), signal.SIGKILL)
    wait_for(lambda: first not in stays.ups() and len(stays.ups()) == 2, "another one takes its place")
    assert first in [one["replaces"] for one in stays.status()["workers"]]
    stays.matrix("remove_workers", "count=1")
    assert len(stays.ups()) == 1
    assert "24 ok, 0 errors" in stays.matrix("run", *LOCAL, *PRETEND)


def test_a_start_that_fails_says_why_and_leaves_nothing(user: User) -> None:
    said = user.matrix("start_cluster", *LOCAL, "cluster.id=other", "cluster.start_timeout_s=0.5", code=1)
    assert "start_timeout_s" in said
    assert "Traceback" not in said.partition("its last lines")[0]
    assert not list(user.place.rglob("other/*/token"))
