"""Waiting for head and workers: what is shown, what ends it, and which words the user gets."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from matrix.cluster.folder import ClusterFolder
from matrix.cluster.waiting import LiveLine, last_lines, nodes_up, wait_for_head, wait_for_workers
from matrix.errors import ClusterError
from tests.cluster.clusters import Said, head, new, node, status, worker
from tests.cluster.fake_jobs import FakeJobs


@pytest.fixture
def folder(fake_jobs: FakeJobs, tmp_path: Path) -> ClusterFolder:
    found = new(tmp_path, executor="slurm", max_resubmits=0)
    found.change(head_job="100")
    fake_jobs.are("PENDING", "100", reason="Resources")
    return found


def log(folder: ClusterFolder, job: str, text: str) -> None:
    (folder.jobs / f"{job}_0_log.out").write_text(text)


def change_spec(folder: ClusterFolder, **more: object) -> None:
    folder.change(spec={**folder.cluster().spec, **more})


def test_a_head_that_waits_says_why_and_then_is_up(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    said = Said()
    fake_jobs.then(
        lambda: fake_jobs.are("RUNNING", "100"),
        lambda: head(folder, "starting"),
        lambda: head(folder, "up", ago=100),
        lambda: head(folder),
    )
    assert wait_for_head(folder, said.show).phase == "up"
    assert said.lines == ["head: job 100 PENDING (Resources)", *["head: job 100 RUNNING"] * 3]


def test_a_head_that_fails_says_at_once_why_with_the_end_of_its_log(folder: ClusterFolder) -> None:
    log(folder, "100", "\n".join(f"line {number}" for number in range(100)))
    head(folder, "failed", detail="Ray doesn't start on h1: exit code 1")
    with pytest.raises(ClusterError) as error:
        wait_for_head(folder, print)
    text = str(error.value)
    assert text.startswith("the head failed: Ray doesn't start on h1: exit code 1; its last lines (")
    assert text.endswith("    line 98\n    line 99")
    assert len(text.splitlines()) == 16


@pytest.mark.parametrize("state", ["CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"])
def test_a_heads_job_that_is_over(folder: ClusterFolder, fake_jobs: FakeJobs, state: str) -> None:
    fake_jobs.then(lambda: (fake_jobs.are(state, "100"), log(folder, "100", "no such module\n")))
    with pytest.raises(ClusterError, match=rf"job 100 has ended \({state}\) before Ray was up; .*\n    no such module"):
        wait_for_head(folder, print)


def test_a_head_of_this_machine_that_is_gone(fake_jobs: FakeJobs, tmp_path: Path) -> None:
    folder = new(tmp_path)
    folder.change(head_job="7")
    with pytest.raises(ClusterError, match=r"job 7 has ended \(gone\)"):
        wait_for_head(folder, print)


def test_a_job_that_slurm_does_not_know_yet_is_waited_for(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    fake_jobs.known.clear()
    said = Said()
    fake_jobs.then(lambda: None, lambda: head(folder))
    wait_for_head(folder, said.show)
    assert set(said.lines) == {"head: job 100 submitted"}


def test_slurm_that_does_not_answer_ends_no_waiting(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    fake_jobs.down = 2
    fake_jobs.known.clear()
    said = Said()
    fake_jobs.then(lambda: None, lambda: None, lambda: head(folder))
    wait_for_head(folder, said.show)
    assert said.lines[0] == "head: job 100 squeue: Unable to contact slurm controller"


@pytest.mark.parametrize(("state", "key"), [("PENDING", "queue_timeout_s"), ("RUNNING", "start_timeout_s")])
def test_the_limit_of_a_head_is_named(folder: ClusterFolder, fake_jobs: FakeJobs, state: str, key: str) -> None:
    """Also of one that says nothing at all."""
    change_spec(folder, **{"queue_timeout_s": 5, "start_timeout_s": 5, key: 1e-9})
    fake_jobs.known["100"] = status("100", state, started=time.time() - 100)
    with pytest.raises(ClusterError, match=rf"the head \(job 100\) is not up after 0 s \(cluster\.{key}=1e-09\)"):
        wait_for_head(folder, print)


def test_workers_that_join(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    head(folder)
    for job in ("1", "2"):
        worker(folder, job, None)
        fake_jobs.are("PENDING", job, reason="Priority")
    said = Said()
    fake_jobs.then(
        lambda: fake_jobs.are("RUNNING", "1"),
        lambda: (node("1").write(folder.node_file("1")), fake_jobs.are("RUNNING", "2")),
        lambda: node("2").write(folder.node_file("2")),
    )
    wait_for_workers(folder, 2, said.show)
    assert said.lines == [
        "workers: 0 of 2 have joined; 2 jobs PENDING (Priority)",
        "workers: 0 of 2 have joined; 2 jobs PENDING (Priority), RUNNING",
        "workers: 1 of 2 have joined; 1 jobs RUNNING",
    ]


def test_some_workers_are_enough(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    head(folder)
    worker(folder, "1")
    worker(folder, "2", None)
    fake_jobs.are("PENDING", "2")
    wait_for_workers(folder, 1, print)


def test_all_nodes_of_one_job_count(folder: ClusterFolder) -> None:
    worker(folder, "1", None, nodes=2)
    node("1").write(folder.node_file("1"))
    node("1").write(folder.node_file("1.1"))
    assert nodes_up(folder).keys() == {"1", "1.1"}


def test_who_is_stale_or_sent_away_is_not_there(folder: ClusterFolder) -> None:
    worker(folder, "1", ago=100)
    worker(folder, "2", wanted=False)
    worker(folder, "3", "starting")
    worker(folder, "4")
    assert nodes_up(folder).keys() == {"4"}


def test_a_worker_that_fails_ends_the_waiting_with_its_log(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    head(folder)
    worker(folder, "1")
    worker(folder, "2", "failed")
    fake_jobs.are("RUNNING", "1")
    fake_jobs.are("FAILED", "2")
    log(folder, "2", "Ray ends again and again\n")
    with pytest.raises(
        ClusterError, match=r"1 of 2 workers have joined, and no more will come: job 2 FAILED;.*\n    Ray ends again"
    ):
        wait_for_workers(folder, 2, print)


def test_a_failed_worker_that_will_be_replaced_is_waited_for(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    change_spec(folder, max_resubmits=1)
    head(folder)
    worker(folder, "1", "failed")
    fake_jobs.are("FAILED", "1")
    fake_jobs.then(
        lambda: None,
        lambda: (folder.dismiss(["1"]), worker(folder, "2", replaces="1"), fake_jobs.are("RUNNING", "2")),
    )
    wait_for_workers(folder, 1, print)


def test_a_replaced_worker_that_fails_as_well(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    """The head has given it up already."""
    change_spec(folder, max_resubmits=1)
    head(folder)
    worker(folder, "1", "failed", wanted=False)
    worker(folder, "2", "failed", wanted=False, replaces="1")
    log(folder, "2", "why\n")
    with pytest.raises(ClusterError, match=r"no more will come: job 2 gone;.*\n    why"):
        wait_for_workers(folder, 1, print)


@pytest.mark.parametrize("how", ["failed", "ended", "retired"])
def test_a_head_that_ends_while_workers_join(folder: ClusterFolder, fake_jobs: FakeJobs, how: str) -> None:
    head(folder)
    worker(folder, "1", None)
    fake_jobs.are("PENDING", "1")
    fake_jobs.then(lambda: folder.retire() if how == "retired" else head(folder, how, detail="it got SIGTERM"))
    with pytest.raises(ClusterError, match="the head ended while workers joined"):
        wait_for_workers(folder, 1, print)


@pytest.mark.parametrize(("state", "key"), [("PENDING", "queue_timeout_s"), ("RUNNING", "start_timeout_s")])
def test_the_limit_of_workers_is_named(folder: ClusterFolder, fake_jobs: FakeJobs, state: str, key: str) -> None:
    change_spec(folder, **{"queue_timeout_s": 5, "start_timeout_s": 5, key: 1e-9})
    head(folder)
    worker(folder, "1", None)
    fake_jobs.known["1"] = status("1", state, started=time.time() - 100)
    with pytest.raises(ClusterError, match=rf"0 of 1 workers .* \(cluster\.{key}=1e-09\).*cluster\.min_workers"):
        wait_for_workers(folder, 1, print)


def test_a_log_that_is_not_there_is_left_out(folder: ClusterFolder) -> None:
    assert last_lines(folder, "100") == ""
    (folder.jobs / "100_0_log.out").write_bytes(b"\xff ok\n")
    assert last_lines(folder, "100").endswith(" ok")


def test_a_line_that_is_rewritten_needs_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = LiveLine()
    live.show("one")
    live.show("one")
    live.say("stays")
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == ["0 s  one", "stays"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    live.show("two")
    live.show("two")
    live.say("stays")
    assert capsys.readouterr().err == "\r\x1b[2K   0 s  two" * 2 + "\r\x1b[2Kstays\n"


def test_the_time_that_a_head_waited_does_not_count_as_its_start(folder: ClusterFolder, fake_jobs: FakeJobs) -> None:
    """Nor an earlier start, from which Slurm has put it back into the queue."""
    change_spec(folder, start_timeout_s=0.2)
    replace(node("h", "starting", ago=100), started=time.time() - 200).write(folder.head_file)
    real = time.monotonic()

    def waits() -> None:
        while time.monotonic() < real + 0.3:
            pass

    fake_jobs.then(
        waits, lambda: fake_jobs.known.update({"100": status("100", started=time.time())}), lambda: head(folder)
    )
    wait_for_head(folder, print)
