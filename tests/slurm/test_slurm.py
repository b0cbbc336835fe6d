"""The Slurm of these tests is a real one, and a user who leaves something is found out."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import small_disk
from tests.slurm.login import Login
from tests.slurm.machine import NODES, SCRIPT, Slurm

# Says who it is, how often Slurm started it before, and its TMPDIR; then takes its time, also when it is asked to end: Slurm
# requeues only what it had to kill.
JOB = 'trap "" TERM; echo "$(hostname) ${SLURM_RESTART_COUNT:-0} $TMPDIR" >> SAID; exec sleep SECONDS'


def submit(login: Login, *options: str, seconds: float = 0, name: str = "said") -> str:
    job = JOB.replace("SAID", str(login.cwd / name)).replace("SECONDS", str(seconds))
    line = ("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", f"srun bash -c {shlex.quote(job)}")
    return login.command(*line).stdout.strip()


def said(login: Login, name: str = "said") -> list[str]:
    path = login.cwd / name
    return path.read_text().splitlines() if path.exists() else []


def test_a_submitit_job_runs_on_a_node(login: Login) -> None:
    script = """
import os, socket, submitit
executor = submitit.SlurmExecutor(folder="logs")
executor.update_parameters(time=5, gpus_per_node=2, nodes=1)
job = executor.submit(lambda: (socket.gethostname(), socket.gethostbyname(socket.gethostname()), dict(os.environ)))
host, ip, env = job.result()
print(host, ip, env["CUDA_VISIBLE_DEVICES"], env["TMPDIR"], sep="|")
"""
    host, ip, gpus, tmp = login.command(sys.executable, "-c", script, timeout_s=120).stdout.strip().split("|")
    assert host in NODES
    assert ip in login.slurm.on(host, "ip", "-4", "address")
    assert gpus == "0,1"
    assert tmp == str(login.tmp)


def test_a_job_that_fails_is_heard_of(login: Login) -> None:
    script = """
