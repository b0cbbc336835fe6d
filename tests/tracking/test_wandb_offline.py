from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

from matrix.errors import MatrixError
from matrix.spec.tracker import WandbTracker as WandbSpec
from matrix.tracking import wandb as wandb_module
from matrix.tracking.tracker import JobInfo, Tracker, make_tracker
from tests.tracking.tracked_rows import bad_row, good_row
from tests.tracking.wandb_file import LoggedRun, read

KEY = "local" + "0" * 40
SUMMARY = {"rows": {"total": 2, "ok": 1}, "scores": {"exact": {"mean": 0.5, "stderr": None}}}

Make = Callable[..., JobInfo]


def _spec(**fields: Any) -> WandbSpec:
    return WandbSpec.model_validate({"kind": "wandb", "mode": "offline"} | fields)


def _track(job: JobInfo, spec: WandbSpec, exit_code: int = 0, summary: dict[str, Any] = SUMMARY) -> Tracker:
    tracker = make_tracker(spec)
    tracker.sample(good_row(0, value=0.5))
    tracker.start(job)
    tracker.log({"rows_done": 1, "rows_per_s": 0.5}, 1)
    tracker.sample(bad_row(1))
    tracker.log({"rows_done": 2, "rows_per_s": 0.75}, 2)
    rows_file = job.run_dir / "rows.jsonl"
    rows_file.write_text('{"id": "r0"}\n')
    tracker.finish(summary, exit_code, rows_file)
    return tracker


def _folders(job: JobInfo) -> list[Path]:
    return sorted((job.run_dir / "wandb").glob("*run-*-*"))


def _logged(job: JobInfo) -> LoggedRun:
    wandb.teardown()  # The service writes in its own time; this waits for it.
    [folder] = _folders(job)
    [path] = folder.glob("*.wandb")
    return read(path)


def test_a_run_holds_all_that_was_logged(make_job: Make) -> None:
    job = make_job()
    tracker = _track(job, _spec(project="facts", tags=["mine", "qa"], notes="first try", log_rows=True))
    logged = _logged(job)
    assert (logged.run_id, logged.name, logged.project) == ("one", "qa/one", "facts")
    assert (logged.group, logged.job_type, logged.notes) == ("sweep-7", "qa", "first try")
    assert logged.tags == ["smollm2", "qa", "mine"]
    assert logged.config["model"] == {"name": "smollm2"}
    assert logged.config["engine"] == {"env": {"HF_TOKEN": "***"}}
    assert logged.config["matrix"]["command"] == "run.py model=smollm2"
    assert logged.metrics == {"rows_done": "", "*": "rows_done"}
    progress = [(step["rows_done"], step["rows_per_s"]) for step in logged.history if "rows_per_s" in step]
    assert progress == [(1, 0.5), (2, 0.75)]
    assert logged.summary["scores/exact/mean"] == 0.5
    assert logged.summary["rows/total"] == 2
    assert logged.artifacts["rows-one"] == "rows"
    assert logged.exit_code == 0
    [folder] = _folders(job)
    assert tracker.notice() == f"W&B, to upload: wandb sync {folder}"


def test_a_team_is_shown_over_time_and_its_summary_by_joined_names(make_job: Make) -> None:
    job = make_job()
    tracker = make_tracker(_spec())
    tracker.start(job)
    for elapsed_s in (5, 10):
        tracker.log({"rows_done": 0, "elapsed_s": elapsed_s, "agents/turns": 7, "agents/writer/in_flight": 3}, 0)
    summary = {
        "terminations": {"agreement": 2, "max_turns": 1},
        "metrics": {"drafts": {"mean": 1.5, "stderr": None, "count": 2}},
        "agents": {"writer": {"turns": 9, "turn_s": {"mean": 0.5}, "call_s": None}},
    }
    tracker.finish(summary, 0, None)
    logged = _logged(job)
    assert logged.metrics == {
        "rows_done": "", "*": "rows_done", "agents/turns": "elapsed_s", "agents/writer/in_flight": "elapsed_s",
    }  # fmt: skip
    assert [(step["elapsed_s"], step["agents/writer/in_flight"]) for step in logged.history] == [(5, 3), (10, 3)]
    expected = {
        "terminations/agreement": 2,
        "metrics/drafts/mean": 1.5,
        "agents/writer/turns": 9,
        "agents/writer/turn_s/mean": 0.5,
        "agents/writer/call_s": None,
    }
    assert expected.items() <= logged.summary.items()


