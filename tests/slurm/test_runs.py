"""Runs inside a cluster on a real Slurm: handed over, followed, left, found again, stopped, swept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.clusters import SIMULATED, SMALL, assert_whole, run_dir, status
from tests.slurm.login import PATIENCE, Login
from tests.slurm.machine import Slurm

SLOW = (*SIMULATED, "engine.first_token_s=0.5", "workload.concurrency=4")
"""With a trial of 48 rows, 7 seconds."""


@pytest.fixture(scope="module")
def user(slurm: Slurm) -> Iterator[Login]:
    """A user whose cluster of three workers stays for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch, Login.until_the_end(slurm) as login:
        patch.setenv("SLURM_CONF", str(slurm.conf))
        login.matrix("start_cluster", *SMALL, "cluster.workers=3")
        yield login


@pytest.fixture
def there(user: Login, tmp_path: Path) -> Login:
    """The same user in another folder."""
    user.cwd = user.place / "w" / tmp_path.name
    user.cwd.mkdir(parents=True)
    return user


def test_the_main_job_on_every_node(there: Login) -> None:
    done = there.run("cluster=slurm", *SIMULATED, "engine.replicas=3", "tracker=wandb", "trials=2")
    found = run_dir(there)
    assert_whole(found, trials=2)
    assert "96 ok, 0 errors" in done.stdout
    # Whoever reads the run dir sees what a run on this machine leaves.
    names = {path.name for path in found.iterdir()}
    assert {"spec.yaml", "env.json", "rows.jsonl", "summary.json", "run.log", "metrics.jsonl", "state.json"} <= names
    assert len([name for name in names if name.startswith("engine-")]) == 3
    state = json.loads((found / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("succeeded", 0)
    assert state["job_id"]
    assert [app["name"] for app in status(there)["apps"]] == []


def test_a_run_that_fails_is_failed_with_a_code(there: Login) -> None:
    done = there.run("cluster=slurm", *SIMULATED, "engine.error_rate=1", "workload.max_attempts=1", code=1)
    assert "0 ok, 48 errors" in done.stdout
    command = status(there)["commands"][-1]
    assert (command["phase"], command["exit_code"]) == ("failed", 1)
    assert json.loads((run_dir(there) / "state.json").read_text())["status"] == "failed"


def test_a_bad_config_is_refused_here(there: Login) -> None:
    before = len(status(there)["commands"])
    done = there.run("cluster=slurm", *SIMULATED, "engine.replicas=9", "sampling.temprature=1", code=2)
    assert "sampling.temprature" in done.stderr
    done = there.run("cluster=slurm", *SIMULATED, "engine.replicas=9", code=2)
    assert "no room for replica 4 of 9" in done.stderr
    assert len(status(there)["commands"]) == before


def test_a_run_goes_on_without_its_terminal_and_is_found_again(there: Login) -> None:
    process = there.start_run("cluster=slurm", *SLOW, "trials=3", "run.dir=left")
    there.wait_for(lambda: "rows " in there.said(process), 60, "some rows")
    os.killpg(process.pid, signal.SIGKILL)
    done = there.matrix("attach", "left", timeout_s=120)
    # From the beginning.
    assert "Run dir" in done.stdout
    assert "144 ok, 0 errors" in done.stdout
    assert_whole(there.cwd / "left", trials=3)
    # Again, once it has ended.
    assert "144 ok, 0 errors" in there.matrix("attach", "left").stdout
    assert "no such run" in there.matrix("attach", "nowhere", code=1).stderr


def test_detached(there: Login) -> None:
    done = there.run("cluster=slurm", *SIMULATED, "run.detach=true")
    key = done.stderr.split("matrix attach ")[1].split()[0]
    assert there.matrix("attach", key, timeout_s=60).returncode == 0
    assert_whole(run_dir(there))


def test_ctrl_c_stops_the_run_and_it_is_resumed(there: Login) -> None:
    process = there.start_run("cluster=slurm", *SLOW, "trials=4", "run.dir=stopped")
    there.wait_for(lambda: "rows " in there.said(process), 60, "some rows")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE * 60) == 130, there.said(process)
    assert "Asked it to stop" in there.said(process)
    assert "Resume with" in there.said(process)
    assert status(there)["commands"][-1]["phase"] == "stopped"
    assert json.loads((there.cwd / "stopped" / "state.json").read_text())["status"] == "stopped"
    there.run("cluster=slurm", *SIMULATED, "engine.first_token_s=0.5", "trials=4", "run.dir=stopped")
    assert_whole(there.cwd / "stopped", trials=4)
    assert json.loads((there.cwd / "stopped" / "summary.json").read_text())["resumed_rows"] > 0


def test_a_second_ctrl_c_leaves_it_alone(there: Login) -> None:
    # One that takes its time to stop: its engine hangs.
    process = there.start_run("cluster=slurm", *SLOW, "engine.first_token_s=60", "run.dir=alone")
    there.wait_for(lambda: "rows 0/48" in there.said(process), 60, "the workload")
    key = status(there)["commands"][-1]["key"]
    pid = status(there)["commands"][-1]["pid"]
    host = status(there)["head"]["host"]
    there.slurm.on(host, "kill", "-STOP", str(pid))
    os.killpg(process.pid, signal.SIGINT)
    there.wait_for(lambda: "Asked it to stop" in there.said(process), 20, "the first answer")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE * 20) == 130
    assert f"matrix attach {key}" in there.said(process)
    there.slurm.on(host, "kill", "-CONT", str(pid))
    assert there.matrix("attach", key, code=130, timeout_s=60)


def test_a_sweep_shares_the_cluster_and_the_engine(there: Login) -> None:
    sweep = ("-m", "cluster=slurm", *SIMULATED, "sampling.temperature=0,0.5", "trials=1,2")
    done = there.run(*sweep, "hydra.sweep.dir=sweep")
    for number, trials in enumerate((1, 2, 1, 2)):
        assert_whole(there.cwd / "sweep" / str(number), trials=trials)
    assert done.stdout.count("Loading model pretend") == 2
    assert "a sweep that isn't" not in done.stderr
    refused = there.run(*sweep, "hydra.sweep.dir=${now:%H}", code=2)
    assert "hydra.sweep.dir" in refused.stderr


def test_one_failing_job_of_a_sweep_hides_no_other(there: Login) -> None:
    sweep = ("-m", "cluster=slurm", *SIMULATED, "workload.max_attempts=1", "engine.error_rate=0,1", "hydra.sweep.dir=s")
    done = there.run(*sweep, code=1)
    assert_whole(there.cwd / "s" / "0")
    assert "0 ok, 48 errors" in done.stdout
    assert "s/0" in done.stdout


def test_several_drivers_on_the_workers(there: Login) -> None:
    there.run("cluster=slurm", *SIMULATED, "workload.drivers=2", "run.dir=drivers")
    assert_whole(there.cwd / "drivers")


def test_the_environment_of_the_terminal_reaches_the_run_and_no_file_after_it(there: Login) -> None:
    there.env["WANDB_TAG_OF_TEST"] = "purple"
    done = subprocess.run(["grep", "-rl", "purple", str(there.matrix_dir)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    there.run("cluster=slurm", *SIMULATED, "dataset.limit=4")
    done = subprocess.run(["grep", "-rl", "purple", str(there.matrix_dir)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
