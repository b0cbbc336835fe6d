"""The head's job: when it ends, what it takes along, and when it comes back; with no Ray."""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix.cluster import head as heading
from matrix.cluster import jobs, node
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.head import Head
from matrix.cluster.inside import Commands
from matrix.cluster.states import Node
from matrix.errors import ClusterError
from tests.cluster.clusters import command, new, worker
from tests.cluster.clusters import node as said_by
from tests.cluster.fake_jobs import FakeJobs


class Job:
    """Job 1 of a cluster, what it did, and what happens look for look."""

    def __init__(self, folder: ClusterFolder) -> None:
        self.folder = folder
        self.rays: list[dict[str, Any]] = []
        self.is_alive = self.comes_back = True
        self.fails = ""
        self.ended: list[str] = []
        self.starts: list[bool] = []
        self.steps: Iterator[Callable[[], object]] = iter(())
        self.number: int | None = None

    def run(self, *steps: Callable[[], object]) -> None:
        self.steps = iter(steps)
        Head(str(self.folder.path), self.folder.spec().model_dump_json())()

    def gets(self, number: int) -> None:
        self.number = number

    def dies(self) -> None:
        self.is_alive = False

    @property
    def node(self) -> Node:
        found = self.folder.head()
        assert found is not None
        return found

    @property
    def has_secrets(self) -> bool:
        return self.folder.token.exists()


class Observer:
    def __init__(self, *_: object) -> None:
        """It has nothing to see."""

    def look(self) -> None:
        """It lives."""


def stand_ins(found: Job) -> dict[str, type]:
    class FakeSignals:
        @property
        def number(self) -> int | None:
            return found.number

        def wait(self, _: float) -> None:
            step = next(found.steps, None)
            assert step is not None, "it stays"
            step()

    class FakeRay:
        environment: dict[str, str] = {}
        where = {"node_id": "n", "address": "10.0.0.1:6379", "metrics": "m", "dashboard": ""}

        def __init__(self, token: Path, timeout_s: float) -> None:
            pass

        def start(self, options: dict[str, Any], _gives_up: object) -> None:
            found.rays.append(options)
            if found.fails:
                raise ClusterError(found.fails)

        @property
        def is_alive(self) -> bool:
            return found.is_alive

        def end(self) -> None:
            found.ended.append("ray")

    class StoppedCommands(Commands):
        def look(self, *, starts: bool = True) -> None:
            found.starts.append(starts)

        def end(self, timeout_s: float, then: str) -> None:
            found.ended.append(f"commands {then}")

    return {"Signals": FakeSignals, "RayNode": FakeRay, "_Observer": Observer, "Commands": StoppedCommands}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, fake_jobs: FakeJobs, tmp_path: Path) -> Job:
    folder = new(tmp_path, executor="slurm")
    folder.change(head_job="1")
    worker(folder, "5", None)
    fake_jobs.are("RUNNING", "1", "5")
    found = Job(folder)

    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    for name, stand_in in stand_ins(found).items():
        monkeypatch.setattr(heading, name, stand_in)
    monkeypatch.setattr(node, "_BEAT_S", 0.05)
    monkeypatch.setattr(jobs, "put_back", lambda: found.ended.append("put back"))
    monkeypatch.setattr(jobs, "may_come_back", lambda *_: found.comes_back)
    return found


def nothing() -> None:
    pass


def test_it_is_up_without_room_for_replicas(job: Job) -> None:
    seen: list[Node] = []
    job.run(lambda: seen.append(job.node), job.folder.retire)
    (options,) = job.rays
    assert (options["num_cpus"], options["num_gpus"]) == (0, 0)
    assert "gcs_address" not in options
    assert (seen[0].phase, seen[0].address, seen[0].job_id) == ("up", "10.0.0.1:6379", "1")


def test_the_job_of_a_cluster_that_is_no_more_does_nothing(job: Job) -> None:
    job.folder.retire()
    job.run()
    assert job.rays == []


def test_a_stopped_cluster_is_cleared_away_by_who_stops_it(job: Job, fake_jobs: FakeJobs) -> None:
    with job.folder.lock():
        job.run(nothing, lambda: job.folder.change(stopping=True))
    assert job.ended == ["commands stopped", "ray"]
    assert fake_jobs.cancelled == ["5"]
    assert (job.node.phase, job.node.address) == ("ended", "")
    assert job.folder.is_current


@pytest.mark.parametrize("how", ["ray", "signal", "retired"])
def test_a_head_that_ends_for_good_takes_the_cluster_along(job: Job, fake_jobs: FakeJobs, how: str) -> None:
    happens = {"ray": job.dies, "signal": lambda: job.gets(signal.SIGTERM), "retired": job.folder.retire}[how]
    if how == "ray":
        with pytest.raises(ClusterError, match="Ray's own process on the head ended"):
            job.run(happens)
    else:
        job.run(happens)
    assert job.ended == ["commands lost", "ray"]
    assert job.node.phase == ("failed" if how == "ray" else "ended")
    assert fake_jobs.cancelled == ["5"]
    assert not job.folder.is_current
    assert not job.has_secrets


