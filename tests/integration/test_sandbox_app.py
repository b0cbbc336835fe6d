"""A sandbox as an app on real Ray: deployed, looked after, asked directly, at the front door and by a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix.client.execute_code import batch_executions
from tests.command import environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Kept:
    """A folder with a local cluster that outlives commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = environment(MATRIX_DIR=str(folder / "matrix"))

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command of matrix that has to end with this exit code; returns what it prints."""
        command = [sys.executable, "-c", "import sys; from matrix.cli import main; sys.exit(main())", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=360, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a file."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    cluster = Kept(tmp_path_factory.mktemp("kept"))
    app = ["apps.code.engine=sandbox", "apps.code.engine.cpus=0.1", "apps.code.engine.grpc=true"]
    try:
        cluster.run("deploy_applications", *app, "app=code", "cluster.cpus=2")
        yield cluster
    finally:
        cluster.run("stop_cluster")


def test_it_is_well(kept: Kept) -> None:
    for more in ([], ["use_grpc=true"]):
        said = kept.run("check_health", "app=code", *more)
        assert "print(1+1): 2 (ok)" in said
        assert "app code is healthy" in said
    (app,) = json.loads(kept.run("status", "--json"))["apps"]
    assert (app["name"], app["engine"], app["model"], app["phase"]) == ("code", "sandbox", "sandbox", "healthy")


def test_the_front_door_passes_programs_on(kept: Kept) -> None:
    door, key = json.loads(kept.run("status", "--json"))["front_door"], kept.run("status", "--key").strip()
    for url, model in ((f"{door}/v1", "code"), (f"{door}/v1", "sandbox"), (f"{door}/code/v1", None)):
        (row,) = batch_executions(url, ["print(3)"], model=model, api_key=key)
        assert row["response"].get("stdout") == "3\n", row


def test_a_file_of_programs(kept: Kept) -> None:
    programs = [{"code": "print(input())", "stdin": "né"}, {"code": "1/0"}, {"cod": "1"}]
    (kept.folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in programs))
    kept.run("inference", "app=code", "input=in.jsonl", "output=out.jsonl")
    right, wrong, lacking = kept.rows("out.jsonl")
    assert (right["response"]["text"], right["response"]["executed"]["status"]) == (["né\n"], "ok")
    assert wrong["response"]["executed"]["exception"] == "ZeroDivisionError: division by zero"
    assert lacking["error"]["type"] == "data"
    counted = json.loads((kept.folder / "out.jsonl.run" / "summary.json").read_text())
    assert counted["executed"] == {"ok": 1, "error": 1}


def test_a_program_of_columns(kept: Kept) -> None:
    row = {"prompt": "def f(x):", "canonical_solution": "    return x", "test": "def check(c):\n    print(c(4))", "entry_point": "f"}  # fmt: skip
    (kept.folder / "parts.jsonl").write_text(json.dumps(row) + "\n")
    keys = "pipeline.text_keys=[prompt,canonical_solution,test]"
    template = "pipeline.prompt_template='check({entry_point})'"
    kept.run("inference", "app=code", "input=parts.jsonl", "output=made.jsonl", keys, template)
    assert kept.rows("made.jsonl")[0]["response"]["text"] == ["4\n"]


def test_an_app_that_fails_says_why_and_keeps_nobody_waiting(kept: Kept) -> None:
    bad = ["apps.bad.engine=sandbox", "apps.bad.engine.preload=[no_such_module]", "apps.bad.engine.cpus=0.1"]
    assert "engine.preload=no_such_module can't be imported" in kept.run("deploy_applications", *bad, "app=bad", code=1)
    door, key = json.loads(kept.run("status", "--json"))["front_door"], kept.run("status", "--key").strip()
    began = time.monotonic()
    (row,) = batch_executions(f"{door}/bad/v1", ["print(3)"], max_retries=1, api_key=key)
    assert "app 'bad' has failed: " in row["response"]["error"]
    assert "engine.preload=no_such_module" in row["response"]["error"]
    assert time.monotonic() - began < 60, "not the 600 s that one waits for a replica"
    kept.run("deploy_applications", "--action", "remove", "app=bad", *bad)


def test_a_run_uses_the_app_that_is_there(kept: Kept) -> None:
    same = ["engine.cpus=0.1", "engine.grpc=true", "cluster=attach", "tracker=none", "run.dir=run"]
    scorer = 'pipeline.scorers=[{kind: exact, reference: "{{ expected }}"}]'
    (kept.folder / "scored.jsonl").write_text('{"code": "print(1+1)", "expected": "2"}\n')
    kept.run("run", "pipeline=execute", "dataset.path=scored.jsonl", *same, scorer)
    assert kept.rows("run/rows.jsonl")[0]["scores"]["exact"]["values"] == [1.0]
    assert "App code is up" in (kept.folder / "run" / "run.log").read_text()
