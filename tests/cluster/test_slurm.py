"""What Slurm's programs print, read: their real words, of Slurm 22.05."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.cluster import slurm
from matrix.cluster.slurm import is_over, parse_ended, parse_gres, parse_hours, parse_jobs, parse_partitions, resolved
from matrix.errors import ConfigError
from matrix.spec import SlurmCluster

SINFO = """\
main*|up|2|8|UNLIMITED|8191|infinite|gpu:h100:4
main*|up|2|96|UNLIMITED|515000|infinite|(null)
main*|up|1|64|UNLIMITED|1031000|infinite|gpu:a100:4,gpu:1g.10gb:7,nic:2
main*|up|1|64|UNLIMITED|1031000|infinite|gpu:8
limited|up|2|8|UNLIMITED|8191|30:00|gpu:h100:4
cpu|up|2|96|48|515000|1-12:00:00|(null)
untyped|down|1|64|UNLIMITED|1031000|3:00:00|gpu:8
empty|up|0|0|UNLIMITED|0|infinite|(null)
"""
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


def test_a_partition_is_as_its_largest_node() -> None:
    found = {one.name: one for one in parse_partitions(SINFO)}
    main = found["main"]
    assert (main.nodes, main.cpus, main.mem_gb, main.gpus, main.gpu_type) == (6, 64, 1006, 11, "1g.10gb")
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


def resolve(monkeypatch: pytest.MonkeyPatch, sinfo: str, **spec: Any) -> SlurmCluster:
    monkeypatch.setattr(slurm, "_partitions", lambda *_asked: parse_partitions(sinfo))
    return resolved(SlurmCluster.model_validate({"kind": "slurm", "head": {"mem_gb": 4}} | spec))


def refused(monkeypatch: pytest.MonkeyPatch, sinfo: str = SINFO, **spec: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        resolve(monkeypatch, sinfo, **spec)
    return [str(problem) for problem in error.value.problems]


def test_what_slurm_knows_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve(monkeypatch, SINFO)
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node, spec.max_hours) == (64, 11, 1006, 24)
    spec = resolve(monkeypatch, SINFO, gpus_per_node=2, slurm={"partition": "limited"})
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node, spec.max_hours) == (8, 2, 7, 0.5)
    spec = resolve(monkeypatch, SINFO, slurm={"partition": "main"}, head={"partition": "cpu"})
    assert (spec.gpus_per_node, spec.max_hours) == (11, 36)


def test_of_several_partitions_a_job_fits_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve(monkeypatch, SINFO, slurm={"partition": "limited,cpu"})
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node, spec.max_hours) == (8, 0, 7, 0.5)


def test_more_than_the_partition_has_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = {"partition": "limited"}
    assert refused(monkeypatch, slurm=limited, cpus_per_node=9, gpus_per_node=9, max_hours=2, head={"mem_gb": 16}) == [
        "cluster.cpus_per_node=9: the largest node of partition limited has 8 CPUs (at most 8; enough has main or cpu or untyped)",
        "cluster.gpus_per_node=9: the largest node of partition limited has 4 GPUs (at most 4; enough has main)",
        "cluster.head.mem_gb=16: the largest node of partition limited has 7 GB (at most 7; enough has main or cpu or untyped)",
        "cluster.max_hours=2.0: the time limit of partition limited is 0.5 hours (at most 0.5)",
    ]  # fmt: skip
    (said,) = refused(monkeypatch, slurm={**limited, "one_job": True}, workers=3)
    assert said.startswith("cluster.workers=3: partition limited has 2 nodes")


def test_a_partition_that_is_not_there_is_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(monkeypatch, slurm={"partition": "limitd"}) == [
        "cluster.slurm.partition=limitd: Slurm has no partition limitd (did you mean limited?)"
    ]
    assert refused(monkeypatch, head={"partition": "cpuu"}) == [
        "cluster.head.partition=cpuu: Slurm has no partition cpuu (did you mean cpu?)"
    ]
    assert refused(monkeypatch, slurm={"partition": "empty"}) == [
        "cluster.slurm.partition=empty: partition empty has no nodes (another one)"
    ]
    assert refused(monkeypatch, sinfo=SINFO.replace("*", "").replace("untyped", "gpus")) == [
        "cluster.slurm.partition: Slurm has no default partition (one of: cpu, empty, gpus, limited, main)"
    ]


def test_without_slurm_a_plan_assumes_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm._partitions.cache_clear()
    for name, value in (("SLURM_CONF", "/dev/null"), ("PATH", "")):
        monkeypatch.setenv(name, value)
        spec = resolved(SlurmCluster(kind="slurm"))
        assert (spec.cpus_per_node, spec.gpus_per_node, spec.max_hours) == (64, 8, 24)
        slurm._partitions.cache_clear()


def test_jobs_that_are_processes_of_this_machine_ask_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    spec = resolved(SlurmCluster(kind="slurm", executor="local", workers=3))
    assert spec.cpus_per_node
    assert (spec.gpus_per_node, spec.max_hours) == (0, 24)
