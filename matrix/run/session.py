"""What jobs of one process share: the cluster, and the apps as long as the next job wants the same ones."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matrix.apps.nodes import gpus_per_node
from matrix.cluster.ray import RayCluster, connect
from matrix.models.source import ResolvedModel
from matrix.run.console import Console, log
from matrix.run.stop import undisturbed
from matrix.spec import (
    SERVICES,
    AppSpec,
    ClusterSpec,
    GatewayEngine,
    LocalCluster,
    OpenAIEngine,
    RunSpec,
    SlurmCluster,
)

if TYPE_CHECKING:
    from matrix.apps.deploy import App
    from matrix.apps.local import LocalServer
    from matrix.apps.status import AppStatus

_TITLES = {"vllm": "vLLM", "sglang": "SGLang"}

Sources = Mapping[str, ResolvedModel | None]


@dataclass(frozen=True)
class Served:
    """Where a model can be talked to.

    Attributes:
        urls: Base URLs of its servers, each up to and including `/v1`, or `grpc://HOST:PORT`.
        api_key: What they ask for; None: nothing.
        waited_s: Seconds from asking for it to its being ready, cluster included.
        engine_s: The engine's own part of it; 0 when it was up.
        app: Name of the app whose replicas they are; None for servers that are none of ours.
        grpc: They are talked to by gRPC.
        front_door: Base URL that reaches all replicas of the app, if the cluster has one.
    """

    urls: list[str]
    api_key: str | None
    waited_s: float
    engine_s: float
    app: str | None = None
    grpc: bool = False
    front_door: str | None = None

    def refresh(self) -> Callable[[], Awaitable[list[str]]] | None:
        """What gives the app's URLs as they are now, in any process of the cluster; None where there is none to ask."""
        app, grpc = self.app, self.grpc
        if app is None:
            return None
        from matrix.apps.lookup import wanted_urls

        return lambda: asyncio.to_thread(wanted_urls, app, grpc=grpc)


