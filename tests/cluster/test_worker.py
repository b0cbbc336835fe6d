"""A worker's job: when it joins, stays, leaves and comes back, with no Ray."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix.cluster import jobs, node, states
from matrix.cluster import worker as working
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import Node
from matrix.cluster.worker import Worker, busy_nodes
from matrix.errors import ClusterError
from tests.cluster.clusters import head, new, worker
from tests.cluster.fake_jobs import FakeJobs


class Job:
    """Job 5 of a cluster, what it did, and what happens look for look."""

    def __init__(self, folder: ClusterFolder) -> None:
        self.folder = folder
        self.joined: list[dict[str, Any]] = []
        self.drained: list[float] = []
        self.ended = 0
        self.put_back = 0
        self.comes_back = True
        # Of each start of Ray: it lives, ends at once, or doesn't come up.
        self.rays: Iterator[str] = iter(())
        self.steps: Iterator[Callable[[], object]] = iter(())
        self.number: int | None = None
        self.done: Callable[[], bool] = bool

    def run(self, *steps: Callable[[], object]) -> None:
        self.steps = iter(steps)
        Worker(str(self.folder.path), self.folder.spec().model_dump_json())()

    def gets(self, number: int) -> None:
        self.number = number

    def slept(self) -> None:
        threading.Event().wait(0.02)

    @property
    def node(self) -> Node:
        found = self.folder.nodes()["5"]
        assert found is not None
        return found


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, fake_jobs: FakeJobs, tmp_path: Path) -> Job:  # noqa: C901 - stand-ins
    folder = new(tmp_path, executor="slurm", slurm={"partition": "gpu"}, resources={"disk": 1}, gpus_per_node=2)
    folder.change(head_job="1")
    worker(folder, "5", None)
    head(folder)
    fake_jobs.are("RUNNING", "1")
    found = Job(folder)

    class FakeSignals:
        @property
        def number(self) -> int | None:
            return found.number

        def wait(self, _: float) -> None:
            step = next(found.steps, None)
            assert step is not None, "it stays"
            step()

    class FakeRay:
        def __init__(self, token: Path, timeout_s: float) -> None:
            pass

        def start(self, options: dict[str, Any], _: object) -> None:
            self.how = next(found.rays, "lives")
            found.joined.append(options)
            if self.how == "fails":
                raise ClusterError("Ray doesn't start on h1: exit code 1")
            self.where = {"node_id": f"n{len(found.joined)}", "address": "", "metrics": "10.0.0.2:1"}

        @property
        def is_alive(self) -> bool:
            return self.how == "lives"

        def drain(self, seconds: float, done: Callable[[], bool]) -> None:
            found.drained.append(seconds)
            found.done = done

        def end(self) -> None:
            # One that only waited for its head was none.
            found.ended += hasattr(self, "how")

    def put_back() -> None:
        # Ray has ended before.
        assert found.ended == len(found.joined)
        found.put_back += 1

    monkeypatch.setenv("SLURM_JOB_ID", "5")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(working, "Signals", FakeSignals)
    monkeypatch.setattr(working, "RayNode", FakeRay)
    monkeypatch.setattr(node, "_BEAT_S", 0.05)
    monkeypatch.setattr(jobs, "put_back", put_back)
    monkeypatch.setattr(jobs, "may_come_back", lambda *_: found.comes_back)
    return found


def nothing() -> None:
    pass


def test_it_joins_with_what_it_has_and_tells_so(job: Job) -> None:
    seen: list[Node] = []
    job.run(lambda: seen.append(job.node), lambda: job.folder.dismiss(["5"]))
    (options,) = job.joined
    assert options["gcs_address"] == "10.0.0.1:6379"
    assert (options["num_cpus"], options["num_gpus"]) == (1, 2)
    assert options["resources"] == {"partition_gpu": 10000, "disk": 1}
    assert (seen[0].phase, seen[0].node_id, seen[0].metrics) == ("up", "n1", "10.0.0.2:1")
    assert seen[0].ip != ""


@pytest.mark.parametrize("how", ["dismissed", "stopping", "retired", "another", "removed"])
def test_it_leaves_when_it_is_not_wanted(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    def happens() -> None:
        match how:
            case "dismissed":
                job.folder.dismiss(["5"])
            case "stopping":
                job.folder.change(stopping=True)
            case "retired":
                job.folder.retire()
            case "another":
                new(tmp_path)
            case "removed":
                shutil.rmtree(job.folder.home)

    # A folder that isn't there just now may come back.
    monkeypatch.setattr(node, "_BLIND_S", 0.0)
    monkeypatch.setattr(states, "_TRIES", 1)
    job.run(nothing, happens)
    assert job.ended == 1
    assert job.put_back == 0
    # A cluster that ends waits for nothing.
    assert job.drained == ([60] if how == "dismissed" else [])
    if how != "removed":
        assert job.node.phase == "ended"


def test_it_leaves_while_it_waits_for_a_head(job: Job) -> None:
    job.folder.head_file.unlink()
    job.run(nothing, job.folder.retire)
    assert job.joined == []
    assert job.node.detail == "the cluster is no more"


def test_it_comes_before_the_command_that_submitted_it_has_noted_it(job: Job) -> None:
    job.folder.change(workers=())
    job.run(nothing, job.folder.retire)
    assert len(job.joined) == 1


def test_it_joins_again_when_the_head_comes_anew(job: Job) -> None:
    job.run(
        lambda: head(job.folder, "requeued", address=""),
        nothing,
        lambda: head(job.folder, "starting", address=""),
        lambda: head(job.folder, address="10.0.0.9:1"),
        nothing,
        lambda: head(job.folder, address="10.0.0.10:1"),
        lambda: job.folder.dismiss(["5"]),
    )
    assert [options["gcs_address"] for options in job.joined] == ["10.0.0.1:6379", "10.0.0.9:1", "10.0.0.10:1"]
    assert job.ended == 3


def test_it_waits_for_a_head_that_is_not_up(job: Job) -> None:
    head(job.folder, ago=100)
    job.run(
        lambda: head(job.folder, "starting"),
        lambda: head(job.folder, "draining"),
        lambda: job.folder.dismiss(["5"]),
    )
    assert job.joined == []


@pytest.mark.parametrize("how", ["dies", "fails"])
def test_it_gives_up_after_three_quick_ends_of_ray(job: Job, how: str) -> None:
    job.rays = iter([how] * 3)
    with pytest.raises(ClusterError, match="Ray ends again and again"):
        job.run()
    assert len(job.joined) == 3
    assert job.node.phase == "failed"
    assert "three times" in job.node.detail


def test_an_end_of_ray_after_a_long_time_is_none_of_the_three(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    job.rays = iter(["dies"] * 5)
    monkeypatch.setattr(working, "_SOON_S", 0)
    job.run(lambda: job.folder.dismiss(["5"]))
    assert len(job.joined) == 6


def test_the_end_of_a_head_is_none_of_the_three(job: Job) -> None:
    moves = [lambda number=number: head(job.folder, address=f"10.0.0.1:{number}") for number in range(5)]
    job.run(*moves, lambda: job.folder.dismiss(["5"]))
    assert len(job.joined) == 6


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGUSR2, 60), (signal.SIGTERM, 3)])
def test_a_worker_whose_time_is_over_drains_and_comes_back(job: Job, number: signal.Signals, seconds: float) -> None:
    job.run(lambda: job.gets(number))
    assert job.drained == [seconds]
    assert job.put_back == 1
    assert (job.node.phase, job.node.detail) == ("requeued", f"it got {number.name}")


def test_a_worker_whose_time_is_over_while_it_waits_for_the_head_comes_back(job: Job) -> None:
    job.folder.head_file.unlink()
    job.run(lambda: job.gets(signal.SIGUSR2))
    assert job.put_back == 1
    assert job.node.phase == "requeued"


@pytest.mark.parametrize("how", ["cancelled", "dismissed", "stopping", "retired", "second node"])
def test_a_worker_that_is_not_put_back(monkeypatch: pytest.MonkeyPatch, job: Job, how: str) -> None:
    def happens() -> None:
        match how:
            case "cancelled":
                job.comes_back = False
            case "dismissed":
                job.folder.dismiss(["5"])
            case "stopping":
                job.folder.change(stopping=True)
            case "retired":
                job.folder.retire()
        job.gets(signal.SIGTERM)

    if how == "second node":
        monkeypatch.setenv("SLURM_PROCID", "1")
    job.run(happens)
    assert job.put_back == 0
    assert job.folder.nodes()["5.1" if how == "second node" else "5"].phase == "ended"


def test_a_drain_ends_once_no_replica_is_left(job: Job) -> None:
    job.run(lambda: job.folder.dismiss(["5"]))
    assert not job.done()
    job.folder.ray.write_text(json.dumps({"nodes": [{"id": "n1", "busy": True}, {"id": "n2", "busy": False}]}))
    assert busy_nodes(job.folder) == {"n1": True, "n2": False}
    assert not job.done()
    job.folder.ray.write_text(json.dumps({"nodes": [{"id": "n1", "busy": False}]}))
    assert job.done()
    job.folder.ray.write_text("{")
    assert not job.done()
    job.gets(signal.SIGTERM)
    assert job.done()


@pytest.mark.parametrize("error", [ClusterError("can't be read"), OSError(116, "Stale file handle")])
@pytest.mark.parametrize("what", ["cluster", "head", "is_current"])
def test_what_cannot_be_read_for_a_moment_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, job: Job, what: str, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    real = getattr(ClusterFolder, what)
    broken = property(fails) if what == "is_current" else fails
    job.run(
        lambda: monkeypatch.setattr(ClusterFolder, what, broken),
        nothing,
        nothing,
        lambda: monkeypatch.setattr(ClusterFolder, what, real),
        lambda: job.folder.dismiss(["5"]),
    )
    assert len(job.joined) == 1
    assert job.node.detail == "the cluster doesn't want it any more"


def test_a_job_that_slurm_started_again_elsewhere_leaves_and_writes_nothing(job: Job) -> None:
    def elsewhere() -> None:
        Node("5", "h2", "", 1, "up", started=time.time() + 1).write(job.folder.node_file("5"))

    job.run(elsewhere, *[job.slept] * 100)
    assert job.node.host == "h2"
    assert job.put_back == 0


def test_a_head_that_says_nothing_is_asked_about(
    monkeypatch: pytest.MonkeyPatch, job: Job, fake_jobs: FakeJobs
) -> None:
    monkeypatch.setattr(working, "_HEAD_GONE_S", 0)
    job.folder.head_file.unlink()
    fake_jobs.down = 1
    job.run(nothing, nothing, lambda: fake_jobs.are("FAILED", "1"))
    assert job.node.detail == "the head's job 1 is gone"


def test_a_head_that_never_comes(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    monkeypatch.setattr(working, "_HEAD_GONE_S", 0)
    job.folder.head_file.unlink()
    job.folder.change(spec={**job.folder.cluster().spec, "queue_timeout_s": 1e-9})
    job.run()
    assert job.node.detail == "the head didn't come within 1e-09 s (queue_timeout_s)"


def test_the_nodes_of_one_job_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    monkeypatch.setenv("SLURM_PROCID", "2")
    job.run(lambda: job.folder.dismiss(["5"]))
    assert job.folder.nodes().keys() == {"5.2"}
    assert job.folder.nodes()["5.2"].job_id == "5"
