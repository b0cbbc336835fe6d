"""What may befall a cluster while a run is inside it: a run goes on with what there is, and every row is there once."""

from __future__ import annotations

import os
import signal
import time

import pytest

from matrix.cluster.states import Node
from matrix.cluster.waiting import nodes_up
from tests.command import summary
from tests.slurm.clusters import SMALL, Run, cluster_folder, status
from tests.slurm.login import Login
from tests.slurm.machine import Slurm

pytestmark = pytest.mark.integration


def joined(login: Login) -> dict[str, Node]:
    """The workers that have joined, by name."""
    return nodes_up(cluster_folder(login))


def wait_for_workers(login: Login, count: int, timeout_s: float = 90) -> dict[str, Node]:
    return login.wait_for(lambda: (up := joined(login)) if len(joined(login)) >= count else {}, timeout_s, "they join")


def kill(slurm: Slurm, node: str, *words: str) -> None:
    """Kill -9 the processes of a node whose command lines have these words."""
    found = [pid for pid, line in slurm.processes(node).items() if all(word in line for word in words)]
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def test_workers_that_are_lost_are_replaced(login: Login) -> None:
    """All three of a run at once: one is cancelled, of one Ray is killed, of one the job's own process."""
    run = Run(login, "cluster.workers=3", "engine.replicas=3", trials=8)
    run.works(10)
    before = joined(login)
    cancelled, rayless, killed = before
    began = time.monotonic()
    login.command("scancel", cancelled)
    kill(login.slurm, before[rayless].host, f"--node_id={before[rayless].node_id}")
    login.slurm.on(before[killed].host, "kill", "-9", str(before[killed].pid))

    def replaced() -> set[str]:
        return {worker.replaces for worker in run.folder.cluster().workers} & {cancelled, killed}

    login.wait_for(lambda: len(replaced()) == 2, 30, "two are asked for again")
    print("noticed after", time.monotonic() - began)
    login.wait_for(lambda: len(joined(login)) == 3, 60, "three have joined again")
    print("back after", time.monotonic() - began)
    after = joined(login)
    assert set(before) & set(after) == {rayless}
    assert after[rayless].node_id != before[rayless].node_id
    run.works()
    told = status(login)
    assert [(worker["state"], worker["wanted"]) for worker in told["workers"]] == [("RUNNING", True)] * 3
    print(run.ends())
    run.check()


def test_a_head_that_is_cancelled_ends_the_run_and_another_cluster_goes_on_with_it(login: Login) -> None:
    run = Run(login, trials=2)
    run.works(10)
    head = run.folder.head()
    assert head is not None
    began = time.monotonic()
    login.command("scancel", head.job_id)
    said = run.ends(code=1)
    print("ended after", time.monotonic() - began, said)
    assert "start it again with that run dir to resume it" in said
    assert run.command.phase == "lost"
    assert run.state.word in ("stopped", "lost")
    login.wait_for(lambda: not login.leftovers(), 30, "nothing is left")
    done = run.done()
    assert done < 96
    again = Run(login, trials=2, per_s=32)
    print(again.ends())
    again.check()
    assert again.state.starts == 2
    assert summary(again.dir)["resumed_rows"] >= done


@pytest.mark.parametrize("what", ["python", "gcs_server"])
def test_a_head_that_dies_is_heard_of(login: Login, what: str) -> None:
    """And takes its workers along."""
    run = Run(login, trials=2)
    login.wait_for(lambda: "Joining" in run.said, 60, "the run begins")
    head = run.folder.head()
    assert head is not None
    began = time.monotonic()
    if what == "python":
        login.slurm.on(head.host, "kill", "-9", str(head.pid))
    else:
        kill(login.slurm, head.host, "/gcs/gcs_server")
    said = run.ends(code=1)
    print("ended after", time.monotonic() - began, said)
    assert f"job {head.job_id}" in said
    if what == "gcs_server":
        assert "Ray's own process ended: gcs_server" in said
    login.wait_for(lambda: not login.leftovers(), 60, "nothing is left")


def test_a_head_whose_time_is_over_goes_on(login: Login) -> None:
    """Once since somebody has requeued it, and once by Slurm's own signal before the time limit."""
    run = Run(login, "cluster.max_hours=1", trials=6)
    run.works(10)
    head = run.folder.head()
    assert head is not None
    login.command("scontrol", "requeue", head.job_id)
    login.wait_for(lambda: run.command.phase == "requeued", 30, "it is requeued")
    login.wait_for(lambda: run.command.starts == 2, 60, "it goes on")
    run.works(10)
    # Slurm signals 65 seconds before the time is over.
    login.command("scontrol", "update", f"jobid={head.job_id}", "TimeLimit=1")
    login.wait_for(lambda: run.command.phase == "requeued", 60, "it is requeued")
    login.wait_for(lambda: login.job(head.job_id)["state"] == "PENDING", 60, "it waits")
    login.command("scontrol", "update", f"jobid={head.job_id}", "TimeLimit=60")
    print(run.ends())
    run.check()
    assert run.state.starts == 3


def test_a_head_where_ray_cannot_start(login: Login) -> None:
    began = time.monotonic()
    done = login.matrix("start_cluster", *SMALL, "cluster.object_store_gb=100000", code=1)
    print("ended after", time.monotonic() - began, done.stderr)
    assert "the head failed: Ray doesn't start on n1" in done.stderr
    assert login.leftovers() == []
