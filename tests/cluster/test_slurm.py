"""What Slurm's programs print, read: their real words, of Slurm 22.05."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.cluster import slurm
from matrix.cluster.slurm import is_over, parse_ended, parse_gres, parse_hours, parse_jobs
from matrix.errors import ClusterError
from tests.cluster.sinfo import SINFO

SQUEUE = """\
2|COMPLETED|None|n1|1795802523|1795802524|1795802525
3|FAILED|NonZeroExitCode|n1|1795802523|1795802524|1795802524
4|PENDING|BeginTime||1795802528|1795802534|1795806134
5_9|PENDING|Resources||1795802523|1795834920|1795838520
7|PENDING|JobHeldUser||1795802523|N/A|N/A
1_0|RUNNING|None|n[1-2]|1795802523|1795802524|1795806124
"""
SACCT = """\
4|REQUEUED|n1|1795802523|1795802524|1795802527
6|CANCELLED by 0|None assigned|1795802523|None|1795802543
1_1|CANCELLED by 0|n1|1795802523|1795802524|1795802527
4|PENDING|None assigned|1795802528|Unknown|Unknown
"""


def test_partitions_have_kinds_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_ask", lambda *_: SINFO)
    kinds = slurm.node_kinds()
    found = {one.name: one for one in sorted(kinds, key=lambda one: one.gpus)}
    main = found["main"]
    assert (main.cpus, main.mem_gb, main.gpus, main.gpu_type) == (64, 1006, 11, "1g.10gb")
    assert sum(one.nodes for one in kinds if one.name == "main") == 6
    assert (main.is_default, main.is_up, main.max_hours) == (True, True, None)
    limited, cpu = found["limited"], found["cpu"]
    assert (limited.cpus, limited.mem_gb, limited.gpus, limited.gpu_type, limited.max_hours) == (8, 7, 4, "h100", 0.5)
    assert (limited.is_default, limited.nodes) == (False, 2)
    # `MaxCPUsPerNode` of the partition.
    assert (cpu.cpus, cpu.gpus, cpu.max_hours) == (48, 0, 36)
    assert (found["untyped"].gpus, found["untyped"].gpu_type, found["untyped"].is_up) == (8, "", False)
    assert (found["empty"].nodes, found["empty"].cpus) == (0, 0)


@pytest.mark.parametrize(
    ("text", "gpus", "kind"),
    [
        ("(null)", 0, ""), ("gpu:8", 8, ""), ("gpu:h100:8(S:0-1)", 8, "h100"), ("gpu:8(S:0,1),nic:2", 8, ""),
        ("gpu", 1, ""), ("gpu:tesla", 1, "tesla"), ("gpu:a100:no_consume:4", 4, "a100"), ("shard:64,mps:400", 0, ""),
        ("gpu:a100_1g.5gb:7(S:0),gpu:a100:1(S:1)", 8, "a100_1g.5gb"),
    ],
)  # fmt: skip
def test_gpus_by_generic_resources(text: str, gpus: int, kind: str) -> None:
    assert parse_gres(text) == (gpus, kind)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("infinite", None), ("n/a", None), ("30:00", 0.5), ("1:00:00", 1), ("1-00:00:00", 24), ("00:30", 1 / 120)],
)
def test_time_limits(text: str, hours: float | None) -> None:
    assert parse_hours(text) == hours


def test_jobs_that_are_in_the_queue() -> None:
    jobs = parse_jobs(SQUEUE)
    running = jobs["1_0"]
    assert (running.state, running.node, running.reason) == ("RUNNING", "n[1-2]", "")
    assert (running.submitted, running.started, running.ends) == (1795802523, 1795802524, 1795806124)
    # When it might start is a guess of Slurm's.
    assert (jobs["5_9"].reason, jobs["5_9"].started, jobs["5_9"].ends) == ("Resources", 0, 0)
    assert (jobs["7"].reason, jobs["7"].node) == ("JobHeldUser", "")
    assert [id_ for id_, job in jobs.items() if is_over(job.state)] == ["2", "3"]


def test_jobs_that_only_the_accounting_knows() -> None:
    jobs = parse_ended(SACCT)
    assert (jobs["6"].state, jobs["6"].node, jobs["6"].started, jobs["6"].ends) == ("CANCELLED", "", 0, 1795802543)
    assert jobs["4"].state == "PENDING"
    assert is_over(jobs["1_1"].state)


def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, script: str) -> None:
    """A stand-in for one of Slurm's."""
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_one_that_a_signal_hits_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(
        monkeypatch, tmp_path, "squeue", '[ -e hit ] || { touch hit; kill -TERM $$; }; echo "7|RUNNING|None|n1|1|2|3"'
    )
    assert slurm.job_states(["7"])["7"].state == "RUNNING"
    program(monkeypatch, tmp_path, "squeue", "kill -TERM $$")
    with pytest.raises(ClusterError, match="exit code -15"):
        slurm.job_states(["7"])


def test_one_that_waits_already_is_not_put_back_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, "scontrol", 'echo "Job is pending execution for job $2" >&2; exit 1')
    slurm.requeue("7")
    program(monkeypatch, tmp_path, "scontrol", 'echo "Access/permission denied for job $2" >&2; exit 1')
    with pytest.raises(ClusterError, match="denied"):
        slurm.requeue("7")