def test_the_samples_are_a_table(make_job: Make) -> None:
    job = make_job()
    _track(job, _spec())
    [step] = [step for step in _logged(job).history if "samples/path" in step]
    assert (step["rows_done"], step["samples/_type"], step["samples/nrows"]) == (2, "table-file", 2)
    [folder] = _folders(job)
    table = json.loads((folder / "files" / step["samples/path"]).read_text())
    assert table["columns"] == ["id", "trial", "status", "prompt", "text", "scores/exact", "error"]
    assert table["data"] == [
        ["r0", 0, "ok", "Question 0", "Paris", 0.5, None],
        ["r1", 0, "error", "Question 1", None, None, "timeout: no answer in 5 s"],
    ]


def test_neither_samples_nor_rows_are_logged_unless_asked_for(make_job: Make) -> None:
    job = make_job()
    _track(job, _spec(samples=0))
    logged = _logged(job)
    assert not [step for step in logged.history if "samples/path" in step]
    assert logged.artifacts == {}


def test_the_spec_overrides_group_and_job_type_and_a_single_run_has_no_group(make_job: Make) -> None:
    _track(make_job("a"), _spec(group="mine", job_type="ablation"))
    logged = _logged(make_job("a"))
    assert (logged.group, logged.job_type) == ("mine", "ablation")
    _track(make_job("b", sweep_id=None), _spec())
    assert _logged(make_job("b", sweep_id=None)).group == ""


def test_jobs_of_a_sweep_in_one_process_are_runs_of_their_own(make_job: Make) -> None:
    _track(make_job("a"), _spec())
    _track(make_job("b", name="second"), _spec(), exit_code=130)
    first, second = _logged(make_job("a")), _logged(make_job("b"))
    assert (first.run_id, first.exit_code, second.run_id, second.exit_code) == ("a", 0, "b", 130)
    assert (first.name, second.name) == ("qa/a", "second")
    assert first.group == second.group == "sweep-7"
    assert len(second.history) == len(first.history) == 3


def test_a_job_that_fails_before_its_first_row_is_closed_as_failed(make_job: Make) -> None:
    job = make_job()
    tracker = make_tracker(_spec())
    tracker.start(job)
    tracker.finish({}, 1, None)
    tracker.finish({}, 0, None)  # Closed is closed.
    assert _logged(job).exit_code == 1


def test_a_tracker_that_never_started_has_nothing_to_close(place: Path) -> None:
    tracker = make_tracker(_spec())
    tracker.log({"rows_done": 1}, 1)
    tracker.finish({}, 2, None)
    assert tracker.notice() is None


