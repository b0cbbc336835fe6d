"""Sweeps on Slurm with one allocation for each job, by Hydra's real launcher."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from matrix.run.state import RunState
from tests.command import LOCAL, against, rows, summary
from tests.fake_engine import FakeEngine, Fault
from tests.slurm.login import PATIENCE, Login

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher isn't installed")
LAUNCHER = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.sweep.dir=s")


@pytest.fixture
def engine(login: Login) -> Iterator[FakeEngine]:
    """A server that the nodes reach, slow enough for things to happen meanwhile."""
    hosts = (login.slurm.base / "hosts").read_text().splitlines()
    (controller,) = [line.split()[0] for line in hosts if line.endswith(" ctl")]
    # This machine, on the nodes' network.
    with FakeEngine.in_thread(latency_s=0.3, host=f"{controller.rpartition('.')[0]}.254") as engine:
        yield engine


def state_of(login: Login, job: int) -> RunState | None:
    return RunState.of_run(login.cwd / "s" / str(job))


def word(login: Login, job: int) -> str:
    state = state_of(login, job)
    return state.word if state else "none"


def running(login: Login, *jobs: int) -> Callable[[], bool]:
    """Whether these jobs work on rows."""
    return lambda: all(rows_of(login.cwd / "s" / str(job)) for job in jobs)


def rows_of(run_dir: Path) -> int:
    part = run_dir / "rows" / "part-driver.jsonl"
    return part.read_bytes().count(b"\n") if part.exists() else 0


def array_of(login: Login) -> str:
    """Slurm's id of the sweep."""
    (array,) = {job["id"].partition("_")[0] for job in login.squeue()}
    return array


def test_one_failing_job_does_not_hide_the_others(login: Login, engine: FakeEngine) -> None:
    engine._fault = lambda body: Fault.http(400, "too hot") if body["temperature"] == 1 else None
    sweep = (*against(engine.url), *LAUNCHER, "sampling.temperature=0,1,0.5", "dataset.limit=4")
    done = login.run(*sweep, code=1)
    assert "job 1: failed: no row has an answer" in done.stderr
    assert done.stdout.count("4 ok, 0 errors") == 2
    assert [word(login, job) for job in range(3)] == ["succeeded", "failed", "succeeded"]
    states = [state for job in range(3) if (state := state_of(login, job))]
    assert len({state.job_id for state in states}) == 3
    asked = len(engine.requests)
    login.run(*sweep, code=1)
    assert len(engine.requests) == asked, "each job has found its run dir"


def test_jobs_that_are_requeued_go_on_and_one_that_is_cancelled_is_named(login: Login, engine: FakeEngine) -> None:
    """One by `scontrol requeue`, one by the signal before its time is over."""
    more = ("hydra.launcher.max_num_timeout=1", "trials=3,4,3", "workload.concurrency=2")
    process = login.start_run(*against(engine.url), *LAUNCHER, *more)
    login.wait_for(running(login, 0, 1, 2), 60, "all jobs run")
    array = array_of(login)
    login.command("scontrol", "requeue", f"{array}_0")
    login.command("scancel", "--signal=USR2", f"{array}_1")
    login.command("scancel", f"{array}_2")
    login.wait_for(lambda: word(login, 1) == "requeued", 10, "its state says that it was requeued")
    assert process.wait(PATIENCE * 120) == 143
    said = login.said(process)
    assert "job 2: stopped: SIGTERM" in said
    assert "job 0" not in said
    assert "job 1" not in said
    for job, trials in ((0, 3), (1, 4)):
        state = state_of(login, job)
        assert state is not None
        assert (state.word, state.starts) == ("succeeded", 2)
        keys = [(row["index"], row["trial"]) for row in rows(login.cwd / "s" / str(job))]
        assert keys == [(index, trial) for index in range(48) for trial in range(trials)]
        assert summary(login.cwd / "s" / str(job))["resumed_rows"] > 0


def test_a_job_that_never_started_is_named(login: Login, engine: FakeEngine) -> None:
    more = ("hydra.launcher.array_parallelism=1", "trials=1,2")
    process = login.start_run(*against(engine.url), *LAUNCHER, *more)
    login.wait_for(running(login, 0), 60, "the first job runs")
    login.command("scancel", f"{array_of(login)}_1")
    assert process.wait(PATIENCE * 120) == 1
    assert "job 1: it ended before its run began (Slurm: CANCELLED" in login.said(process)
    assert word(login, 0) == "succeeded"


def test_what_slurm_refuses_is_said(login: Login) -> None:
    done = login.run(*against("http://10.0.0.1/v1"), *LAUNCHER, "hydra.launcher.partition=nowhere", "seed=1,2", code=1)
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_the_jobs_and_says_how_to_cancel_them(login: Login, engine: FakeEngine) -> None:
    process = login.start_run(*against(engine.url), *LAUNCHER, "trials=4,5", "workload.concurrency=1")
    login.wait_for(running(login, 0, 1), 60, "both jobs run")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE * 30) == 130
    said = login.said(process)
    assert f"write to {login.cwd / 's'}. Cancel them with:" in said
    (cancel,) = [line.split() for line in said.splitlines() if line.startswith("  scancel ")]
    assert {job["state"] for job in login.squeue()} == {"RUNNING"}
    login.command(*cancel)
    login.wait_for(lambda: not login.squeue(), 60, "they are cancelled")
    assert [word(login, job) for job in (0, 1)] == ["stopped", "stopped"]


@pytest.mark.integration
def test_ray_in_each_allocation(login: Login) -> None:
    """Two jobs at the same time, each with a cluster of its own that is gone with it."""
    room = ("hydra.launcher.mem_gb=4", "hydra.launcher.cpus_per_task=2", "cluster.cpus=2")
    login.run("engine=simulated", *LOCAL, *LAUNCHER, *room, "seed=1,2", "dataset.limit=10")
    assert [summary(login.cwd / "s" / str(job))["rows"]["ok"] for job in (0, 1)] == [10, 10]
