"""`plan=true`: what would go where, printed instead of a run."""

from __future__ import annotations

from matrix.apps.nodes import nodes_of
from matrix.apps.placement import apps_of, plan
from matrix.spec import RunSpec


def show_plan(spec: RunSpec) -> int:
    """Print where the apps of a spec would go on its cluster, by the spec alone: no cluster is asked.

    Returns:
        The exit code: 1 if there isn't room for all of them.
    """
    apps = apps_of(spec.engine, spec.model, spec.apps)
    if not apps:
        print(f"engine={spec.engine.kind}: nothing is placed, requests go to a server that is already there.")
        return 0
    made = plan(nodes_of(spec.cluster), apps, gpu_memory_gb=spec.cluster.gpu_memory_gb)
    print(made.table())
    for problem in made.problems:
        print(f"no room for {problem}")
    return 1 if made.problems else 0
