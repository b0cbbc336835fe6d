"""The online path against `openwandb`, a W&B-compatible server, over real HTTP.

The server is not a dependency of matrix. The tests look for its command in `MATRIX_OPENWANDB` (a path) and on PATH, so
it can live in an environment of its own: `uv tool install openwandb==0.5.25` or a venv. They are skipped without it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wandb

from matrix.spec.tracker import WandbTracker as WandbSpec
from matrix.tracking import wandb as wandb_module
from matrix.tracking.tracker import JobInfo, Tracker, make_tracker
from tests.tracking.tracked_rows import bad_row, good_row

KEY = "local" + "0" * 40  # The server's built-in key of its default user.
OPENWANDB = os.environ.get("MATRIX_OPENWANDB") or shutil.which("openwandb")
SUMMARY = {"rows": {"total": 2, "ok": 1}, "scores": {"exact": {"mean": 0.5}}}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        OPENWANDB is None, reason="no openwandb server: put it on PATH or name its command in MATRIX_OPENWANDB"
    ),
]

Make = Callable[..., JobInfo]


@dataclass
class Server:
    """A running server and what it can be asked."""

    url: str
    process: subprocess.Popen[bytes]

    def run(self, run_id: str) -> dict[str, Any]:
        fields = "name displayName state tags notes config summaryMetrics"
        query = f'query {{ project(name: "facts", entityName: "default") {{ run(name: "{run_id}") {{ {fields} }} }} }}'
        run = json.loads(self.get("/graphql", {"query": query}))["data"]["project"]["run"]
        return run | {name: json.loads(run[name]) for name in ("config", "summaryMetrics")}

    def history(self, run_id: str) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in self.get(f"/files/default/facts/{run_id}/wandb-history.jsonl").splitlines()
        ]

    def artifacts(self, run_id: str) -> dict[str, str]:
        found = json.loads(self.get(f"/api/v2/runs/{run_id}/artifacts"))["artifacts"]
        return {artifact["name"]: artifact["artifact_type"] for artifact in found}

    def get(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        key = base64.b64encode(f"api:{KEY}".encode()).decode()
        headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _serve(data: Path, port: int) -> Server:
    command = [str(OPENWANDB), "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(data)]
    with (data / "server.log").open("ab") as log:
        server = Server(f"http://127.0.0.1:{port}", subprocess.Popen(command, stdout=log, stderr=log))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.process.poll() is None, (data / "server.log").read_text()
        try:
            server.get("/api/v1/viewer")
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return server
    server.stop()
    pytest.fail(f"openwandb isn't up after 60 s:\n{(data / 'server.log').read_text()}")


@pytest.fixture
def server(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    data = place / "server"
    data.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = _serve(data, port)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    wandb.teardown()
    server.stop()


def _spec(**fields: Any) -> WandbSpec:
    return WandbSpec.model_validate({"kind": "wandb", "project": "facts"} | fields)


def _track(job: JobInfo, spec: WandbSpec, first: int = 1, exit_code: int = 0) -> Tracker:
    tracker = make_tracker(spec)
    tracker.start(job)
    for done, row in enumerate((good_row(0, value=0.5), bad_row(1)), first):
        tracker.sample(row)
        tracker.log({"rows_done": done, "rows_per_s": 0.5 * done}, done)
    rows_file = job.run_dir / "rows.jsonl"
    rows_file.write_text('{"id": "r0"}\n')
    tracker.finish(SUMMARY, exit_code, rows_file)
    return tracker


def _sync(notice: str | None) -> None:
    program, *arguments = shlex.split((notice or "").removeprefix("W&B, to upload: "))
    assert program == "wandb"
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_key_in_the_environment_puts_the_run_online(
    server: Server, make_job: Make, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = _track(make_job(), _spec(tags=["mine"], notes="first try", log_rows=True))
    assert tracker.notice() == f"W&B: {server.url}/default/facts/runs/one"
    assert capfd.readouterr() == ("", "")
    run = server.run("one")
    assert (run["name"], run["displayName"], run["state"]) == ("one", "qa/one", "finished")
    assert (run["tags"], run["notes"]) == (["smollm2", "qa", "mine"], "first try")
    assert run["config"]["engine"]["value"] == {"env": {"HF_TOKEN": "***"}}
    assert run["summaryMetrics"]["scores/exact/mean"] == 0.5
    history = server.history("one")
    assert [(step["rows_done"], step["rows_per_s"]) for step in history if "rows_per_s" in step] == [(1, 0.5), (2, 1.0)]
    [samples] = [step["samples"] for step in history if "samples" in step]
    table = json.loads(server.get(f"/files/default/facts/one/{samples['path']}"))
    assert [cells[0] for cells in table["data"]] == ["r0", "r1"]
    assert server.artifacts("one") == {"run-one-samples": "run_table", "rows-one": "rows"}
    stored = b"".join(
        path.read_bytes() for path in (place / "run").rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert KEY.encode() not in stored


def test_jobs_of_a_sweep_are_runs_of_their_own(server: Server, make_job: Make) -> None:
    notices = [_track(make_job(name), _spec(mode="online")).notice() for name in ("a", "b")]
    assert notices == [f"W&B: {server.url}/default/facts/runs/{name}" for name in ("a", "b")]
    assert len(server.history("a")) == len(server.history("b")) == 3


def test_a_resumed_run_goes_on_in_the_same_run(server: Server, make_job: Make) -> None:
    _track(make_job(), _spec(), exit_code=130)
    tracker = _track(make_job(), _spec(), first=3)
    assert tracker.notice() == f"W&B: {server.url}/default/facts/runs/one"
    assert [step["rows_done"] for step in server.history("one") if "rows_per_s" in step] == [1, 2, 3, 4]
    assert server.run("one")["summaryMetrics"]["rows_done"] == 4


def test_the_notice_of_an_offline_run_uploads_both_of_its_parts(server: Server, make_job: Make) -> None:
    _track(make_job(), _spec(mode="offline"), exit_code=130)
    tracker = _track(make_job(), _spec(mode="offline"), first=3)
    wandb.teardown()
    _sync(tracker.notice())
    run = server.run("one")
    assert (run["displayName"], run["state"], run["tags"]) == ("qa/one", "finished", ["smollm2", "qa"])
    assert [step["rows_done"] for step in server.history("one") if "rows_per_s" in step] == [1, 2, 3, 4]


def test_a_server_that_goes_away_costs_the_job_nothing_but_the_upload(
    server: Server, make_job: Make, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_module, "FINISH_TIMEOUT_S", 3)
    tracker = make_tracker(_spec())
    tracker.start(make_job())
    tracker.log({"rows_done": 1}, 1)
    server.stop()
    tracker.log({"rows_done": 2}, 2)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "matrix"):
        tracker.finish(SUMMARY, 0, None)
    assert time.monotonic() - began < 30
    assert "W&B didn't get everything within 3 s; the rest is kept in the run dir" in caplog.text
    again = _serve(place / "server", int(server.url.rpartition(":")[2]))
    try:
        _sync(tracker.notice())
        assert again.run("one")["summaryMetrics"]["scores/exact/mean"] == 0.5
        assert {step["rows_done"] for step in again.history("one")} == {1, 2}
    finally:
        again.stop()
