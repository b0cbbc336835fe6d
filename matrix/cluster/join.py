"""The spec of a cluster that is there already, for a run that takes it as it is."""

from __future__ import annotations

from matrix.cluster.folder import find, home_of
from matrix.cluster.inside import inside
from matrix.spec import SlurmCluster
from matrix.spec.cluster import WorkerGroup, resources_of


def grown(spec: SlurmCluster) -> SlurmCluster:
    """The spec for more workers of a cluster that is there: its head stays as it is."""
    folder = find(home_of(spec))
    return spec if folder is None else spec.model_copy(update={"head": folder.spec().head})


def joined(spec: SlurmCluster) -> SlurmCluster | None:
    """The cluster of a spec's id with its workers as they are; None if it isn't there, or not known to live.

    Raises:
        ClusterError: Its folder can't be read.
    """
    folder = inside() or find(home_of(spec))
    if folder is None:
        return None
    cluster, head = folder.cluster(), folder.head()
    if cluster.stopping or (head is not None and (not head.is_fresh or head.phase in ("ended", "failed"))):
        return None
    groups = []
    for worker in cluster.workers:
        if worker.wanted:
            own = SlurmCluster.model_validate(worker.spec)
            labels = resources_of(own, worker.partition, worker.account, worker.qos)
            given = {"cpus": own.cpus_per_node or 0, "gpus": own.gpus_per_node or 0, "resources": labels}
            groups.append(WorkerGroup(nodes=worker.nodes, **given))
    workers = sum(group.nodes for group in groups)
    return folder.spec().model_copy(update={"there": tuple(groups), "workers": max(workers, 1)})
