"""Sweeps whose jobs run in allocations of their own: Hydra's launcher of submitit, with processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from matrix.run.state import RunState
from tests.command import against, command, environment, rows, run, summary
from tests.fake_engine import FakeEngine, Fault
from tests.faults.runs import wait_for

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher isn't installed")
LOCAL = ("-m", "hydra/launcher=submitit_local")


def hot_fails(body: dict[str, object]) -> Fault | None:
    return Fault.http(400, "too hot") if body["temperature"] == 1 else None


def state_of(run_dir: Path) -> RunState | None:
    return RunState.of_run(run_dir)


def word(run_dir: Path) -> str:
    state = state_of(run_dir)
    return state.word if state else "none"


@contextmanager
def started(cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process group of its own, which is ended in any case; it says what it says in `said`."""
    with (cwd / "said").open("wb") as said:
        process = subprocess.Popen(
            command(*arguments), cwd=cwd, env=environment(), stdout=said, stderr=said, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_one_failing_job_does_not_hide_the_others(tmp_path: Path) -> None:
    with FakeEngine.in_thread(fail=hot_fails) as engine:
        sweep = (*against(engine.url), *LOCAL, "sampling.temperature=0,1,0.5", "dataset.limit=4")
        done = run(tmp_path, *sweep)
        assert done.returncode == 1, done.stderr
        assert "job 1: failed: no row has an answer (log: " in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout.count("4 ok, 0 errors") == 2
        (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
        assert [word(folder / str(job)) for job in range(3)] == ["succeeded", "failed", "succeeded"]
        assert {row["request"]["temperature"] for row in rows(folder / "2")} == {0.5}
        (log,) = [path for path in folder.glob(".submitit/*/*_log.out") if "0 ok, 4 errors" in path.read_text()]
        assert "no row" not in log.read_text()
        asked = len(engine.requests)
        again = run(tmp_path, *sweep, f"hydra.sweep.dir={folder}")
        assert again.returncode == 1
        assert len(engine.requests) == asked, "each job has found its run dir"
    states = [state_of(folder / str(job)) for job in range(3)]
    assert [state.starts for state in states if state] == [2, 2, 2]


def test_a_job_that_is_refused_is_named(tmp_path: Path) -> None:
    """Its run dir still has the state of the last launch, in which it went well."""
    with FakeEngine.in_thread() as engine:
        sweep = (*against(engine.url), *LOCAL, "dataset.limit=4", r"hydra.sweep.dir='it\'s here'")
        assert run(tmp_path, *sweep, "trials=1,2").returncode == 0
        done = run(tmp_path, *sweep, "trials=1,3")
    assert done.returncode == 2, done.stderr
    assert "trials=3: the run dir was made with 2" in done.stderr
    assert "job 0" not in done.stderr
    assert word(tmp_path / "it's here" / "1") == "succeeded"


def test_what_can_not_be_is_said_before_anything_is_submitted(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    on = ("cluster=slurm", "cluster.cpus_per_node=4", "cluster.gpus_per_node=0")
    on_slurm = run(tmp_path, *against(url), *LOCAL, *on, "trials=1,2")
    assert on_slurm.returncode == 2
    assert "cluster=slurm: hydra/launcher gives each job an allocation of its own already" in on_slurm.stderr
    half = run(
        tmp_path, *against(url), "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=0.5", "trials=1,2"
    )
    assert half.returncode == 2
    assert "'0.5'" in half.stderr
    assert "Integer" in half.stderr
    plan = run(tmp_path, *against(url), *LOCAL, "plan=true", "trials=1,2")
    assert plan.returncode == 0
    assert plan.stdout.count("Nothing is placed") == 2
    assert not list(tmp_path.rglob(".submitit"))


def test_a_job_that_is_killed_is_named_and_the_others_are_waited_for(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=0.2) as engine:
        sweep = (*against(engine.url), *LOCAL, "trials=1,2", "workload.concurrency=4", "hydra.sweep.dir=s")
        with started(tmp_path, *sweep) as process:
            wait_for(lambda: word(tmp_path / "s" / "0") == word(tmp_path / "s" / "1") == "running", process)
            state = state_of(tmp_path / "s" / "0")
            assert state is not None
            os.kill(state.pid, signal.SIGKILL)
            process.wait(120)
        assert process.returncode == 1
        said = (tmp_path / "said").read_text()
        assert "job 0: its process was killed" in said
        assert "job 1" not in said
        assert summary(tmp_path / "s" / "1")["rows"]["ok"] == 96


def test_a_job_whose_time_is_over_is_requeued_and_goes_on(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=0.6) as engine:
        sweep = (*against(engine.url), *LOCAL, "workload.concurrency=4", "hydra.sweep.dir=s")
        with started(tmp_path, *sweep) as process:
            wait_for(lambda: len(engine.requests) > 12, process)
            state = state_of(tmp_path / "s" / "0")
            assert state is not None
            os.kill(state.pid, signal.SIGUSR2)
            wait_for(lambda: word(tmp_path / "s" / "0") == "requeued", process)
            process.wait(120)
        said = (tmp_path / "said").read_text()
        assert process.returncode == 0, said
        assert "jobs: 1 running" in said
        assert 48 <= len(engine.requests) <= 48 + 4
    state = state_of(tmp_path / "s" / "0")
    assert state is not None
    assert (state.word, state.starts) == ("succeeded", 2)
    assert len(rows(tmp_path / "s" / "0")) == 48
    assert summary(tmp_path / "s" / "0")["resumed_rows"] >= 8


def test_ctrl_c_says_how_to_cancel_and_to_go_on(tmp_path: Path) -> None:
    with FakeEngine.in_thread(latency_s=0.2) as engine:
        sweep = (*against(engine.url), *LOCAL, "workload.concurrency=2", "hydra.sweep.dir=s")
        with started(tmp_path, *sweep) as process:
            wait_for(lambda: word(tmp_path / "s" / "0") == "running", process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            said = (tmp_path / "said").read_text()
            assert f"write to {tmp_path / 's'}. Cancel them with:\n  kill " in said
            assert f"hydra.sweep.dir={tmp_path / 's'} " in said
            assert "Traceback" not in said
            assert word(tmp_path / "s" / "0") == "running", "nobody has cancelled it"
            (pid,) = said.partition("kill ")[2].splitlines()[0].split()
            os.kill(int(pid), signal.SIGTERM)
            wait_for(lambda: word(tmp_path / "s" / "0") == "stopped")