import submitit
executor = submitit.SlurmExecutor(folder="logs")
executor.update_parameters(time=5)
job = executor.submit(lambda: 1 / 0)
print(type(job.exception()).__name__)
"""
    assert login.command(sys.executable, "-c", script, timeout_s=120).stdout == "FailedJobError\n"


def test_a_bad_account_is_refused(login: Login) -> None:
    done = login.command("sbatch", "--account=nope", "--wrap", "true", code=1)
    assert "Invalid account" in done.stderr
    accounts = login.command("sacctmgr", "--noheader", "--parsable2", "show", "assoc", "user=root", "format=account")
    assert {"research", "other"} <= set(accounts.stdout.split())
    job = submit(login)
    told = login.command("scontrol", "show", "job", job).stdout
    assert "Account=research" in told


def test_what_sinfo_says_of_the_partitions(login: Login) -> None:
    lines = login.command("sinfo", "--noheader", "--format=%R|%c|%m|%G|%l").stdout.split()
    assert sorted(lines) == [
        "cpu|16|16000|(null)|infinite",
        "high|8|8000|gpu:h100:8|infinite",
        "limited|8|8000|gpu:h100:8|1:00:00",
        "low|8|8000|gpu:h100:8|infinite",
        "main|8|8000|gpu:h100:8|infinite",
        "untyped|8|8000|gpu:2|infinite",
    ]


def test_a_job_on_nodes_without_a_host_waits(login: Login) -> None:
    job = submit(login, "--partition=untyped", "--gpus-per-node=1")
    login.wait_for(lambda: login.job(job)["reason"].startswith("Nodes required"), 20, "Slurm says why it waits")
    assert login.job(job)["state"] == "PENDING"


def test_a_preempted_job_is_requeued_soon(login: Login) -> None:
    whole = ("--nodelist=n1", "--exclusive")
    low = submit(login, "--partition=low", *whole, seconds=300)
    login.wait_for(lambda: said(login) == [f"n1 0 {login.tmp}"], 60, "the low one runs")
    submit(login, "--partition=high", *whole, seconds=1, name="high")
    login.wait_for(lambda: said(login, "high"), 60, "the high one takes its place")
    begun = time.monotonic()
    login.wait_for(lambda: len(said(login)) == 2, 60, "the low one runs again")
    # Else it is two minutes.
    assert time.monotonic() - begun < 50
    assert said(login)[1] == f"n1 1 {login.tmp}"
    assert login.job(low)["state"] == "RUNNING"


def test_a_node_that_is_cut_off_comes_back(login: Login) -> None:
    with login.slurm.cut_off("n3"), pytest.raises(subprocess.CalledProcessError):
        login.slurm.on("n3", "timeout", "5", "scontrol", "ping")
    assert "UP" in login.slurm.on("n3", "scontrol", "ping")


def test_leftovers_are_found(login: Login) -> None:
    assert login.leftovers() == []
    waits = submit(login, "--hold")
    submit(login, "--nodelist=n2", seconds=300)
    login.wait_for(lambda: len(said(login)) == 1, 60, "a job runs")
    server = "import socket, time; s = socket.create_server(('127.0.0.1', 7654)); time.sleep(300)"
    enter = ("nsenter", "--all", "--target", str(login.slurm.host("n1")), "--")
    process = login.start(*enter, sys.executable, "-c", server)
    login.wait_for(lambda: login.slurm.listening("n1"), 20, "it listens")
    (login.tmp / "ray").touch()
    token = login.matrix_dir / "clusters" / "slurm" / "1" / "token"
    token.parent.mkdir(parents=True)
    token.touch()

    left = login.leftovers()
    assert f"job {waits} PENDING wrap" in left
    assert "port 7654 on n1" in left
    assert f"file {login.tmp / 'ray'}" in left
    assert f"token {token}" in left
    # nsenter's child, and the job's on another node.
    assert any(line.startswith("process") and "7654" in line and "nsenter" not in line for line in left)
    assert any(line.startswith("process") and line.endswith(" sleep 300") for line in left)

    for pid in login.processes():
        if pid != process.pid and "7654" in login.processes().get(pid, ""):
            os.kill(pid, 9)
    (login.tmp / "ray").unlink()
    token.unlink()


def test_a_user_who_leaves_something_is_found_out(slurm: Slurm) -> None:
    with pytest.raises(AssertionError, match="forgotten"), Login.until_the_end(slurm) as login:
        (login.tmp / "forgotten").touch()
    assert not login.place.exists()


def test_nothing_is_left_of_slurm_itself(tmp_path: Path) -> None:
    """Also beside another one."""
    before = _of_this_machine()
    base = Path("/tmp", f"slurm{os.getpid()}")
    begun = time.monotonic()
    with Slurm(base).running():
        assert time.monotonic() - begun < 60
        login = Login(Slurm(base), tmp_path)
        submit(login, "--nodelist=n2", seconds=300)
        login.wait_for(lambda: said(login), 60, "a job runs")
        bridge = (base / "bridge").read_text().strip()
        assert bridge in _links()
        assert login.processes()
    assert not base.exists()
    assert login.processes() == {}
    assert bridge not in _links()
    assert _of_this_machine() == before
    # A second stop finds nothing to do.
    subprocess.run([SCRIPT, "stop", base], check=True)


def _links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def _of_this_machine() -> dict[str, str]:
    folders = ("/etc/slurm", "/etc/munge", "/run/munge", "/run/netns")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        # Tests that run beside this one mount small disks of their own.
        "mounts": "\n".join(line for line in mounts if not line.startswith(small_disk.DEVICE)),
        "/etc/hosts": Path("/etc/hosts").read_text(),
        **{name: "\n".join(sorted(map(str, Path(name).rglob("*")))) for name in folders},
    }
