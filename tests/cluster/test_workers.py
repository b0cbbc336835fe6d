"""What the head does about workers that are lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.cluster import workers as looking
from matrix.cluster.folder import ClusterFolder
from matrix.cluster.states import WorkerJob
from matrix.cluster.workers import Workers, resubmits
from matrix.errors import ClusterError
from tests.cluster.clusters import new, worker
from tests.cluster.fake_jobs import FakeJobs


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    found = new(tmp_path, executor="slurm", max_resubmits=2)
    worker(found, "1")
    worker(found, "2")
    return found


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def head(folder: ClusterFolder, fake_jobs: FakeJobs, said: list[str]) -> Workers:
    fake_jobs.are("RUNNING", "1", "2")
    return Workers(folder, said.append)


def wanted(folder: ClusterFolder) -> list[str]:
    return [one.job_id for one in folder.cluster().workers if one.wanted]


@pytest.mark.parametrize("state", ["PENDING", "REQUEUED", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUE_HOLD"])
def test_who_waits_or_is_put_back_is_not_lost(
    folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs, state: str
) -> None:
    fake_jobs.are(state, "1")
    head.look()
    assert wanted(folder) == ["1", "2"]
    assert fake_jobs.submitted == []


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "COMPLETED", "TIMEOUT", "OUT_OF_MEMORY", None])
def test_a_lost_one_is_asked_for_again(
    folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs, said: list[str], state: str | None
) -> None:
    if state:
        fake_jobs.are(state, "1")
    else:
        del fake_jobs.known["1"]
    head.look()
    assert wanted(folder) == ["2", "100_0"]
    assert folder.cluster().workers[-1].replaces == "1"
    assert said == [f"Worker 1 is lost ({state or 'gone'}): 100_0 takes its place"]
    head.look()
    assert len(fake_jobs.submitted) == 1


def test_it_is_asked_for_with_what_it_had(folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs) -> None:
    spec = folder.cluster().spec
    folder.change(workers=())
    folder.add_workers([WorkerJob("3", nodes=2, spec={**spec, "slurm": {**spec["slurm"], "partition": "gpu"}})])
    head.look()
    ((_, asked, count),) = fake_jobs.submitted
    assert (asked.slurm.partition, count) == ("gpu", 2)


def test_not_more_often_than_allowed(
    folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs, said: list[str]
) -> None:
    for _ in range(4):
        fake_jobs.are("FAILED", *wanted(folder))
        head.look()
    assert len(fake_jobs.submitted) == 2
    assert resubmits(folder.cluster()) == 2
    assert wanted(folder) == []
    assert said[-1].endswith("2 of max_resubmits=2 are used up")
    head.look()
    assert len(said) == 4


def test_a_job_of_several_nodes_uses_up_several(folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs) -> None:
    folder.dismiss(["1", "2"])
    worker(folder, "3", nodes=3)
    head.look()
    assert fake_jobs.submitted == []
    assert wanted(folder) == []


def test_what_slurm_refuses_is_asked_for_later(
    folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs, said: list[str]
) -> None:
    fake_jobs.are("FAILED", "1")
    fake_jobs.refused = {"workers"}
    head.look()
    assert wanted(folder) == ["1", "2"]
    assert said == ["Worker 1 is lost (FAILED); it will be asked for again: Slurm refuses the job: no"]
    fake_jobs.refused = set()
    for _ in range(looking._RETRY_LOOKS - 1):
        head.look()
    assert fake_jobs.submitted == []
    head.look()
    assert wanted(folder) == ["2", "100_0"]


def test_slurm_that_does_not_answer_loses_nobody(folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs) -> None:
    fake_jobs.down = 1
    with pytest.raises(ClusterError, match="Unable to contact"):
        head.look()
    assert wanted(folder) == ["1", "2"]
    head.look()
    assert fake_jobs.submitted == []


@pytest.mark.parametrize("how", ["dismissed", "stopping", "retired"])
def test_who_should_go_is_not_asked_for_again(
    folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs, how: str
) -> None:
    fake_jobs.are("FAILED", "1")
    match how:
        case "dismissed":
            folder.dismiss(["1"])
        case "stopping":
            folder.change(stopping=True)
        case "retired":
            folder.retire()
    head.look()
    assert fake_jobs.submitted == []


def test_who_is_sent_away_while_the_head_asks_slurm(
    monkeypatch: pytest.MonkeyPatch, folder: ClusterFolder, head: Workers, fake_jobs: FakeJobs
) -> None:
    fake_jobs.are("COMPLETED", "1")
    states = fake_jobs.states
    monkeypatch.setattr(looking.jobs, "states", lambda *a: (folder.dismiss(["1"]), states(*a))[1])
    head.look()
    assert fake_jobs.submitted == []