def test_no_secret_of_the_command_line_or_the_environment_is_stored(
    make_job: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run.py", "model=smollm2", "engine.env.HF_TOKEN=hf-hunter2"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    _track(make_job(), _spec())
    wandb.teardown()
    assert sys.argv is arguments
    stored = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    assert b"engine.env.HF_TOKEN=***" in stored
    assert b"hunter2" not in stored
    assert KEY.encode() not in stored


def test_all_that_waits_for_its_upload_is_in_the_run_dir(make_job: Make, place: Path) -> None:
    _track(make_job(), _spec(log_rows=True))
    outside = [path for path in (place / "home").rglob("*") if path.is_file()]
    assert {path.suffix for path in outside} <= {".log"}, outside
    assert "WANDB_DATA_DIR" not in os.environ


def test_nothing_is_printed(make_job: Make, capfd: pytest.CaptureFixture[str]) -> None:
    _track(make_job(), _spec(log_rows=True))
    assert capfd.readouterr() == ("", "")


def test_a_run_resumed_offline_is_one_run_in_two_parts_and_the_notice_names_both(make_job: Make) -> None:
    _track(make_job(), _spec(), exit_code=130)
    tracker = _track(make_job(), _spec())
    wandb.teardown()
    parts = _folders(make_job())
    logged = [read(next(part.glob("*.wandb"))) for part in parts]
    assert [(run.run_id, run.exit_code) for run in logged] == [("one", 130), ("one", 0)]
    assert tracker.notice() == f"W&B, to upload: wandb sync {parts[0]} {parts[1]}"


def test_tags_and_ids_are_made_to_fit(make_job: Make) -> None:
    job = make_job(tags=("m" * 80, "", "qa"))
    _track(job, _spec(tags=["qa"]))
    assert _logged(job).tags == ["m" * 64, "qa"]
    odd = make_job("week 1/5: a?", run_dir=job.run_dir / "odd")
    odd.run_dir.mkdir()
    _track(odd, _spec(log_rows=True))
    assert _logged(odd).run_id == "week-1-5-a"


def test_disabled_by_the_environment_logs_nothing(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = _track(make_job(), _spec(mode="auto"))
    assert [path.name for path in make_job().run_dir.iterdir()] == ["rows.jsonl"]
    assert tracker.notice() is None


def test_what_wandb_refuses_is_an_error_of_matrix(make_job: Make) -> None:
    with pytest.raises(MatrixError, match=r"tracker=wandb: Invalid project name 'a/b'.*tracker=none"):
        make_tracker(_spec(project="a/b")).start(make_job())


def test_the_job_goes_on_when_the_service_dies(make_job: Make, caplog: pytest.LogCaptureFixture) -> None:
    tracker = make_tracker(_spec())
    tracker.start(make_job("a"))
    tracker.log({"rows_per_s": 1.0}, 1)
    [service] = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    os.kill(service.pid, signal.SIGKILL)
    psutil.wait_procs([service], timeout=10)
    with caplog.at_level(logging.WARNING, "matrix"):
        for step in range(2, 5):
            tracker.log({"rows_per_s": 1.0}, step)
        tracker.finish(SUMMARY, 0, None)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("matrix")]
    assert said == ["W&B broke off, nothing more is logged there: Connection lost"]
    assert (tracker.notice() or "").startswith("W&B, to upload: wandb sync")
    _track(make_job("b"), _spec())
    assert _logged(make_job("b")).exit_code == 0


def test_an_interrupt_of_the_whole_process_group_leaves_time_to_close_the_run(make_job: Make) -> None:
    job = make_job()
    code = f"""
import os, signal, time
from pathlib import Path
from matrix.spec.tracker import WandbTracker
from matrix.tracking.tracker import JobInfo, make_tracker
tracker = make_tracker(WandbTracker(kind="wandb", mode="offline"))
tracker.start(JobInfo("n", "one", Path({str(job.run_dir)!r}), None, "qa", {{}}, (), "run.py"))
tracker.log({{"rows_per_s": 1.0}}, 1)
try:
    os.killpg(0, signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    tracker.finish({{}}, 130, None)
"""
    subprocess.run([sys.executable, "-c", code], start_new_session=True, timeout=60, check=True)
    logged = _logged(job)
    assert (logged.exit_code, logged.summary["rows_per_s"]) == (130, 1.0)


@pytest.fixture(params=["refused key", "no server"])
def unusable_server(place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(wandb_module, "INIT_TIMEOUT_S", 2)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1] if request.param == "refused key" else 1
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        yield
        server.shutdown()


def test_a_server_that_cannot_be_used_makes_the_run_offline(
    unusable_server: None, make_job: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job()
    with caplog.at_level(logging.WARNING):
        tracker = _track(job, _spec(mode="auto"))
    assert "The W&B server can't be used; the run is logged offline." in caplog.text
    wandb.teardown()
    [folder] = [folder for folder in _folders(job) if folder.name.startswith("offline-run-")]
    logged = read(next(folder.glob("*.wandb")))
    assert (logged.run_id, logged.summary["scores/exact/mean"], logged.exit_code) == ("one", 0.5, 0)
    assert tracker.notice() == f"W&B, to upload: wandb sync {folder}"
    assert capfd.readouterr() == ("", "")
