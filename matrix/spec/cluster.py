"""Where the experiment runs: the config group `cluster`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from matrix.spec.base import Spec


class LocalCluster(Spec):
    """Ray on this machine, started for the run and gone with it."""

    kind: Literal["local"]
    cpus: int | None = Field(default=None, gt=0)
    """CPUs that Ray may hand out; None: all of this machine's."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs that Ray may hand out; None: all of this machine's."""
    gpu_memory_gb: float = Field(default=80, gt=0)
    object_store_gb: float = Field(default=0.25, ge=0.1)
    """Shared memory for Ray's object store, in GB; rows don't travel through it."""
    dashboard: bool = False
    start_timeout_s: float = Field(default=180, gt=0)


class SlurmOptions(Spec):
    """How jobs are asked for: sbatch's parameters."""

    partition: str | None = None
    """None: Slurm's default."""
    account: str | None = None
    qos: str | None = None
    one_job: bool = False
    """All workers as one job of N nodes, which starts once all of them are free; else an array of one-node jobs."""
    args: dict[str, Any] = {}
    """Any other parameter of sbatch for workers, by its own name, dashes or underscores; true is a bare flag."""


class HeadJob(Spec):
    """The job of the cluster's head: Ray's control plane and the drivers of runs, no replicas."""

    cpus: int = Field(default=4, gt=0)
    mem_gb: int = Field(default=16, gt=0)
    partition: str | None = None
    """None: as the workers."""
    args: dict[str, Any] = {}
    """Any other parameter of sbatch, as for workers."""


class WorkerGroup(Spec):
    """Workers of a cluster that is there already."""

    nodes: int
    cpus: int
    gpus: int
    resources: dict[str, float]


class SlurmCluster(Spec):
    """Ray on a Slurm allocation: a head job and worker jobs, through submitit."""

    kind: Literal["slurm"]
    id: str = Field(default="slurm", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the cluster: a user may have several."""
    root: str | None = None
    """Folder of all clusters, on a file system that all nodes share; None: `~/.matrix/clusters` (`MATRIX_DIR` takes the
    place of `~/.matrix`)."""
    executor: Literal["slurm", "local", "debug"] = "slurm"
    """submitit's: `local` runs the jobs as processes of this machine, `debug` the head alone in this process."""
    workers: int = Field(default=1, gt=0)
    """Worker nodes."""
    min_workers: int | None = Field(default=None, gt=0)
    """A start waits for so many; None: for all."""
    cpus_per_node: int | None = Field(default=None, gt=0)
    """None: what Slurm says of the partition."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """None: what Slurm says of the partition."""
    mem_gb_per_node: int | None = Field(default=None, gt=0)
    """None: what Slurm says of the partition."""
    gpu_memory_gb: float = Field(default=80, gt=0)
    slurm: SlurmOptions = SlurmOptions()
    head: HeadJob = HeadJob()
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Logical resources of every worker, for apps that ask for them."""
    max_hours: float | None = Field(default=None, gt=0)
    """Time limit of the jobs; None: the partition's, 24 where it has none."""
    drain_s: float = Field(default=60, ge=0)
    """Seconds for which a worker that is to go may finish what it is working on."""
    max_resubmits: int = Field(default=3, ge=0)
    """Lost workers that are asked for again, in all."""
    queue_timeout_s: float = Field(default=86400, gt=0)
    """Seconds that a job may wait for its nodes."""
    start_timeout_s: float = Field(default=300, gt=0)
    """Seconds from a job's start until Ray has to be up on its node."""
    object_store_gb: float = Field(default=1, ge=0.1)
    """Shared memory for Ray's object store on each node, in GB; rows don't travel through it."""
    dashboard: bool = False
    """Ray's dashboard, on the head's loopback."""
    monitoring: bool = False
    """Prometheus and Grafana on the head's loopback."""
    there: tuple[WorkerGroup, ...] = ()
    """Workers of the cluster of this id, which a run takes as it finds them; filled in by the check."""


_LABEL = 10000.0
"""Amount of a label: as many replicas as a node can hold may each take 1 of it."""


def resources_of(cluster: SlurmCluster, partition: str, account: str, qos: str) -> dict[str, float]:
    """Logical resources of a worker: labels that say where it was asked for, and those that the user gives.

    Args:
        cluster: What the worker was asked for with.
        partition: Its partition; empty: Slurm's default, which is no label.
        account: Its account, or empty.
        qos: Its quality of service, or empty.
    """
    asked = {"partition": partition, "account": account, "qos": qos}
    labels = {re.sub(r"\W", "_", f"{key}_{name}", flags=re.ASCII): _LABEL for key, name in asked.items() if name}
    return {**labels, **cluster.resources}


class AttachCluster(Spec):
    """A Ray cluster that is already there; the run leaves it running."""

    kind: Literal["attach"]
    address: str
    """`ip:port` of the head's GCS, or `auto` for the one on this machine."""
    token_path: str | None = None
    """File with the cluster's Ray token; None: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or Ray's own default file."""
    nodes: int = Field(default=1, gt=0)
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs of a node; None: as many as this machine has."""
    gpu_memory_gb: float = Field(default=80, gt=0)
    start_timeout_s: float = Field(default=60, gt=0)


ClusterSpec = Annotated[LocalCluster | SlurmCluster | AttachCluster, Field(discriminator="kind")]
