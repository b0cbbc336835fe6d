"""The apps of a config on a cluster that stays: added, replaced and removed, the others left as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix.apps.deploy import NOT_IN_VERSION, App, deploy, has_failed, remove, spec_of, start_serve
from matrix.apps.directory import AppRecord
from matrix.apps.door import open_door, wait_for_door
from matrix.apps.lookup import all_apps, cluster_key, door_addresses, replicas_of
from matrix.apps.placing import live_nodes, make_app, place
from matrix.apps.status import AppStatus, look
from matrix.errors import AppError, did_you_mean
from matrix.models.source import resolve
from matrix.spec import AppSpec, SglangEngine, VllmEngine


@dataclass
class Deployed:
    """What was done.

    Attributes:
        added: Apps that weren't there.
        replaced: Apps that had another spec.
        unchanged: Apps that are as they should be.
        removed: Apps that are gone.
        front_door: Its base URL, without a path.
        api_key: What all apps ask for.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    front_door: str | None = None
    api_key: str | None = field(default=None, repr=False)


class Deploying:
    """Deploys on the connected cluster.

    Args:
        log_dir: Folder for the engines' logs.
        gpus_per_node: GPUs of a node.
        say: Told what is done.
        on_status: Told how far the apps are, again and again.
        grows: Nodes may join the cluster.
    """

    def __init__(
        self,
        log_dir: Path,
        gpus_per_node: int,
        say: Callable[[str], None],
        on_status: Callable[[list[AppStatus]], None],
        *,
        grows: bool,
    ) -> None:
        self._log_dir = log_dir
        self._gpus_per_node = gpus_per_node
        self._say = say
        self._on_status = on_status
        self._grows = grows

    def deploy(self, wanted: Mapping[str, AppSpec], *, replace: bool, wait: bool) -> Deployed:
        """Bring the apps to what they should be.

        Raises:
            AppError: One runs with another spec and `replace` is false; one failed or can't be placed.
        """
        apps = [self._make(name, app) for name, app in wanted.items()]
        known = {record.name: record for record in all_apps()}
        others = [app for app in apps if app.name in known and known[app.name].version != app.version]
        if others and not replace:
            raise AppError("\n".join(_differs(app, known[app.name]) for app in others))
        start_serve()
        # It opens while the engines load.
        open_door(self._log_dir)
        done = Deployed(replaced=[app.name for app in others])
        for app in apps:
            if app.name in known and known[app.name].version == app.version and not has_failed(app):
                # How many replicas there may be can be another number now.
                deploy(app, self._log_dir, kept=True)
                done.unchanged.append(app.name)
                self._say(f"App {app.name} is as it should be")
        new = [app for app in apps if app.name not in done.unchanged]
        done.added = [app.name for app in new if app.name not in done.replaced]
        if new:
            options: dict[str, Any] = {"gpus_per_node": self._gpus_per_node, "grows": self._grows, "wait": wait}
            place(new, self._log_dir, self._say, self._on_status, kept=True, **options)
        door = wait_for_door()
        done.front_door, done.api_key = door["url"], cluster_key()
        return done

    def remove(self, names: Sequence[str]) -> Deployed:
        """Remove apps; each finishes what it is working on.

        Raises:
            AppError: There is no such app.
        """
        known = [record.name for record in all_apps()]
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known) if known else "no app is running"
                raise AppError(f"app {name}: no such app on this cluster ({hint})")
        for name in names:
            self._say(f"Removing app {name} ...")
            remove(name, patient=True)
        return Deployed(removed=list(names))

    def _make(self, name: str, app: AppSpec) -> App:
        source = None
        if isinstance(app.engine, VllmEngine | SglangEngine) and app.model.source is not None:
            source = resolve(app.model.source, self._say)
        return make_app(name, app, source, self._gpus_per_node)


def describe_cluster() -> dict[str, Any]:
    """The connected cluster: `nodes`, `front_door`, `apps` with their replicas."""
    door = door_addresses()
    apps = []
    for record in all_apps():
        status = look(record.name, record.version, record.replicas)
        replicas = [
            {
                "id": state.replica,
                "url": state.url,
                "grpc_url": state.grpc_url,
                "running": state.running,
                "waiting": state.waiting,
                "detail": state.detail,
            }
            for state in replicas_of(record.name)
        ]
        apps.append(
            {
                "name": record.name,
                "engine": record.kind,
                "model": record.model_name,
                "phase": status.phase,
                "ready": status.ready,
                "wanted": record.replicas.min,
                "max": record.replicas.max,
                "detail": status.detail,
                "url": f"{door['url']}/{record.name}/v1" if door else None,
                "replicas": replicas,
            }
        )
    nodes = [{"name": node.name, "total": _shown(node.total), "free": _shown(node.available)} for node in live_nodes()]
    return {"nodes": nodes, "front_door": None if door is None else door["url"], "apps": apps}


def _shown(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if ":" not in name and "memory" not in name}


def _differs(app: App, record: AppRecord) -> str:
    old, new = record.spec, spec_of(app)
    keys = [key for key in _differing(old, new) if key.split(".")[1] not in NOT_IN_VERSION]
    what = ", ".join(keys[:10]) or "the weights"
    return (
        f"app {app.name} is running with another spec ({what} differ): take --action replace to bring it to this one, "
        "or another name (apps.NAME.model=...)"
    )


def _differing(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            found for key in keys for found in _differing(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [path]
