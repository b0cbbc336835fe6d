"""`plan=true`: what would go where, printed instead of a run."""

from __future__ import annotations

from collections.abc import Mapping

from matrix.apps.nodes import nodes_of
from matrix.apps.placement import plan
from matrix.cluster import launch
from matrix.spec import AppSpec, ClusterSpec, SlurmCluster


def show_plan(cluster: ClusterSpec, apps: Mapping[str, AppSpec]) -> int:
    """Print where apps would go on a cluster, by its spec alone: no cluster is asked.

    Returns:
        The exit code: 1 if there isn't room for all of them.
    """
    if not apps:
        print("Nothing is placed: the model is served by somebody else.")
        return 0
    made = plan(nodes_of(cluster), apps, gpu_memory_gb=cluster.gpu_memory_gb)
    print(made.table())
    for problem in made.problems:
        print(f"no room for {problem}")
    return 1 if made.problems else 0


def show_scripts(cluster: ClusterSpec) -> None:
    """Print the sbatch scripts that a start of the cluster would submit, and where they are kept."""
    if isinstance(cluster, SlurmCluster) and cluster.executor == "slurm":
        for path, text in launch.plan(cluster).items():
            print(f"# {path}\n{text}")
