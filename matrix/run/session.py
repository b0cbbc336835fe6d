"""What jobs of one process share: the cluster, and the engine as long as the next job wants the same one."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matrix.apps.nodes import gpus_per_node
from matrix.cluster.ray import RayCluster, connect, not_launched
from matrix.errors import AppError
from matrix.models.source import ResolvedModel
from matrix.run.console import Console, log
from matrix.run.stop import undisturbed
from matrix.spec import OpenAIEngine, RunSpec, SlurmCluster, VllmEngine

if TYPE_CHECKING:
    from matrix.apps.deploy import App


@dataclass(frozen=True)
class Served:
    """Where a model can be talked to.

    Attributes:
        urls: Base URLs of its servers, each up to and including `/v1`.
        api_key: What they ask for; None: nothing.
        waited_s: Seconds from asking for it to its being ready, cluster included.
        engine_s: The engine's own part of it; 0 when it was up.
        app: The app whose replicas they are; None for servers that are none of ours.
    """

    urls: list[str]
    api_key: str | None
    waited_s: float
    engine_s: float
    app: App | None = None

    def refresh(self) -> Callable[[], Awaitable[list[str]]] | None:
        """What gives the app's URLs as they are now, in any process of the cluster; None where there is none to ask."""
        app = self.app
        if app is None:
            return None
        from matrix.apps.deploy import urls

        return lambda: asyncio.to_thread(urls, app)


class Session:
    """Cluster and engine of this process; close it to end what it started."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cluster: RayCluster | None = None
        self._app: App | None = None
        self._app_key: Any = None

    def serve(self, spec: RunSpec, source: ResolvedModel | None, log_dir: Path) -> Served:
        """Make the spec's model available: as it is if the job before had the same, else on the cluster.

        Raises:
            ClusterError: The cluster could not be had.
            AppError: The engine failed.
        """
        started = time.monotonic()
        if spec.workload.drivers > 1:
            self._join(spec)
        if isinstance(spec.engine, OpenAIEngine):
            key = os.environ[spec.engine.api_key_env] if spec.engine.api_key_env else None
            return Served(spec.engine.urls, key, time.monotonic() - started, 0.0)
        assert source is not None  # noqa: S101 - only a server that is already there has no source
        self._join(spec)
        engine_s = self._deploy(spec, spec.engine, source, log_dir)
        from matrix.apps.deploy import urls

        assert self._app is not None  # noqa: S101 - deployed above
        return Served(urls(self._app), self._app.api_key, time.monotonic() - started, engine_s, self._app)

    def close(self) -> None:
        """Remove the engine, and the cluster if this process started it."""
        if self._cluster is None:
            return
        with undisturbed(), self._console.stage("Stopping the engine and the cluster"):
            self._remove_app()
            self._cluster.stop()
            self._cluster = None

    def _join(self, spec: RunSpec) -> None:
        if self._cluster is not None and self._cluster.spec == spec.cluster:
            return
        self.close()
        what = "Starting Ray on this machine" if spec.cluster.kind == "local" else "Joining the Ray cluster"
        with self._console.stage(what):
            from matrix.apps.deploy import start_serve

            self._cluster = connect(spec.cluster)
            start_serve()

    def _deploy(self, spec: RunSpec, engine: VllmEngine, source: ResolvedModel, log_dir: Path) -> float:
        from matrix.apps import deploy

        key = (spec.model, engine, source)
        if self._app is not None and self._app_key == key and deploy.is_healthy(self._app):
            log.info("Model %s is up from the job before", spec.model.name)
            return 0.0
        self._remove_app()
        cpu = _on_cpu(spec, engine)
        started = time.monotonic()
        where = "the CPU" if cpu else "GPUs"
        with self._console.stage(f"Loading model {spec.model.name} into vLLM on {where}") as stage:
            name = f"{spec.model.name}-{secrets.token_hex(2)}"
            self._app, self._app_key = deploy.App(name, engine.replicas.max, secrets.token_urlsafe(32)), key
            deploy.deploy(self._app, spec.model, engine, source, log_dir, cpu=cpu)

            def show(detail: str) -> None:
                stage.detail = detail

            deploy.wait_until_healthy(self._app, engine.start_timeout_s, show)
        return time.monotonic() - started

    def _remove_app(self) -> None:
        if self._app is None:
            return
        from matrix.apps.deploy import remove

        app, self._app, self._app_key = self._app, None, None
        remove(app)


def check_launch(spec: RunSpec) -> None:
    """Refuse at once what this version can't launch, before data and model are looked for.

    Raises:
        ClusterError: A cluster that it can't bring up.
        AppError: An engine that spans nodes.
    """
    if not isinstance(spec.engine, VllmEngine) and spec.workload.drivers == 1:
        return
    if isinstance(spec.cluster, SlurmCluster):
        raise not_launched()
    if not isinstance(spec.engine, VllmEngine):
        return
    gpus, wanted = gpus_per_node(spec.cluster), spec.model.tensor_parallel * spec.model.pipeline_parallel
    if not _on_cpu(spec, spec.engine) and wanted > gpus:
        raise AppError(
            f"model {spec.model.name} needs TP x PP = {wanted} GPUs and a node has {gpus}: this version launches "
            "engines inside one node only; take a model that fits on a node"
        )


def _on_cpu(spec: RunSpec, engine: VllmEngine) -> bool:
    return engine.device == "cpu" or (engine.device == "auto" and gpus_per_node(spec.cluster) == 0)
