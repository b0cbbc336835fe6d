"""`state.json`: what a run says of itself, and what is seen of one that can't say anything more."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from matrix.run.rundir import RunDir
from matrix.run.state import RunState, StateKeeper, kept_state
from matrix.run.stop import Interrupted
from tests.command import against, run
from tests.fake_engine import FakeEngine, Fault
from tests.faults.runs import Run, wait_for
from tests.faults.server import Server
from tests.small_disk import small_disk


def state_of(run_dir: Path) -> RunState:
    state = RunState.of_run(run_dir)
    assert state is not None
    return state


def test_a_run_that_went_well(tmp_path: Path) -> None:
    with FakeEngine.in_thread() as engine:
        for start in (1, 2):
            assert run(tmp_path, *against(engine.url), "run.dir=here", "dataset.limit=2").returncode == 0
            state = state_of(tmp_path / "here")
            assert (state.word, state.exit_code, state.starts) == ("succeeded", 0, start)
            assert state.run_id.startswith("here-")
            assert state.ended is not None
            assert state.started < state.ended <= time.time()
            assert state.job_id == os.environ.get("SLURM_JOB_ID")


def test_a_run_without_an_answer_has_failed(tmp_path: Path) -> None:
    with FakeEngine.in_thread(fail=lambda _: Fault.http(400)) as engine:
        done = run(tmp_path, *against(engine.url), "run.dir=here", "dataset.limit=2", SLURM_JOB_ID="17")
    assert done.returncode == 1
    state = state_of(tmp_path / "here")
    assert (state.word, state.exit_code, state.detail) == ("failed", 1, "no row has an answer")
    assert state.job_id == "17"


def test_a_run_with_a_bad_row_has_failed(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    data = ("dataset=jsonl", "dataset.path=bad.jsonl", "dataset.on_bad_row=stop")
    assert run(tmp_path, *against("http://127.0.0.1:9/v1"), *data, "run.dir=here").returncode == 1
    state = state_of(tmp_path / "here")
    assert state.word == "failed"
    assert "bad.jsonl:1" in state.detail


def test_a_refused_second_start_leaves_the_state_of_the_first(tmp_path: Path) -> None:
    with Server.in_thread(latency_s=2) as server:
        first = Run(tmp_path, [server.url], "workload.concurrency=8")
        with first.started() as process:
            wait_for(lambda: server.answered, process)
            before = state_of(first.dir)
            assert (before.pid, before.word, before.exit_code) == (process.pid, "running", None)
            second = run(tmp_path, *first.arguments)
            assert second.returncode == 1
            assert "is in use" in second.stderr
            after = state_of(first.dir)
            assert replace(after, heartbeat=0) == replace(before, heartbeat=0)
            assert after.is_alive
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
    state = state_of(first.dir)
    assert (state.word, state.exit_code, state.detail) == ("stopped", 143, "SIGTERM")


def test_a_run_that_was_killed_is_lost_once_its_heartbeat_is_old(tmp_path: Path) -> None:
    with Server.in_thread(latency_s=0.2) as server:
        killed = Run(tmp_path, [server.url], "workload.concurrency=8")
        with killed.started() as process:
            wait_for(lambda: server.answered, process)
        state = state_of(killed.dir)
        assert state.word == "running"
        assert replace(state, heartbeat=time.time() - 31).word == "lost"
        assert not replace(state, heartbeat=time.time() - 31).is_alive
        assert killed.to_end() == 0
    state = state_of(killed.dir)
    assert (state.word, state.starts) == ("succeeded", 2)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Interrupted(signal.SIGINT), ("stopped", 130, "SIGINT")),
        (Interrupted(signal.SIGUSR2), ("stopped", 140, "SIGUSR2")),
        (ValueError("odd"), ("failed", 1, "an error of matrix itself: ValueError: odd")),
    ],
)
def test_what_ends_a_run(tmp_path: Path, error: BaseException, expected: tuple[str, int, str]) -> None:
    keeper = StateKeeper(RunDir(tmp_path))
    assert state_of(tmp_path).word == "running"
    keeper.close(error)
    state = state_of(tmp_path)
    assert (state.status, state.exit_code, state.detail) == expected


def test_a_budget_that_is_used_up_stops_a_run(tmp_path: Path) -> None:
    with kept_state(RunDir(tmp_path)) as keeper:
        keeper.exit_code = 3
    assert (state_of(tmp_path).status, state_of(tmp_path).exit_code) == ("stopped", 3)


def test_the_heart_beats_on_over_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matrix.run.state._BEAT_S", 0.02)
    with small_disk(tmp_path, "64k") as disk:
        keeper = StateKeeper(RunDir(disk))
        filler = disk / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
            file.write(bytes(2**17))
        at_full = state_of(disk).heartbeat
        time.sleep(0.2)
        assert state_of(disk).heartbeat - at_full < 0.1, "nothing can be written"
        filler.unlink()
        wait_for(lambda: state_of(disk).heartbeat > at_full + 0.1)
        keeper.close(None)
        assert state_of(disk).word == "succeeded"
        assert [file.name for file in disk.iterdir()] == ["state.json"]


def test_a_full_disk_at_the_end_does_not_hide_how_the_run_ended(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64k") as disk:
        keeper = StateKeeper(RunDir(disk))
        with (disk / "filler").open("wb") as file, pytest.raises(OSError, match="No space left"):
            file.write(bytes(2**17))
        keeper.close(None)
        assert state_of(disk).word == "running"
