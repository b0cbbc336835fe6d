"""Put apps on the nodes that there are: what is missing is said before anything waits, and large groups go first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matrix.apps.deploy import App, deploy, wait_until_healthy, wait_until_placed
from matrix.apps.nodes import Node, on_cpu
from matrix.apps.placement import bundles_of, missing, order
from matrix.apps.status import AppStatus
from matrix.errors import AppError
from matrix.models.source import ResolvedModel
from matrix.spec import AppSpec


def make_app(name: str, app: AppSpec, source: ResolvedModel | None, gpus_per_node: int) -> App:
    """An app with what a replica of it takes on nodes with so many GPUs."""
    cpu = on_cpu(app.engine, gpus_per_node)
    bundles = bundles_of(app.engine, app.model, cpu=cpu, gpus_per_node=gpus_per_node)
    return App(name, app.engine, app.model, source, cpu, bundles)


def place(
    apps: Sequence[App],
    log_dir: Path,
    warn: Callable[[str], None],
    on_status: Callable[[list[AppStatus]], None],
    *,
    gpus_per_node: int,
    kept: bool,
    wait: bool = True,
    grows: bool = True,
) -> None:
    """Deploy apps and wait until they are healthy.

    Args:
        apps: The apps.
        log_dir: Folder for the engines' logs.
        warn: Told which resources an app waits for.
        on_status: Told how far the apps are, again and again.
        gpus_per_node: GPUs of a node.
        kept: They stay when this process ends.
        wait: Wait until they are healthy.
        grows: Nodes may join the cluster; if not, an app that fits on none of them is refused.

    Raises:
        AppError: One failed, took too long, or fits on no node.
    """
    specs = {app.name: AppSpec.model_construct(engine=app.engine, model=app.model) for app in apps}
    by_name = {app.name: app for app in apps}
    ordered = [by_name[name] for name in order(specs, gpus_per_node=gpus_per_node)]
    for app in ordered:
        nodes = live_nodes()
        lacking = missing(nodes, app.bundles)
        if lacking and not grows and missing([replace(node, available=node.total) for node in nodes], app.bundles):
            raise AppError(f"app {app.name} fits on no node of this cluster: {lacking}")
        if lacking:
            warn(f"App {app.name} has to wait: {lacking}")
        deploy(app, log_dir, kept=kept, surge=not lacking)
        if app is not ordered[-1] and app.bundles[0].get("GPU", 0) > 1:
            wait_until_placed(app, on_status)

    def again(app: App) -> None:
        warn(f"App {app.name}: its replica was lost while it loaded; it is deployed anew")
        deploy(app, log_dir, kept=kept)

    if wait:
        wait_until_healthy(ordered, on_status, again)


def live_nodes() -> list[Node]:
    """The nodes of the connected cluster, with what is free on each."""
    import ray
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, Any]] = available_resources_per_node()
    return [
        Node(node["NodeName"], node["Resources"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]
    ]
