"""Start, grow, shrink and end a cluster, with no Slurm: what is left of it in each case."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from matrix.cluster import launch
from matrix.cluster.folder import ClusterFolder, find
from matrix.errors import ClusterError
from tests.cluster.clusters import Said, command, head, new, node, spec, worker
from tests.cluster.fake_jobs import FakeJobs


def up(root: Path, fake_jobs: FakeJobs) -> None:
    """Head and workers of the newest cluster are up."""
    folder = find(root / "slurm")
    assert folder is not None
    cluster = folder.cluster()
    node(cluster.head_job, address="10.0.0.1:1").write(folder.head_file)
    for one in cluster.workers:
        node(one.job_id).write(folder.node_file(one.job_id))
    fake_jobs.are("RUNNING", cluster.head_job, *(one.job_id for one in cluster.workers))


def started(root: Path, fake_jobs: FakeJobs, **more: object) -> ClusterFolder:
    fake_jobs.then(lambda: up(root, fake_jobs))
    return launch.start(spec(root, executor="slurm", **more), Said())


def left(root: Path) -> list[Path]:
    return [*root.rglob("token"), *root.rglob("key"), *root.rglob("*.env"), *root.rglob("current")]


def test_a_start_submits_head_and_workers_and_waits_for_both(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    said = Said()
    fake_jobs.then(lambda: up(tmp_path, fake_jobs))
    folder = launch.start(spec(tmp_path, executor="slurm", workers=3), said)
    cluster = folder.cluster()
    assert (cluster.head_job, cluster.for_runs) == ("100", False)
    assert [one.job_id for one in cluster.workers] == ["101_0", "101_1", "101_2"]
    assert said.lines[:2] == [
        "Submitted the head of cluster slurm: job 100",
        "Submitted 3 workers: jobs 101_0 to 101_2",
    ]
    found = list[ClusterFolder]()
    launch.find_up(spec(tmp_path), Said(), found.append)
    assert found == [folder]


def test_a_start_that_does_not_wait(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = launch.start(spec(tmp_path, executor="slurm"), Said(), wait=False)
    assert folder.head() is None
    assert fake_jobs.cancelled == []


def test_a_second_start_adds_workers_of_its_own_kind(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    again = started(tmp_path, fake_jobs, workers=2, slurm={"partition": "gpu"})
    assert again == folder
    workers = folder.cluster().workers
    assert [one.job_id for one in workers] == ["101_0", "102_0", "102_1"]
    assert [one.spec["slurm"]["partition"] for one in workers] == [None, "gpu", "gpu"]
    assert [role for role, *_ in fake_jobs.submitted] == ["head", "workers", "workers"]


def test_a_run_takes_the_cluster_that_is_there_as_it_is(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    assert launch.start(spec(tmp_path, workers=5), Said(), for_runs=True, grows=False) == folder
    assert len(fake_jobs.submitted) == 2
    assert not folder.cluster().for_runs


def test_one_that_a_run_started_stays_once_somebody_else_wants_it(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    fake_jobs.then(lambda: up(tmp_path, fake_jobs))
    folder = launch.start(spec(tmp_path, executor="slurm"), Said(), for_runs=True)
    assert folder.cluster().for_runs
    launch.start(spec(tmp_path, executor="slurm"), Said(), for_runs=True, grows=False)
    assert folder.cluster().for_runs
    launch.start(spec(tmp_path, executor="slurm"), Said(), grows=False)
    assert not folder.cluster().for_runs


def test_some_workers_are_enough_for_a_start(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    def one_is_up() -> None:
        up(tmp_path, fake_jobs)
        folder = find(tmp_path / "slurm")
        assert folder is not None
        folder.node_file("101_1").unlink()

    fake_jobs.then(one_is_up)
    launch.start(spec(tmp_path, executor="slurm", workers=2, min_workers=1), Said())


def test_another_kind_of_jobs_wants_another_id(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    started(tmp_path, fake_jobs)
    with pytest.raises(ClusterError, match=r"cluster\.executor=local: the cluster slurm runs with slurm; another"):
        launch.start(spec(tmp_path, executor="local"), Said())


@pytest.mark.parametrize("role", ["head", "workers"])
def test_what_cannot_be_submitted_whole_leaves_nothing(fake_jobs: FakeJobs, tmp_path: Path, role: str) -> None:
    fake_jobs.refused = {role}
    fake_jobs.then(*[lambda: None] * 5)
    with pytest.raises(ClusterError, match="Slurm refuses"):
        launch.start(spec(tmp_path, executor="slurm"), Said())
    assert fake_jobs.cancelled == (["100"] if role == "workers" else [])
    assert left(tmp_path) == []


def test_workers_that_cannot_be_added_leave_the_cluster_alone(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    fake_jobs.refused = {"workers"}
    with pytest.raises(ClusterError, match="Slurm refuses"):
        launch.start(spec(tmp_path, executor="slurm"), Said())
    assert folder.is_current
    assert fake_jobs.cancelled == []


def interrupted() -> None:
    raise KeyboardInterrupt


def fails(root: Path) -> None:
    folder = find(root / "slurm")
    assert folder is not None
    head(folder, "failed", detail="no Ray here")


@pytest.mark.parametrize("how", ["fails", "interrupted"])
def test_a_start_that_fails_cancels_everything(fake_jobs: FakeJobs, tmp_path: Path, how: str) -> None:
    fake_jobs.then(interrupted if how == "interrupted" else lambda: fails(tmp_path), lambda: None)
    said = Said()
    with pytest.raises(KeyboardInterrupt if how == "interrupted" else ClusterError):
        launch.start(spec(tmp_path, executor="slurm", workers=2), said)
    assert set(fake_jobs.cancelled) == {"100", "101_0", "101_1"}
    assert left(tmp_path) == []
    assert said.lines[-2:] == ["Ending what was started ...", "Stopped the cluster slurm"]


def test_an_addition_that_fails_takes_only_its_own_workers_away(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    fake_jobs.then(lambda: fake_jobs.are("PENDING", "102_0"), interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch.start(spec(tmp_path, executor="slurm"), Said())
    assert set(fake_jobs.cancelled) == {"102_0"}
    assert folder.is_current
    assert [one.wanted for one in folder.cluster().workers] == [True, False]


def test_a_question_that_slurm_does_not_answer_tears_nothing_down(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    head(folder, ago=100)
    for act in (
        lambda: launch.start(spec(tmp_path, executor="slurm"), Said()),
        lambda: launch.find_up(spec(tmp_path), Said(), print),
        lambda: launch.lives(folder),
    ):
        fake_jobs.down = 1
        with pytest.raises(ClusterError, match="Unable to contact"):
            act()
    assert folder.is_current
    assert folder.token.exists()
    assert fake_jobs.cancelled == []
    assert launch.lives(folder)


def test_slurm_that_is_away_while_a_start_waits_cancels_nothing(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    fake_jobs.down = 3
    fake_jobs.then(lambda: None, lambda: None, lambda: up(tmp_path, fake_jobs))
    launch.start(spec(tmp_path, executor="slurm"), Said())
    assert fake_jobs.cancelled == []


@pytest.mark.parametrize(
    ("state", "phase", "ago", "lives"),
    [
        ("PENDING", "", 0, True),
        ("RUNNING", "", 0, True),
        ("CANCELLED", "", 0, False),
        ("RUNNING", "up", 0, True),
        ("RUNNING", "up", 100, True),
        ("PENDING", "requeued", 100, True),
        ("NODE_FAIL", "up", 100, False),
        ("RUNNING", "failed", 0, False),
        ("COMPLETING", "ended", 0, False),
    ],
)
def test_which_clusters_live(
    fake_jobs: FakeJobs, tmp_path: Path, state: str, phase: str, ago: float, lives: bool
) -> None:
    folder = new(tmp_path, executor="slurm")
    assert not launch.lives(folder)
    folder.change(head_job="100")
    fake_jobs.are(state, "100")
    if phase:
        head(folder, phase, ago=ago)
    assert launch.lives(folder) == lives
    folder.change(stopping=True)
    assert not launch.lives(folder)


def test_what_a_dead_cluster_left_is_cleared_away(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    dead = started(tmp_path, fake_jobs)
    command(dead, "k", "running")
    dead.command_file("k", "env").touch()
    head(dead, ago=100)
    fake_jobs.are("NODE_FAIL", "100")
    said = Said()
    fake_jobs.then(lambda: up(tmp_path, fake_jobs))
    folder = launch.start(spec(tmp_path, executor="slurm"), said)
    assert folder != dead
    assert said.lines[0] == "The cluster slurm is dead; what it left is cleared away"
    assert fake_jobs.cancelled == ["101_0"]
    assert not dead.token.exists()
    assert not dead.command_file("k", "env").exists()
    assert folder.token.exists()


def test_no_cluster_is_up(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"there is no cluster slurm \(cluster\.id\): matrix start_cluster"):
        launch.find_up(spec(tmp_path), Said(), print)


def test_a_stop_lets_the_head_end_by_itself(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)

    def leaves() -> None:
        assert folder.cluster().stopping
        node("100", "ended").write(folder.head_file)
        fake_jobs.are("COMPLETED", "100")

    fake_jobs.then(lambda: node("100", "draining").write(folder.head_file), leaves)
    launch.stop(folder, Said())
    assert fake_jobs.cancelled == ["101_0"]
    assert left(tmp_path) == []


def test_a_head_that_does_not_end_by_itself_is_cancelled(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    head(folder, ago=100)
    launch.stop(folder, Said())
    assert set(fake_jobs.cancelled) == {"100", "101_0"}
    assert left(tmp_path) == []
    # Once more is nothing more.
    launch.stop(folder, Said())


def test_a_job_that_does_not_end_is_named_and_the_cluster_stays_known(
    monkeypatch: pytest.MonkeyPatch, fake_jobs: FakeJobs, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "_CANCELLED_S", 0)
    folder = started(tmp_path, fake_jobs)
    head(folder, ago=100)
    fake_jobs.dies_of = signal.SIGKILL
    fake_jobs.then(lambda: None)
    with pytest.raises(ClusterError, match="jobs 100, 101_0 don't end within 0 s after scancel"):
        launch.stop(folder, Said())
    assert folder.is_current


def test_the_end_of_the_last_run_ends_its_cluster(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    command(folder, "k", "succeeded", exit_code=0)
    fake_jobs.then(lambda: (head(folder, "ended"), fake_jobs.are("COMPLETED", "100")))
    launch.end(folder, Said())
    assert folder.cluster().stopping
    assert left(tmp_path) == []


def test_the_end_of_a_run_leaves_the_cluster_to_one_that_came_meanwhile(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs)
    command(folder, "k", "succeeded", exit_code=0)
    command(folder, "other")
    launch.end(folder, Said())
    assert folder.is_current
    assert not folder.cluster().stopping
    assert fake_jobs.cancelled == []


def test_workers_that_are_removed_may_finish(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs, workers=2)
    fake_jobs.then(lambda: None, lambda: fake_jobs.are("COMPLETED", "101_1"))
    launch.remove_workers(folder, ["101_1"], Said())
    assert [one.wanted for one in folder.cluster().workers] == [True, False]
    assert fake_jobs.cancelled == []


def test_workers_that_wait_in_the_queue_or_do_not_end_are_cancelled(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = started(tmp_path, fake_jobs, workers=3, drain_s=0)
    fake_jobs.are("PENDING", "101_0")
    fake_jobs.then(*[lambda: None] * 1_000_000)
    launch.remove_workers(folder, ["101_0", "101_1"], Said())
    assert fake_jobs.cancelled == ["101_0", "101_1"]


def test_the_newest_workers(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = new(tmp_path)
    worker(folder, "1")
    worker(folder, "2", nodes=3)
    worker(folder, "3")
    worker(folder, "4", wanted=False)
    assert [one.job_id for one in launch.newest(folder, 1)] == ["3"]
    assert [one.job_id for one in launch.newest(folder, 4)] == ["3", "2"]
    assert [one.job_id for one in launch.newest(folder, 5)] == ["3", "2", "1"]
    with pytest.raises(ClusterError, match="count=2: job 2 has 3 nodes, which end together"):
        launch.newest(folder, 2)
    with pytest.raises(ClusterError, match="count=6: the cluster has 5 workers"):
        launch.newest(folder, 6)


def test_a_plan_is_kept_and_starts_nothing(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    found = launch.plan(spec(tmp_path, executor="slurm"))
    assert [Path(path).name for path in found] == ["head.sh", "workers.sh"]
    assert all(Path(path).is_relative_to(tmp_path / "slurm" / "plan") for path in found)
    assert fake_jobs.submitted == []
    assert left(tmp_path) == []
    assert find(tmp_path / "slurm") is None


def test_a_command_is_handed_over_before_its_cluster_is_waited_for(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    """Who closes the terminal then leaves a run that goes on, and no idle cluster."""
    handed = list[ClusterFolder]()
    fake_jobs.then(lambda: (handed[0], up(tmp_path, fake_jobs)))
    folder = launch.start(spec(tmp_path, executor="slurm"), Said(), for_runs=True, hand_over=handed.append)
    assert handed == [folder]


def test_a_start_that_fails_takes_its_command_back_and_leaves_others_their_cluster(
    fake_jobs: FakeJobs, tmp_path: Path
) -> None:
    others = True

    def interrupt() -> None:
        raise KeyboardInterrupt

    for others in (True, False):
        said, taken = Said(), list[str]()
        fake_jobs.then(interrupt)
        folder = list[ClusterFolder]()

        def hand_over(there: ClusterFolder, *, others: bool = others, folder: list[ClusterFolder] = folder) -> None:
            folder.append(there)
            if others:
                command(there, "theirs")

        wanted = spec(tmp_path, executor="slurm", id=f"c{others}")
        with pytest.raises(KeyboardInterrupt):
            launch.start(
                wanted, said, for_runs=True, hand_over=hand_over, take_back=lambda taken=taken: taken.append("mine")
            )
        assert taken == ["mine"]
        assert folder[0].is_current is others


def test_a_new_run_waits_for_a_cluster_that_is_ending(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    old = started(tmp_path, fake_jobs)
    old.change(stopping=True)
    said = Said()
    fake_jobs.then(lambda: head(old, "ended"), lambda: up(tmp_path, fake_jobs))
    folder = launch.start(spec(tmp_path, executor="slurm"), said)
    assert folder != old
    assert said.lines[0] == "The cluster slurm is ending; waiting for it ..."
