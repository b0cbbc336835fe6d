"""When an engine hangs, and what a process under the guard leaves."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from matrix.apps.process import GuardedProcess
from matrix.apps.replica import Stall
from matrix.serving.metric_names import Load


def load(running: float, tokens: float) -> Load:
    return Load(running=running, waiting=0, tokens_total=tokens)


def test_requests_without_tokens_are_a_hang() -> None:
    stall = Stall(10)
    assert [stall.seen(load(2, 100), now) for now in (0, 5, 10)] == [None, None, None]
    assert stall.seen(load(2, 100), 11) == "2 requests running and no token for 11 s"


def test_tokens_or_rest_are_none() -> None:
    stall = Stall(10)
    assert all(stall.seen(load(2, now), now) is None for now in range(0, 100, 9))
    assert all(stall.seen(load(0, 99), now) is None for now in range(100, 200, 9))
    # A request that has just come finds the clock at zero.
    assert stall.seen(load(1, 99), 205) is None


def test_a_process_gets_its_addresses_and_secrets_and_not_rays_token(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray's own")
    script = (
        "import os, pathlib, stat, sys\n"
        "path = pathlib.Path(sys.argv[2])\n"
        "print(sys.argv[1], path.read_text(), oct(stat.S_IMODE(path.stat().st_mode)), os.environ.get('RAY_AUTH_TOKEN'),"
        " os.environ['MINE'], path, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, "{port}", "{secrets}"]
    process = GuardedProcess("it", command, {"MINE": "1"}, tmp_path / "logs" / "log", {"{port}": "77"}, "a: b")
    while not (tmp_path / "logs" / "log").read_text().endswith("\n"):
        time.sleep(0.02)
    said = process.last_line().split()
    assert said[:-1] == ["77", "a:", "b", "0o600", "None", "1"]
    assert process.exit_code is None
    process.end()
    assert process.exit_code is not None
    assert not Path(said[-1]).exists()


def test_its_failure_shows_its_last_lines(tmp_path: Path) -> None:
    process = GuardedProcess(
        "it", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], {}, tmp_path / "log", {}
    )
    while process.exit_code is None:
        time.sleep(0.02)
    assert process.failure() == f"it ended with exit code 3; its last lines ({tmp_path / 'log'}):\n    why"
    process.end()
