"""Rules on logical resources: somebody has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from matrix.apps.nodes import nodes_of
from matrix.errors import Problem, did_you_mean
from matrix.spec import AppSpec, ClusterSpec, EngineSpec, WorkloadSpec

_MACHINE = {"CPU": "engine.cpus", "GPU": "model.tensor_parallel"}


def check_resources(
    cluster: ClusterSpec, engine: EngineSpec, apps: Mapping[str, AppSpec], workload: WorkloadSpec
) -> list[Problem]:
    """Every logical resource that is asked for is one that nodes of the cluster have."""
    asked = {"engine.resources": engine.resources, "workload.resources": workload.resources}
    asked |= {f"apps.{name}.engine.resources": app.engine.resources for name, app in apps.items()}
    problems = [found for key, some in asked.items() for found in check_pins(key, some, cluster)]
    if workload.resources and workload.drivers == 1:
        message = "pins drivers on the cluster, and a single driver isn't there"
        problems.append(Problem("workload.resources", workload.resources, message, "workload.drivers=2, or more"))
    return problems


def check_pins(key: str, asked: Mapping[str, float], cluster: ClusterSpec) -> Iterable[Problem]:
    """The same of one app or the drivers.

    Args:
        key: The key that asks.
        asked: The resources, by name.
        cluster: Where they should be.
    """
    if not asked:
        return
    nodes = nodes_of(cluster)
    names = list({name for node in nodes for name in node.total if name not in _MACHINE})
    for name, amount in asked.items():
        place = f"{key}.{name}"
        if name in _MACHINE:
            yield Problem(place, amount, "is no logical resource", f"use {_MACHINE[name]}")
        elif amount > 1 and not float(amount).is_integer():
            yield Problem(place, amount, "more than 1 is asked for in whole numbers")
        elif not nodes[0].others and name not in names:
            give = "cluster.resources gives the nodes of cluster=slurm some"
            hint = did_you_mean(name, names, f"{key}.") if names else give
            yield Problem(place, amount, "no node of the cluster has it", hint)
