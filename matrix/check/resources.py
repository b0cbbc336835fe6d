"""Rules on logical resources: somebody has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from matrix.apps.nodes import nodes_of
from matrix.errors import Problem, did_you_mean
from matrix.spec import AgentsSpec, AppSpec, ClusterSpec, EngineSpec, WorkloadSpec
from matrix.spec.agents import RoleSpec

_MACHINE = {"CPU": "engine.cpus", "GPU": "model.tensor_parallel"}
_OF_ROLE = {"CPU": "num_cpus", "GPU": "num_gpus"}


def check_resources(
    cluster: ClusterSpec,
    engine: EngineSpec,
    apps: Mapping[str, AppSpec],
    workload: WorkloadSpec,
    agents: AgentsSpec | None,
) -> list[Problem]:
    """Every logical resource that is asked for is one that nodes of the cluster have; processes of roles fit on one."""
    asked = {"engine.resources": engine.resources, "workload.resources": workload.resources}
    asked |= {f"apps.{name}.engine.resources": app.engine.resources for name, app in apps.items()}
    problems = [found for key, some in asked.items() for found in check_pins(key, some, cluster)]
    for name, role in (agents.named if agents is not None else {}).items():
        key = f"agents.roles.{name}"
        problems += check_pins(f"{key}.resources", role.resources, cluster, instead=_of_role(key))
        problems += _check_size(key, role, cluster)
    if workload.resources and workload.drivers == 1:
        message = "pins drivers on the cluster, and a single driver isn't there"
        problems.append(Problem("workload.resources", workload.resources, message, "workload.drivers=2, or more"))
    return problems


def check_pins(
    key: str, asked: Mapping[str, float], cluster: ClusterSpec, *, instead: Mapping[str, str] = _MACHINE
) -> Iterable[Problem]:
    """The same of one app, the drivers or a role.

    Args:
        key: The key that asks.
        asked: The resources, by name.
        cluster: Where they should be.
        instead: Keys that ask for CPUs and GPUs, which are none of them.
    """
    if not asked:
        return
    nodes = nodes_of(cluster)
    names = list({name for node in nodes for name in node.total if name not in _MACHINE})
    for name, amount in asked.items():
        place = f"{key}.{name}"
        if name in _MACHINE:
            yield Problem(place, amount, "is no logical resource", f"use {instead[name]}")
        elif amount > 1 and not float(amount).is_integer():
            yield Problem(place, amount, "more than 1 is asked for in whole numbers")
        elif not nodes[0].others and name not in names:
            give = "cluster.resources gives the nodes of cluster=slurm some"
            hint = did_you_mean(name, names, f"{key}.") if names else give
            yield Problem(place, amount, "no node of the cluster has it", hint)


def _of_role(key: str) -> dict[str, str]:
    return {resource: f"{key}.{field}" for resource, field in _OF_ROLE.items()}


def _check_size(key: str, role: RoleSpec, cluster: ClusterSpec) -> Iterable[Problem]:
    """A process that no node has room for would be waited for until the end of days."""
    if not role.is_actor:
        return
    asked = {f"{key}.num_gpus": ("GPU", role.num_gpus), f"{key}.num_cpus": ("CPU", role.num_cpus or 0.0)}
    asked |= {f"{key}.resources.{name}": (name, amount) for name, amount in role.resources.items()}
    nodes = nodes_of(cluster)
    for place, (resource, amount) in asked.items():
        most = max((node.total.get(resource, node.others) for node in nodes), default=0.0)
        if amount > most > 0 or (amount and resource in _OF_ROLE and not most):
            yield Problem(place, amount, f"no node has so much {resource}: {most:g} at most", "less of it")
        elif resource in _OF_ROLE and amount > 1 and not float(amount).is_integer():
            yield Problem(place, amount, "more than 1 is asked for in whole numbers")