class Session:
    """Cluster and apps of this process; close it to end what it started."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cluster: RayCluster | None = None
        self._mine: dict[str, App] = {}
        self._used: dict[str, str] = {}
        self._local: tuple[AppSpec, LocalServer] | None = None

    def serve(self, spec: RunSpec, sources: Sources, log_dir: Path) -> dict[str, Served]:
        """Make the spec's apps available: as they are if the job before had the same, else on the cluster.

        Args:
            spec: The spec.
            sources: Weights of its apps' models, by the names in `spec.all_apps()`.
            log_dir: Folder for the engines' logs.

        Returns:
            Who answers for each app that the workload asks, by name.

        Raises:
            ClusterError: The cluster could not be had.
            AppError: An engine failed, or can't be placed.
        """
        started = time.monotonic()
        deployed = on_cluster(spec)
        if spec.workload.drivers > 1 or deployed or spec.has_role_actors:
            self._join(spec)
        engine_s = self._deploy(spec, deployed, sources, log_dir) if deployed else 0.0
        waited_s = time.monotonic() - started
        served = {name: self._served(spec, name, waited_s, engine_s) for name in spec.asked_apps if name in deployed}
        if spec.main_app in deployed:
            return served
        if isinstance(spec.engine, OpenAIEngine):
            key = os.environ[spec.engine.api_key_env] if spec.engine.api_key_env else None
            return {**served, spec.main_app: Served(spec.engine.urls, key, waited_s, engine_s)}
        server = self._serve_locally(AppSpec(engine=spec.engine, model=spec.model), log_dir)
        waited_s = time.monotonic() - started
        return {**served, spec.main_app: Served([server.url], server.api_key, waited_s, engine_s)}

    def close(self) -> None:
        """Remove what this process started, and the cluster if that is its own."""
        self._end_local()
        if self._cluster is None:
            return
        with undisturbed(), self._console.stage("Stopping the engine and the cluster"):
            self._remove(list(self._mine))
            self._cluster.stop()
            self._cluster = None

    def _join(self, spec: RunSpec) -> None:
        if self._cluster is not None and _is_same(self._cluster.spec, spec.cluster):
            return
        self.close()
        what = "Starting Ray on this machine" if spec.cluster.kind == "local" else "Joining the Ray cluster"
        with self._console.stage(what):
            from matrix.apps.deploy import start_serve

            self._cluster = connect(spec.cluster)
            start_serve()

    def _deploy(self, spec: RunSpec, wanted: Mapping[str, AppSpec], sources: Sources, log_dir: Path) -> float:
        """Bring the apps up that aren't there; returns the seconds that took."""
        from matrix.apps import deploy
        from matrix.apps.lookup import all_apps
        from matrix.apps.placing import make_app, place

        gpus = gpus_per_node(spec.cluster)
        apps = [make_app(name, app, sources.get(name), gpus) for name, app in wanted.items()]
        # What another run deployed for itself goes with that run.
        mine = [record for record in all_apps() if record.kept or record.name in self._mine]
        running = {(record.model_name, record.version): record for record in mine}
        self._used = {}
        new: list[App] = []
        for app in apps:
            record = running.get((app.model.name, app.version))
            if record is not None and deploy.is_healthy(record.name):
                log.info("App %s is up (model %s)", record.name, app.model.name)
                self._used[app.name] = record.name
            else:
                new.append(app)
        self._remove([name for name in self._mine if name not in self._used.values()])
        if not new:
            return 0.0
        started = time.monotonic()
        taken = {record.name for record in all_apps()}
        titles = ", ".join(map(_titled, new))
        where = "the CPU" if all(app.cpu for app in new) else "GPUs"
        with self._console.stage(f"Loading {titles} on {where}") as stage:
            renamed = [app.renamed(f"{app.name}-{app.version[:4]}") if app.name in taken else app for app in new]
            for before, app in zip(new, renamed, strict=True):
                self._used[before.name], self._mine[app.name] = app.name, app

            def show(statuses: list[AppStatus]) -> None:
                stage.detail = "; ".join(map(str, statuses))

            place(
                renamed, log_dir, log.warning, show, gpus_per_node=gpus, kept=False, grows=spec.cluster.kind != "local"
            )
        return time.monotonic() - started

    def _served(self, spec: RunSpec, app: str, waited_s: float, engine_s: float) -> Served:
        from matrix.apps.lookup import door_addresses, find_app, wait_for_urls

        name, engine = self._used[app], spec.all_apps()[app].engine
        # Containers are asked for by HTTP only, and what runs programs beside a model need not take gRPC.
        grpc = spec.workload.use_grpc and engine.grpc
        began = time.monotonic()
        found = wait_for_urls(name, engine.start_timeout_s, grpc=grpc)
        waited_s += time.monotonic() - began
        door = None if grpc else door_addresses()
        front_door = f"{door['url']}/{name}/v1" if door else None
        return Served(found, find_app(name).api_key, waited_s, engine_s, name, grpc, front_door)

    def _serve_locally(self, app: AppSpec, log_dir: Path) -> LocalServer:
        if self._local is not None and self._local[0] == app and self._local[1].is_up():
            return self._local[1]
        from matrix.apps.local import LocalServer

        self._end_local()
        with self._console.stage(f"Starting the gateway to {app.engine.kind}"):
            self._local = app, LocalServer(app.engine, app.model, log_dir)
        return self._local[1]

    def _end_local(self) -> None:
        if self._local is not None:
            self._local[1].end()
            self._local = None

    def _remove(self, names: list[str]) -> None:
        if not names:
            return
        from matrix.apps.deploy import remove
        from matrix.apps.lookup import all_apps

        # `matrix deploy_applications` may have taken one over meanwhile: that stays.
        kept = {record.name for record in all_apps() if record.kept}
        for name in names:
            del self._mine[name]
            if name not in kept:
                remove(name, patient=False)


def _titled(app: App) -> str:
    kind = app.engine.kind
    return f"app {app.name}" if kind in SERVICES else f"model {app.model.name} into {_TITLES.get(kind, kind)}"


def _is_same(one: ClusterSpec, other: ClusterSpec) -> bool:
    """Whether it is one cluster; workers of one of jobs come and go."""
    if isinstance(one, SlurmCluster) and isinstance(other, SlurmCluster):
        return one.id == other.id
    return one == other


def on_cluster(spec: RunSpec) -> dict[str, AppSpec]:
    """Those apps of a run that go on its cluster, by name.

    The main one doesn't if it is a server that is there already, or a gateway on a laptop: that is a process of the
    run. On a cluster that is there already a gateway is an app, whose limits all share.
    """
    by_itself = isinstance(spec.engine, OpenAIEngine) or (
        isinstance(spec.engine, GatewayEngine) and isinstance(spec.cluster, LocalCluster)
    )
    return {name: app for name, app in spec.all_apps().items() if name in spec.apps or not by_itself}
