"""What Slurm is asked, and what it answers: partitions, jobs in all their states, a spec."""

from __future__ import annotations

import os
import time

import pytest

from matrix.cluster.resolve import resolved
from matrix.cluster.slurm import cancel, is_over, job_states, node_kinds, requeue
from matrix.errors import ClusterError, ConfigError
from matrix.spec import SlurmCluster
from tests.slurm.login import Login


def submit(login: Login, *options: str, wrap: str = "sleep 300") -> str:
    return login.command(
        "sbatch", "--parsable", "--output=/dev/null", "--mem=100", *options, "--wrap", wrap
    ).stdout.strip()


def wait_for_state(login: Login, job: str, state: str) -> None:
    login.wait_for(lambda: (found := job_states([job]).get(job)) and found.state == state, 30, f"job {job} is {state}")


def test_partitions(login: Login) -> None:
    found = {one.name: one for one in node_kinds()}
    assert set(found) == {"main", "limited", "cpu", "untyped", "low", "high"}
    main, limited, cpu, untyped = (found[name] for name in ("main", "limited", "cpu", "untyped"))
    assert (main.is_default, main.is_up, main.nodes, main.cpus, main.mem_gb) == (True, True, 3, 8, 7)
    assert (main.gpus, main.gpu_type, main.max_hours) == (8, "h100", None)
    assert (limited.is_default, limited.max_hours) == (False, 1)
    assert (cpu.cpus, cpu.gpus, cpu.gpu_type) == (16, 0, "")
    assert (untyped.gpus, untyped.gpu_type) == (2, "")


def test_a_users_own_formats_change_nothing(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINFO_PARTITION", "cpu")
    monkeypatch.setenv("SQUEUE_STATES", "SUSPENDED")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert len(node_kinds()) == 6
    job = submit(login, "--hold")
    assert abs(job_states([job])[job].submitted - time.time()) < 60


def test_jobs_of_all_kinds(login: Login) -> None:
    array = submit(login, "--array=0-2", "--nodelist=n1")
    two = submit(login, "--nodes=2")
    held = submit(login, "--hold")
    done, failed = submit(login, wrap="true"), submit(login, wrap="false")
    other = submit(login)
    for job in (f"{array}_0", f"{array}_2", two, other):
        wait_for_state(login, job, "RUNNING")
    wait_for_state(login, done, "COMPLETED")
    wait_for_state(login, failed, "FAILED")

    ids = [f"{array}_0", f"{array}_1", two, held, done, failed, "999999", f"{array}_77"]
    found = job_states(ids)
    assert set(found) == set(ids) - {"999999", f"{array}_77"}
    assert all(found[job].id == job for job in found)
    assert (found[f"{array}_0"].node, found[held].node) == ("n1", "")
    assert found[two].node in {"n[1-2]", "n[2-3]", "n[1,3]"}
    assert (found[held].state, found[held].reason, found[held].started) == ("PENDING", "JobHeldUser", 0)
    now = time.time()
    assert found[two].submitted <= found[two].started <= now < found[two].ends
    assert found[failed].ends <= now + 1
    assert {job for job in found if is_over(found[job].state)} == {done, failed}
    assert job_states([]) == job_states(["999998"]) == {}


def test_cancelled_requeued_and_what_was_never_there(login: Login) -> None:
    array, again = submit(login, "--array=0-1"), submit(login, "--requeue")
    wait_for_state(login, f"{array}_1", "RUNNING")
    wait_for_state(login, again, "RUNNING")
    first = job_states([again])[again]
    cancel([f"{array}_1", "999999"])
    requeue(again)
    wait_for_state(login, f"{array}_1", "CANCELLED")
    assert job_states([f"{array}_0"])[f"{array}_0"].state == "RUNNING"
    login.wait_for(lambda: job_states([again])[again].submitted > first.submitted, 30, "it is submitted again")
    assert not is_over(job_states([again])[again].state)
    cancel([array, again])
    cancel([array, again])
    cancel([])
    wait_for_state(login, again, "CANCELLED")
    with pytest.raises(ClusterError, match="Invalid job id"):
        requeue("999999")


def test_a_job_that_only_the_accounting_knows(login: Login) -> None:
    done, job = submit(login, wrap="true"), submit(login)
    wait_for_state(login, done, "COMPLETED")
    wait_for_state(login, job, "RUNNING")
    cancel([job])
    columns = ("sacct", "-n", "-X", "-P", "-o", "State", "-j")
    login.wait_for(lambda: "CANCELLED" in login.command(*columns, job).stdout, 30, "the books have it")
    # As when Slurm's own memory is over (MinJobAge), which takes minutes.
    squeue = login.place / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    squeue.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
        found = job_states([done, job, "999999"])
    assert {id_: one.state for id_, one in found.items()} == {done: "COMPLETED", job: "CANCELLED"}
    assert found[job].node.startswith("n")
    assert found[job].submitted <= found[job].started <= found[job].ends <= time.time() + 1


def test_a_spec_gets_what_slurm_knows(login: Login) -> None:
    head = {"mem_gb": 2, "cpus": 1}
    spec = resolved(SlurmCluster.model_validate({"kind": "slurm", "head": head}))
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node, spec.max_hours) == (8, 8, 7, 24)
    cpu = {"kind": "slurm", "slurm": {"partition": "cpu"}, "head": {**head, "partition": "limited"}}
    spec = resolved(SlurmCluster.model_validate(cpu))
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node, spec.max_hours) == (16, 0, 15, 1)


def test_a_plan_on_a_login_node(login: Login) -> None:
    where = ("plan=true", "cluster=slurm", "cluster.head.mem_gb=2")
    done = login.run(*where, "cluster.slurm.partition=limitd", "cluster.gpus_per_node=9", "trials=0", code=2)
    assert "cluster.slurm.partition=limitd: Slurm has no partition limitd (did you mean limited?)" in done.stderr
    assert "trials=0" in done.stderr
    done = login.run(
        *where, "cluster.gpus_per_node=9", "cluster.max_hours=2", "cluster.slurm.partition=limited", code=2
    )
    assert "cluster.gpus_per_node=9: the largest node of partition limited has 8 GPUs (at most 8)" in done.stderr
    assert "cluster.max_hours=2.0: the time limit of partition limited is 1 h (at most 1)" in done.stderr
    done = login.run(*where, "cluster.workers=2", "model=llama8b", "engine.replicas=9")
    assert "worker-2  1 of 8 GPU, 1 of 8 CPU" in done.stdout
    assert login.squeue() == []


def test_slurm_that_is_down_is_said_in_its_own_words(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = login.place / "slurm.conf"
    conf.write_text("ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        node_kinds()
    with pytest.raises((ClusterError, ConfigError)):
        resolved(SlurmCluster(kind="slurm"))
