"""Rules on a Slurm cluster that need no Slurm; what it can't give is said by `matrix.cluster.resolve.resolved`."""

from __future__ import annotations

from matrix.check.problems import is_installed, not_installed
from matrix.errors import Problem
from matrix.spec import SlurmCluster

_KEYS = {
    "partition": "cluster.slurm.partition",
    "account": "cluster.slurm.account",
    "qos": "cluster.slurm.qos",
    "nodes": "cluster.workers",
    "cpus_per_task": "cluster.cpus_per_node",
    "gpus_per_node": "cluster.gpus_per_node",
    "mem": "cluster.mem_gb_per_node",
    "time": "cluster.max_hours",
    "signal": "cluster.drain_s",
    "job_name": "cluster.id",
    "array": "cluster.workers and cluster.slurm.one_job",
}
"""Parameters of sbatch that matrix sets, and by which key."""
_OURS = {
    *_KEYS,
    "ntasks",
    "ntasks_per_node",
    "output",
    "error",
    "open_mode",
    "requeue",
    "no_requeue",
    "wrap",
    "parsable",
}


def check_slurm(cluster: SlurmCluster) -> list[Problem]:
    """What submits jobs is there, and nothing is set twice."""
    problems = []
    if not is_installed("submitit"):
        problems.append(not_installed("cluster.kind", "slurm", "submitit", "matrix-llm[slurm]", "another cluster"))
    if cluster.id == "local":
        problems.append(Problem("cluster.id", "local", "is the one of this machine (cluster=local)", "give another"))
    if cluster.min_workers is not None and cluster.min_workers > cluster.workers:
        message = f"is more than cluster.workers={cluster.workers}"
        problems.append(Problem("cluster.min_workers", cluster.min_workers, message, f"at most {cluster.workers}"))
    for place, args in (("slurm", cluster.slurm.args), ("head", cluster.head.args)):
        for typed, value in args.items():
            name = typed.replace("-", "_")
            if name in _OURS:
                hint = f"use {_KEYS[name]}" if name in _KEYS else "leave it out"
                problems.append(Problem(f"cluster.{place}.args.{typed}", value, "matrix itself sets this", hint))
    return problems
