"""A spec with what Slurm knows, and what is wrong with it by what Slurm knows."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.cluster import resolve as resolving
from matrix.cluster.resolve import resolved
from matrix.cluster.slurm import parse_kinds
from matrix.errors import ConfigError
from matrix.spec import SlurmCluster
from tests.cluster.sinfo import SINFO


def resolve(monkeypatch: pytest.MonkeyPatch, sinfo: str, **spec: Any) -> SlurmCluster:
    monkeypatch.setattr(resolving, "_node_kinds", lambda *_asked: parse_kinds(sinfo))
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


def test_of_nodes_of_several_kinds_those_with_what_is_asked_for_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # The node with most GPUs has 64 CPUs.
    spec = resolve(monkeypatch, SINFO, cpus_per_node=90, head={"cpus": 90, "mem_gb": 400})
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node) == (90, 0, 502)
    spec = resolve(monkeypatch, SINFO, gpus_per_node=0)
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node) == (96, 0, 502)
    one_job = {"one_job": True}
    assert resolve(monkeypatch, SINFO, gpus_per_node=4, cpus_per_node=8, mem_gb_per_node=7, workers=4, slurm=one_job)
    (said,) = refused(monkeypatch, gpus_per_node=8, workers=3, slurm=one_job)
    assert said == ("cluster.workers=3: partition main has 2 such nodes, and one_job needs all at once (at most 2)")


def test_of_several_partitions_a_job_fits_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve(monkeypatch, SINFO, slurm={"partition": "limited,cpu"})
    assert (spec.cpus_per_node, spec.gpus_per_node, spec.mem_gb_per_node, spec.max_hours) == (8, 0, 7, 0.5)


def test_more_than_the_partition_has_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = {"partition": "limited"}
    assert refused(monkeypatch, slurm=limited, cpus_per_node=9, gpus_per_node=9, max_hours=2, head={"mem_gb": 16}) == [
        "cluster.cpus_per_node=9: the largest node of partition limited has 8 CPUs (at most 8, or partition main or cpu or untyped)",
        "cluster.gpus_per_node=9: the largest node of partition limited has 4 GPUs (at most 4, or partition main)",
        "cluster.head.mem_gb=16: the largest node of partition limited has 7 GB of memory (at most 7, or partition main or cpu or untyped)",
        "cluster.max_hours=2.0: the time limit of partition limited is 0.5 h (at most 0.5)",
    ]  # fmt: skip
    (said,) = refused(monkeypatch, slurm={**limited, "one_job": True}, workers=3)
    assert said.startswith("cluster.workers=3: partition limited has 2 such nodes")


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
    resolving._node_kinds.cache_clear()
    for name, value in (("SLURM_CONF", "/dev/null"), ("PATH", "")):
        monkeypatch.setenv(name, value)
        spec = resolved(SlurmCluster(kind="slurm"))
        assert (spec.cpus_per_node, spec.gpus_per_node, spec.max_hours) == (64, 8, 24)
        resolving._node_kinds.cache_clear()


def test_jobs_that_are_processes_of_this_machine_ask_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    spec = resolved(SlurmCluster(kind="slurm", executor="local", workers=3))
    assert spec.cpus_per_node
    assert (spec.gpus_per_node, spec.max_hours) == (0, 24)
