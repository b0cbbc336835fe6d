"""Several drivers on a real Ray cluster share the rows of a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import against, command, environment, rows, run, summary
from tests.fake_engine import Body, FakeEngine, Fault, echo
from tests.integration.family import Family

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 1500


@pytest.fixture(autouse=True)
def family() -> Iterator[Family]:
    """Whatever a test does, nothing of what it started is left."""
    with Family() as family:
        yield family
    assert len(family) > 5
    assert family.left(within_s=20) == []


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    """A run of 1,500 rows by two drivers, in the folder `here`."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f'{{"question": "row {index}.", "answer": "x"}}\n' for index in range(ROWS)))
    data = ("pipeline=sample_qa", "dataset=jsonl", f"dataset.path={path}")
    return (*data, "run.dir=here", "workload.drivers=2", "workload.concurrency=16")


def started(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*arguments), cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


def part(cwd: Path, number: int) -> Path:
    return cwd / "here" / "rows" / f"part-driver-{number}.jsonl"


def wait_for_rows(process: subprocess.Popen[str], cwd: Path, each: int) -> None:
    """Wait until both drivers have so many rows."""
    while not all(part(cwd, n).is_file() and part(cwd, n).read_bytes().count(b"\n") >= each for n in (0, 1)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def assert_whole(cwd: Path) -> None:
    """Every row is there once, with the answer to its own question."""
    found = rows(cwd / "here")
    assert [(row["index"], row["trial"]) for row in found] == [(index, 0) for index in range(ROWS)]
    assert all(row["response"]["text"] == [f"row {row['index']}."] for row in found)


def test_a_driver_that_is_killed_loses_no_row_and_none_is_doubled(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with FakeEngine.in_thread(latency_s=0.05) as engine:
        process = started(tmp_path, *against(engine.url), *arguments)
        wait_for_rows(process, tmp_path, 100)
        pid = int((tmp_path / "here" / "rows" / ".part-driver-1.lock").read_text().split()[1])
        os.kill(pid, signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert "driver-1 died" in said
        assert f"rows {ROWS}/{ROWS}" in said, "rows that the dead one never told of are counted"
        twice = [question for question, count in Counter(map(echo, engine.requests)).items() if count > 1]
    assert_whole(tmp_path)
    lines = [line for number in (0, 1) for line in part(tmp_path, number).read_text().splitlines()]
    assert len({json.loads(line)["index"] for line in lines}) == len(lines) == ROWS
    # Its share of 16 in flight died with it; nothing else is asked for twice.
    assert len(twice) <= 8
    assert summary(tmp_path / "here")["rows"]["ok"] == ROWS


def test_ctrl_c_stops_all_drivers_and_one_goes_on_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with FakeEngine.in_thread(latency_s=0.05) as engine:
        process = started(tmp_path, *against(engine.url), *arguments)
        wait_for_rows(process, tmp_path, 50)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate()
        assert time.monotonic() - began < 20
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert '"error":{' not in part(tmp_path, 0).read_text() + part(tmp_path, 1).read_text()
        done = run(tmp_path, *against(engine.url), *arguments, "workload.drivers=1")
        assert done.returncode == 0, done.stderr
    assert_whole(tmp_path)


def test_drivers_share_the_budget_and_tell_what_failed(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    def fail(body: Body) -> Fault | None:
        return Fault.http(400, "too long") if echo(body) == "row 7." else None

    price = ("model.price.input_per_million=1000", "model.price.output_per_million=1000")
    with FakeEngine.in_thread(latency_s=0.02, fail=fail) as engine:
        done = run(tmp_path, *against(engine.url), *arguments, *price, "workload.budget_usd=5")
        assert done.returncode == 3, done.stderr
        assert done.stderr.count("Row 7 failed, http_400") == 1
        found = summary(tmp_path / "here")
        assert found["stopped"] == "budget"
        assert found["rows"]["total"] == len(engine.requests) < ROWS
        assert found["cost_usd"] >= 4.5
