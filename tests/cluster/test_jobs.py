"""Jobs: what sbatch is asked for, and processes of this machine that outlive who started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from matrix.cluster import jobs, launch
from matrix.cluster.kept import start_time
from matrix.errors import ClusterError
from tests.cluster.clusters import new, spec, status
from tests.command import environment

SUBMIT = """
import sys, time
from functools import partial
from pathlib import Path
from matrix.cluster import jobs
from matrix.cluster.folder import ClusterFolder
from tests.cluster.mains import stays
folder = ClusterFolder(Path(sys.argv[1]))
job = jobs.submit_head(folder, folder.spec(), partial(stays, sys.argv[2], sys.argv[3]))
print(job, flush=True)
time.sleep(float(sys.argv[4]))
"""


def directives(script: str) -> dict[str, str]:
    found = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (line.partition("=") for line in found)}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_every_parameter_is_in_the_scripts(tmp_path: Path) -> None:
    wanted = spec(
        tmp_path,
        id="mine",
        executor="slurm",
        workers=4,
        cpus_per_node=8,
        gpus_per_node=2,
        mem_gb_per_node=64,
        max_hours=1.5,
        drain_s=120,
        head={"cpus": 3, "mem_gb": 7, "args": {"reservation": "ours"}},
        slurm={
            "partition": "gpu",
            "account": "research",
            "qos": "high",
            "args": {"constraint": "h100", "gres-flags": "x", "mail_type": "END", "exclusive": True, "nice": None},
        },
    )
    found = {name: directives(text) for name, text in jobs.scripts(wanted, tmp_path).items()}
    for role in found.values():
        assert role["partition"] == "gpu"
        assert role["account"] == "research"
        assert role["qos"] == "high"
        assert role["requeue"] == ""
        assert role["time"] == "90"
        assert role["signal"] == "USR2@180"
        assert role["ntasks-per-node"] == "1"
    assert found["head"]["job-name"] == "matrix-mine-head"
    assert (found["head"]["cpus-per-task"], found["head"]["mem"]) == ("3", "7GB")
    assert not {"gpus-per-node", "array"} & found["head"].keys()
    workers = found["workers"]
    assert workers["job-name"] == "matrix-mine-worker"
    given = [workers[name] for name in ("constraint", "gres-flags", "mail-type", "exclusive")]
    assert given == ["h100", "x", "END", ""]
    assert not {"nice", "reservation"} & workers.keys()
    assert found["head"]["reservation"] == "ours"
    assert "constraint" not in found["head"]
    assert (workers["cpus-per-task"], workers["gpus-per-node"], workers["mem"]) == ("8", "2", "64GB")
    assert workers["nodes"] == "1"
    assert workers["array"].startswith("0-3")


def test_one_job_is_one_job_of_all_nodes(tmp_path: Path) -> None:
    wanted = spec(tmp_path, executor="slurm", workers=4, slurm={"one_job": True})
    workers = directives(jobs.scripts(wanted, tmp_path)["workers"])
    assert workers["nodes"] == "4"
    assert "array" not in workers


def test_one_worker_is_no_array_and_the_head_may_be_elsewhere(tmp_path: Path) -> None:
    wanted = spec(tmp_path, executor="slurm", slurm={"partition": "gpu"}, head={"partition": "cpu"})
    found = {name: directives(text) for name, text in jobs.scripts(wanted, tmp_path).items()}
    assert "array" not in found["workers"]
    assert (found["head"]["partition"], found["workers"]["partition"]) == ("cpu", "gpu")
    assert not {"account", "qos"} & found["workers"].keys()


def test_a_short_job_is_signalled_within_its_time(tmp_path: Path) -> None:
    head = directives(jobs.scripts(spec(tmp_path, executor="slurm", max_hours=1 / 60), tmp_path)["head"])
    assert head["time"] == "1"
    assert head["signal"] == "USR2@30"


def test_a_plan_of_a_thousand_nodes_takes_no_time_and_needs_no_slurm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    launch.plan(spec(tmp_path, executor="slurm"))
    began = time.monotonic()
    found = launch.plan(spec(tmp_path, executor="slurm", workers=1000))
    assert time.monotonic() - began < 1
    (workers,) = [text for path, text in found.items() if path.endswith("workers.sh")]
    assert directives(workers)["array"].startswith("0-999")
    assert {Path(path).read_text() for path in found} == set(found.values())


def test_what_slurm_refuses_is_said_in_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n"
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = new(tmp_path, executor="slurm")
    with pytest.raises(ClusterError, match=r"Slurm refuses the job: .*invalid partition specified: x"):
        jobs.submit_head(folder, folder.spec(), print)


def test_a_job_of_this_machine_lives_on_after_its_submitter(tmp_path: Path) -> None:
    folder, mark = new(tmp_path), tmp_path / "mark"
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(folder.path), str(mark), "TERM", "0"],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    job = done.stdout.strip()
    try:
        wait_for(mark.exists, "the job runs")
        assert jobs.living("local", [job]) == [job]
        assert jobs.states("local", [job])[job].state == "RUNNING"
        # The id that the job itself has.
        assert mark.read_text() == job
        assert (folder.jobs / f"{job}_0_log.out").exists()
    finally:
        jobs.cancel("local", [job])
    wait_for(lambda: not jobs.living("local", [job]), "it ends")
    assert mark.read_text() == "ended"
    jobs.cancel("local", [job])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_terminal_sends_its_group_does_not_reach_a_job(tmp_path: Path, number: signal.Signals) -> None:
    folder, mark = new(tmp_path), tmp_path / "mark"
    submitter = subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(folder.path), str(mark), "INT", "60"],
        env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert submitter.stdout
    job = submitter.stdout.readline().strip()
    try:
        wait_for(mark.exists, "the job runs")
        os.killpg(submitter.pid, number)
        assert submitter.wait(timeout=20) != 0
        time.sleep(0.5)
        assert jobs.living("local", [job]) == [job]
        assert mark.read_text() == job
    finally:
        jobs.cancel("local", [job], signal.SIGKILL)
        wait_for(lambda: not jobs.living("local", [job]), "it ends")


def test_a_stubborn_job_is_killed_with_its_process(tmp_path: Path) -> None:
    folder, mark = new(tmp_path), tmp_path / "mark"
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(folder.path), str(mark), "", "0"],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    job = done.stdout.strip()
    wait_for(mark.exists, "the job runs")
    children = jobs._children(job)
    jobs.cancel("local", [job])
    time.sleep(0.5)
    assert jobs.living("local", [job]) == [job]
    jobs.cancel("local", [job], signal.SIGKILL)
    wait_for(lambda: not jobs.living("local", [job]), "it ends")
    wait_for(lambda: not any(map(start_time, children)), "its process ends")


def test_a_job_ends_with_what_looks_after_it(tmp_path: Path) -> None:
    folder, mark = new(tmp_path), tmp_path / "mark"
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(folder.path), str(mark), "TERM", "0"],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    wait_for(mark.exists, "the job runs")
    os.kill(int(done.stdout), signal.SIGKILL)
    wait_for(lambda: mark.read_text() == "ended", "it ends")


def test_a_process_that_got_the_id_of_a_job_is_left_alone() -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert jobs.living("local", [str(other.pid)]) == []
        jobs.cancel("local", [str(other.pid)])
        jobs.cancel("local", [str(other.pid)], signal.SIGKILL)
        time.sleep(0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_id_of_the_job_that_this_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_JOB_ID", "SUBMITIT_LOCAL_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert jobs.job_id("slurm") == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert jobs.job_id("slurm") == "5_2"
    assert jobs.job_id("debug") == str(os.getpid())
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "9")
    assert jobs.job_id("local") == "9"


@pytest.mark.parametrize(
    ("state", "ends", "comes_back"),
    [
        ("RUNNING", 9, True),
        ("COMPLETING", 0, True),
        ("COMPLETING", 9, False),
        ("CANCELLED", 9, False),
        (None, 0, False),
    ],
)
def test_which_job_comes_back(
    monkeypatch: pytest.MonkeyPatch, state: str | None, ends: float, comes_back: bool
) -> None:
    found = {"1": replace(status("1", state), ends=ends)} if state else {}
    monkeypatch.setattr(jobs.slurm, "job_states", lambda _: found)
    assert jobs.may_come_back("slurm", "1") == comes_back
    assert not jobs.may_come_back("local", "1")
