"""The main job with its real parts: Ray, Serve, and vLLM on the CPU with the default model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import LOCAL, command, environment, only_run_dir, rows, run, summary
from tests.integration.family import Family

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def family() -> Iterator[Family]:
    """Whatever a test does, nothing of what it started is left."""
    with Family() as family:
        yield family
    # Ray, Serve, vLLM and their helpers: the watch is no good if it sees none.
    assert len(family) > 10
    assert family.left(within_s=20) == []


def started(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*arguments), cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


def wait_for_rows(process: subprocess.Popen[str], part: Path, number: int) -> None:
    while not part.is_file() or part.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def test_the_main_job(tmp_path: Path, family: Family) -> None:
    """Rows, scores, exit code; nothing listens beyond loopback; the offline W&B run is there."""
    process = started(tmp_path, "trials=2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert family.exposed == set()
    run_dir = only_run_dir(tmp_path / "outputs")
    found = rows(run_dir)
    assert len(found) == 96
    assert {row["status"] for row in found} == {"ok"}
    assert all(row["response"]["usage"]["completion_tokens"] > 0 for row in found)
    scores = summary(run_dir)["scores"]["contains"]
    # A real model: it knows some capitals, and not everything.
    assert 0.3 < scores["accuracy"] < 0.9
    assert scores["stderr"] > 0
    made = json.loads((run_dir / "env.json").read_text())
    assert made["model"]["checksum"].startswith("sha256:")
    assert made["packages"]["ray"]
    assert "accuracy" in out
    assert "Loading model smollm2 into vLLM on the CPU: done" in err
    assert list(run_dir.rglob("*.wandb"))
    assert "wandb sync" in err
    assert not re.search(r"^(INFO|WARNING)", err, re.MULTILINE), "somebody else's log lines are on the terminal"


def test_kill_9_resume_and_ctrl_c(tmp_path: Path) -> None:
    """A driver that is killed leaves nothing behind; the rows go on where they were; Ctrl-C stops in seconds."""
    arguments = (*LOCAL, "trials=6", "workload.concurrency=4", "run.dir=here")
    part = tmp_path / "here" / "rows" / "part-driver.jsonl"
    process = started(tmp_path, *arguments)
    wait_for_rows(process, part, 20)
    process.kill()
    process.communicate()
    kept = part.read_bytes().count(b"\n")

    process = started(tmp_path, *arguments)
    wait_for_rows(process, part, kept + 20)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate(timeout=360)
    assert time.monotonic() - begun < 20
    assert process.returncode == 130
    assert "run.dir=here" in err

    done = run(tmp_path, *arguments, timeout_s=600)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "here")
    assert [(row["index"], row["trial"]) for row in found] == [(i, t) for i in range(48) for t in range(6)]
    assert summary(tmp_path / "here")["resumed_rows"] >= kept + 20


def test_sigterm_while_the_model_loads(tmp_path: Path) -> None:
    process = started(tmp_path, *LOCAL, "run.dir=here")
    assert process.stderr is not None
    for line in process.stderr:
        if "Loading model smollm2 into vLLM on the CPU ..." in line:
            break
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=360)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Stopped by SIGTERM" in err
    assert "run.dir=here" in err


def test_a_sweep_starts_cluster_and_engine_once(tmp_path: Path) -> None:
    data = ("pipeline=gsm8k", f"dataset.path={tmp_path / 'gsm8k.jsonl'}", "sampling.max_tokens=48")
    (tmp_path / "gsm8k.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {i} plus {i}?", "answer": f"#### {2 * i}"}) + "\n" for i in range(6))
    )
    done = run(tmp_path, *LOCAL, *data, "-m", "sampling.temperature=0,0.9", timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Starting Ray on this machine: done") == 1
    assert done.stderr.count("Loading model smollm2 into vLLM on the CPU: done") == 1
    assert "App smollm2 is up (model smollm2)" in done.stderr
    (sweep,) = [file.parent for file in (tmp_path / "outputs").rglob("multirun.yaml")]
    for job, temperature in (("0", 0), ("1", 0.9)):
        assert {row["request"]["temperature"] for row in rows(sweep / job)} == {temperature}
        assert summary(sweep / job)["scores"]["number"]["questions"] == 6
    assert summary(sweep / "1")["time_s"]["until_ready"] < 5


def test_an_engine_that_cannot_start_says_its_own_last_lines(tmp_path: Path) -> None:
    done = run(tmp_path, *LOCAL, "engine.args.dtype=nonsense", timeout_s=600)
    assert done.returncode == 1
    assert "--dtype: invalid choice: 'nonsense'" in done.stderr
    assert "engine-" in done.stderr
    # Not the line of its begin, which comes again where that takes long.
    assert done.stderr.count("Starting Ray on this machine: done") == 1
    assert not (tmp_path / "summary.json").exists()
