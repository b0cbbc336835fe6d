"""The machines that apps are placed on, as a spec describes them before there is a cluster."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matrix.spec import AttachCluster, ClusterSpec, EngineSpec, LocalCluster, SglangEngine, SlurmCluster, VllmEngine
from matrix.spec.cluster import WorkerGroup, resources_of


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        name: What messages call it.
        total: What it has, by Ray's names (`CPU`, `GPU`); infinite where it isn't known.
        available: What of it is free.
        others: How much it has of each other resource; infinite where that isn't known.
    """

    name: str
    total: Mapping[str, float]
    available: Mapping[str, float]
    others: float = 0.0


def nodes_of(cluster: ClusterSpec) -> list[Node]:
    """The nodes of a cluster by its spec, all free; of an attached one only the GPUs are known before it is asked.

    Args:
        cluster: The cluster; one on Slurm is `resolved`.
    """
    match cluster:
        case LocalCluster():
            total = {"CPU": float(cluster.cpus or os.cpu_count() or 1), "GPU": float(gpus_per_node(cluster))}
            return [Node("this machine", total, total)]
        case SlurmCluster():
            return _workers(cluster)
        case AttachCluster():
            total = {"CPU": math.inf, "GPU": float(gpus_per_node(cluster))}
            return [Node(f"node-{number + 1}", total, total, math.inf) for number in range(cluster.nodes)]


def _workers(cluster: SlurmCluster) -> list[Node]:
    asked = cluster.slurm
    labels = resources_of(cluster, asked.partition or "", asked.account or "", asked.qos or "")
    to_be = WorkerGroup(
        nodes=cluster.workers, cpus=cluster.cpus_per_node or 0, gpus=cluster.gpus_per_node or 0, resources=labels
    )
    nodes: list[Node] = []
    for group in cluster.there or (to_be,):
        total = {"CPU": float(group.cpus), "GPU": float(group.gpus), **group.resources}
        first = len(nodes) + 1
        nodes += [Node(f"worker-{number}", total, total) for number in range(first, first + group.nodes)]
    return nodes


def gpus_of_this_machine() -> int:
    """Count the NVIDIA GPUs of this machine by their device files, honouring CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def gpus_per_node(cluster: ClusterSpec) -> int:
    """GPUs of one node of the cluster."""
    if isinstance(cluster, SlurmCluster) and cluster.there:
        return max(group.gpus for group in cluster.there)
    return gpus_of_this_machine() if cluster.gpus_per_node is None else cluster.gpus_per_node


def on_cpu(engine: EngineSpec, gpus: float) -> bool:
    """Whether an engine runs without GPUs where a node has so many."""
    if isinstance(engine, VllmEngine):
        return engine.device == "cpu" or (engine.device == "auto" and gpus == 0)
    return not isinstance(engine, SglangEngine)
