"""Rules on a Slurm cluster, and on the logical resources of its workers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from matrix.check import check
from matrix.errors import ClusterError
from matrix.spec import SlurmCluster
from tests.check.specs import MODEL, SLURM, config, on_gpus, problems

LABELLED = {"slurm": {"partition": "gpu-a", "account": "me"}, "resources": {"fast": 2}}


def test_the_spec_holds_what_was_found_out() -> None:
    spec, found = check(config(cluster={"kind": "slurm", "executor": "local", "gpus_per_node": 2}))
    assert not found
    assert spec
    assert isinstance(spec.cluster, SlurmCluster)
    assert spec.cluster.cpus_per_node
    assert (spec.cluster.gpus_per_node, spec.cluster.max_hours) == (2, 24)


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"id": "local"}, "cluster.id=local: is the one of this machine (cluster=local) (give another)"),
        ({"min_workers": 3, "workers": 2}, "cluster.min_workers=3: is more than cluster.workers=2 (at most 2)"),
        ({"slurm": {"args": {"partition": "a"}}}, "cluster.slurm.args.partition=a: matrix itself sets this (use cluster.slurm.partition)"),
        ({"slurm": {"args": {"job-name": "a"}}}, "cluster.slurm.args.job-name=a: matrix itself sets this (use cluster.id)"),
        ({"slurm": {"args": {"open-mode": "append"}}}, "cluster.slurm.args.open-mode=append: matrix itself sets this (leave it out)"),
        ({"slurm": {"args": {"time": 3}}}, "cluster.slurm.args.time=3: matrix itself sets this (use cluster.max_hours)"),
    ],
)  # fmt: skip
def test_what_is_set_twice_or_too_large(cluster: dict[str, Any], said: str) -> None:
    assert problems(cluster=SLURM | cluster) == [said]


def test_any_other_parameter_is_slurms_to_judge() -> None:
    assert problems(cluster=SLURM | {"slurm": {"args": {"constraint": "h100", "exclusive": True}}}) == []


def test_what_submits_jobs_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matrix.check.problems.find_spec", lambda name: None if name == "submitit" else find_spec(name))
    (said,) = problems(cluster=SLURM)
    assert said.startswith("cluster.kind=slurm: submitit is not installed (pip install 'matrix-llm[slurm]'")


def test_what_slurm_says_stands_beside_the_other_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise ClusterError("sinfo: it is down")

    monkeypatch.setattr("matrix.cluster.resolve._node_kinds", ask)
    said = problems(cluster={"kind": "slurm"}, engine={"kind": "vllm"}, model=MODEL, trials=0)
    assert said == ["trials=0: should be greater than 0", "cluster.kind=slurm: sinfo: it is down"]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"partition_gpu_b": 1}, "engine.resources.partition_gpu_b=1.0: no node of the cluster has it (did you mean engine.resources.partition_gpu_a?)"),
        ({"CPU": 1}, "engine.resources.CPU=1.0: is no logical resource (use engine.cpus)"),
        ({"fast": 1.5}, "engine.resources.fast=1.5: more than 1 is asked for in whole numbers"),
        ({"fast": 3}, "engine.replicas=1: no room for replica 1 of 1: needs 3 fast; worker-1 has 2 of 2 free (fewer or smaller apps, or more cluster.workers)"),
        ({"fast": 0}, "engine.resources.fast=0: should be greater than 0"),
    ],
)  # fmt: skip
def test_resources_that_no_node_has(resources: dict[str, float], said: str) -> None:
    assert on_gpus({"resources": resources}, **LABELLED) == [said]


def test_resources_that_nodes_have() -> None:
    assert on_gpus({"resources": {"fast": 2, "partition_gpu_a": 0.5, "account_me": 1}}, **LABELLED) == []
    # Those of a cluster that is there already aren't known.
    attach = {"kind": "attach", "address": "auto", "gpus_per_node": 8}
    pinned = {"kind": "vllm", "resources": {"any": 1}}
    assert problems(cluster=attach, engine=pinned, model=MODEL) == []
    (said,) = problems(cluster={"kind": "local", "gpus_per_node": 8}, engine=pinned, model=MODEL)
    assert said == (
        "engine.resources.any=1.0: no node of the cluster has it (cluster.resources gives the nodes of cluster=slurm some)"
    )
    app = {"other": {"engine": {"kind": "simulated", "resources": {"fst": 1}}, "model": {"name": "m2"}}}
    (said,) = problems(cluster=SLURM | LABELLED, apps=app)
    assert said.startswith(
        "apps.other.engine.resources.fst=1.0: no node of the cluster has it (did you mean apps.other."
    )


def test_resources_of_drivers() -> None:
    workload = {"drivers": 2, "resources": {"fast": 1}}
    assert problems(cluster=SLURM | LABELLED, workload=workload) == []
    (said,) = problems(cluster=SLURM | LABELLED, workload=workload | {"drivers": 1})
    assert said.startswith("workload.resources={'fast': 1.0}: pins drivers on the cluster")
    (said,) = problems(cluster=SLURM | LABELLED, workload=workload | {"resources": {"slow": 1}})
    assert said.startswith("workload.resources.slow=1.0: no node of the cluster has it")