def test_a_head_on_which_ray_does_not_start(job: Job, fake_jobs: FakeJobs) -> None:
    job.fails = "Ray is not up on h1"
    with pytest.raises(ClusterError, match="Ray is not up"):
        job.run()
    assert (job.node.phase, job.node.detail) == ("failed", "Ray is not up on h1")
    assert fake_jobs.cancelled == ["5"]
    assert not job.has_secrets


def test_a_head_that_is_ended_by_a_command_does_not_wait_for_its_lock(job: Job) -> None:
    job.fails = "Ray is not up on h1"
    job.folder.change(stopping=True)
    with (job.folder.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match="Ray is not up"):
            job.run()


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_head_whose_time_is_over_comes_back_with_its_commands(
    job: Job, fake_jobs: FakeJobs, number: signal.Signals
) -> None:
    command(job.folder, "k")
    job.run(lambda: job.gets(number))
    assert job.ended == ["commands requeued", "ray", "put back"]
    assert (job.node.phase, job.node.address) == ("requeued", "")
    assert fake_jobs.cancelled == []
    assert job.folder.is_current
    assert job.has_secrets


@pytest.mark.parametrize("how", ["cancelled", "commands have ended", "no commands"])
def test_a_head_that_does_not_come_back(job: Job, how: str) -> None:
    if how != "no commands":
        command(job.folder, "k", "succeeded" if how == "commands have ended" else "running", exit_code=0)
    job.comes_back = how != "cancelled"
    job.run(lambda: job.gets(signal.SIGTERM))
    assert job.ended == ["commands lost", "ray"]
    assert not job.has_secrets


def test_a_cluster_of_runs_ends_with_the_last_one(job: Job, fake_jobs: FakeJobs) -> None:
    job.folder.change(for_runs=True)
    job.run(
        nothing,
        lambda: command(job.folder, "a", "running"),
        lambda: command(job.folder, "b"),
        lambda: command(job.folder, "a", "failed", exit_code=1),
        lambda: command(job.folder, "b", "succeeded", exit_code=0),
    )
    assert job.folder.cluster().stopping
    assert not job.folder.is_current
    assert not job.has_secrets
    assert fake_jobs.cancelled == ["5"]


def test_a_cluster_that_stays_outlives_its_runs(job: Job) -> None:
    command(job.folder, "a", "succeeded", exit_code=0)
    job.run(nothing, nothing, job.folder.retire)


def test_a_folder_that_cannot_be_read_for_a_moment_ends_nothing(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    def fails(_: object) -> None:
        raise OSError(116, "Stale file handle")

    real = ClusterFolder.cluster
    job.run(
        lambda: monkeypatch.setattr(ClusterFolder, "cluster", fails),
        nothing,
        lambda: monkeypatch.setattr(ClusterFolder, "cluster", real),
        nothing,
        job.folder.retire,
    )
    assert job.node.detail == "the cluster is no more"


def test_a_head_that_slurm_started_again_elsewhere_ends_nothing_but_itself(job: Job, fake_jobs: FakeJobs) -> None:
    other = Node("1", "h2", "", 1, "up", started=time.time() + 1)
    job.run(lambda: other.write(job.folder.head_file), *[lambda: threading.Event().wait(0.02)] * 100)
    assert job.ended == ["commands requeued", "ray"]
    assert job.node == other
    assert fake_jobs.cancelled == []
    assert job.has_secrets


def test_an_observer_that_dies_is_started_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[list[str]] = []

    class Dead:
        def poll(self) -> int:
            return 1

    def start(command: list[str], *_: object, **__: object) -> Dead:
        started.append(command)
        return Dead()

    class Ray:
        where = {"address": "10.0.0.1:6379"}
        environment: dict[str, str] = {}

    monkeypatch.setattr(heading, "start_child", start)
    observer = heading._Observer(new(tmp_path), Ray())  # type: ignore[arg-type]
    for _ in range(20):
        observer.look()
    assert len(started) == 6
    assert started[0][-1] == "10.0.0.1:6379"


def test_commands_start_once_the_workers_have_joined_and_then_whatever_comes(job: Job) -> None:
    """A run's own limits aren't meant for hours in the queue."""
    name = job.folder.node_file("5")
    job.run(
        nothing, nothing, lambda: said_by("5").write(name), nothing, lambda: said_by("5", ago=100).write(name), nothing,
        lambda: job.gets(signal.SIGTERM),
    )  # fmt: skip
    assert job.starts[:2] == [False, False]
    assert job.starts[2:] == [True] * len(job.starts[2:])
    assert len(job.starts) > 4
