"""Where the processes of a team's roles may go; of apps and drivers see test_check_slurm."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.agents import State, Tools
from tests.check.specs import SLURM, problems

LABELLED = SLURM | {"slurm": {"partition": "gpu-a"}, "resources": {"fast": 2}}
LAPTOP = {"kind": "local", "gpus_per_node": 0, "cpus": 4}
ROLE = "agents.roles.writer"


async def writer(state: State, tools: Tools) -> str:
    return f"{tools.role} {state.turns}"


def said(cluster: dict[str, Any], **role: Any) -> list[str]:
    use = {"use": f"{__name__}:writer", **role}
    team = {"name": "t", "modules": ["tests"], "roles": {"writer": use}, "order": ["writer"], "repeat": False}
    return problems(cluster=cluster, pipeline=None, agents=team)


@pytest.mark.parametrize(
    ("role", "problem"),
    [
        ({"resources": {"partition_gpu_b": 1}}, f"resources.partition_gpu_b=1.0: no node of the cluster has it (did you mean {ROLE}.resources.partition_gpu_a?)"),
        ({"resources": {"GPU": 1}}, f"resources.GPU=1.0: is no logical resource (use {ROLE}.num_gpus)"),
        ({"resources": {"fast": 3}}, "resources.fast=3.0: no node has so much fast: 2 at most (less of it)"),
        ({"resources": {"fast": 1.5}}, "resources.fast=1.5: more than 1 is asked for in whole numbers"),
        ({"num_gpus": 9}, "num_gpus=9.0: no node has so much GPU: 8 at most (less of it)"),
        ({"num_gpus": 1.5}, "num_gpus=1.5: more than 1 is asked for in whole numbers"),
        ({"num_cpus": 65}, "num_cpus=65.0: no node has so much CPU: 64 at most (less of it)"),
    ],
)  # fmt: skip
def test_a_process_that_no_node_can_take(role: dict[str, Any], problem: str) -> None:
    assert said(LABELLED, **role) == [f"{ROLE}.{problem}"]


def test_on_a_laptop() -> None:
    assert said(LAPTOP, num_cpus=4, replicas=3) == []
    assert said(LAPTOP, num_gpus=0.5) == [f"{ROLE}.num_gpus=0.5: no node has so much GPU: 0 at most (less of it)"]


def test_processes_that_nodes_can_take() -> None:
    assert said(LABELLED, resources={"fast": 2, "partition_gpu_a": 0.5}, num_gpus=0.25, num_cpus=2) == []
    # What nodes of a cluster that is there have isn't known beforehand.
    assert said({"kind": "attach", "address": "auto"}, resources={"any": 7}) == []
