"""Where the experiment runs: the config group `cluster`."""

from __future__ import annotations

from typing import Annotated, Literal

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


class SlurmCluster(Spec):
    """Ray on a Slurm allocation."""

    kind: Literal["slurm"]
    workers: int = Field(gt=0)
    """Worker nodes."""
    cpus_per_node: int = Field(gt=0)
    gpus_per_node: int = Field(ge=0)
    gpu_memory_gb: float = Field(gt=0)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    max_hours: float = Field(gt=0)


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
