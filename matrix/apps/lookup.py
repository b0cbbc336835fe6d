"""Find an app that is deployed already, from any process that is connected to its cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from matrix.apps.directory import DEPLOYMENT, AppRecord, ReplicaState, existing_directory
from matrix.errors import AppError, did_you_mean

_LOG = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
_TYPES = {"sandbox": "code", "container": "container"}
"""fair-matrix's words for apps that serve no model."""


def all_apps() -> list[AppRecord]:
    """Every app of the cluster, the one deployed last at the end."""
    directory = _directory()
    apps: list[AppRecord] = [] if directory is None else _get(directory.apps.remote())
    return apps


def door_addresses() -> dict[str, Any] | None:
    """Where the front door is (`url`, `port`, `grpc_url`, `grpc_port`); None if the cluster has none."""
    directory = _directory()
    found: dict[str, Any] | None = None if directory is None else _get(directory.door.remote())
    return found


def cluster_key() -> str:
    """What all apps of the cluster ask for.

    Raises:
        AppError: No app was ever deployed.
    """
    directory = _directory()
    if directory is None:
        raise AppError("no app was ever deployed on this cluster, so that it has no key yet")
    key: str = _get(directory.api_key.remote())
    return key


def find_app(name: str, model_name: str | None = None) -> AppRecord:
    """The app of that name; if there is none, the only one that serves a model of that name.

    Args:
        name: Name of an app, or of a model.
        model_name: Name of a model that is looked for if `name` is none of an app.

    Raises:
        AppError: There is no such app, or more than one; names those that there are.
    """
    apps = all_apps()
    found = [app for app in apps if app.name == name] or [app for app in apps if app.model_name == (model_name or name)]
    if len(found) == 1:
        return found[0]
    wanted = name or f"model_name={model_name}"
    if found:
        names = ", ".join(app.name for app in found)
        raise AppError(f"app {wanted}: several apps serve this model; give the name of one: {names}")
    if not apps:
        raise AppError(
            f"app {wanted}: no app is running on this cluster (matrix deploy_applications starts one that stays)"
        )
    running = ", ".join(f"{app.name} (model {app.model_name})" for app in apps)
    hint = did_you_mean(name or model_name or "", [app.name for app in apps])
    raise AppError(f"app {wanted}: no such app on this cluster; running: {running} ({hint})")


def replicas_of(name: str) -> list[ReplicaState]:
    """What is known of the replicas of an app."""
    directory = _directory()
    found: list[ReplicaState] = [] if directory is None else _get(directory.replicas.remote(name))
    return found


def urls_of(name: str, *, grpc: bool = False) -> list[str]:
    """Base URLs of its replicas that are ready."""
    found = [state.grpc_url if grpc else state.url for state in replicas_of(name)]
    return [url for url in found if url]


def wanted_urls(name: str, *, grpc: bool = False) -> list[str]:
    """The same of an app that is wanted: one that is scaled to zero gets a replica for it.

    Raises:
        AppError: The cluster doesn't answer.
    """
    directory = _directory()
    states: list[ReplicaState] = [] if directory is None else _get(directory.want.remote(name))
    found = [state.grpc_url if grpc else state.url for state in states]
    return [url for url in found if url]


def wait_for_urls(name: str, timeout_s: float, *, grpc: bool = False) -> list[str]:
    """Base URLs of the replicas of an app that is wanted: one that is scaled to zero gets a replica for it.

    Args:
        name: The app.
        timeout_s: Seconds for which a replica is waited for.
        grpc: Addresses for gRPC.

    Raises:
        AppError: There is none by then, or the app failed, so that none will come.
    """
    directory = _directory()
    deadline = time.monotonic() + timeout_s
    states: list[ReplicaState] = []
    while directory is not None:
        states = _get(directory.want.remote(name))
        found = [state.grpc_url if grpc else state.url for state in states]
        if urls := [url for url in found if url]:
            return urls
        if time.monotonic() > deadline or any(state.url for state in states) or _is_given_up(name):
            break
        time.sleep(0.25)
    what = "takes no gRPC (engine.grpc=true)" if any(state.url for state in states) else "has no replica that is ready"
    raise AppError(f"app {name} {what}" + "".join(f"; {state.detail}" for state in states if not state.url))


def _is_given_up(name: str) -> bool:
    """Whether Ray Serve has stopped trying to start the app."""
    from ray import serve

    app = serve.status().applications.get(name)
    return app is not None and app.status == "DEPLOY_FAILED"


def describe(
    app: AppRecord, urls: Sequence[str], grpc_urls: Sequence[str], door: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An app's metadata, without its endpoints, as `matrix.Cli` hands it out.

    Port and template are those of the front door; without one those of the first replica.
    """
    port = door["port"] if door else urlsplit(urls[0]).port if urls else None
    prefix = f"/{app.name}" if door else ""
    return {
        "name": app.name,
        "http_port": port,
        "grpc_port": door["grpc_port"] if door else urlsplit(grpc_urls[0]).port if grpc_urls else None,
        "route_prefix": prefix,
        "model_name": app.model_name,
        "deployment_name": DEPLOYMENT,
        "use_grpc": bool(grpc_urls),
        "endpoint_template": f"http://{{host}}:{port}{prefix}/v1" if port else None,
        "app_type": _TYPES.get(app.kind, "llm"),
        "args": dict(app.args),
        "api_key": app.api_key,
    }


class Updater:
    """Asynchronous function for the URLs of an app as they are now; for any number of event loops.

    Whoever comes while the answer is too old has it asked for anew; all others get the last one meanwhile.

    Args:
        ask: Asks for them, in a thread.
        urls: What they are at first.
        ttl_s: Seconds after which they are asked for again.
    """

    def __init__(self, ask: Callable[[], list[str]], urls: list[str], ttl_s: float) -> None:
        self._ask = ask
        self._urls = urls
        self._ttl_s = ttl_s
        self._asked_at = time.monotonic()

    async def __call__(self, force_update: bool = False) -> list[str]:
        """The base URLs, each up to and including `/v1`.

        Args:
            force_update: Ask, however young the last answer is.
        """
        now = time.monotonic()
        if force_update or now - self._asked_at >= self._ttl_s:
            self._asked_at = now
            try:
                self._urls = await asyncio.to_thread(self._ask)
            except AppError as error:
                _LOG.warning("The URLs stay as they are: %s", error)
        return list(self._urls)


def _directory() -> Any:
    try:
        return existing_directory()
    except Exception as error:
        raise AppError(f"the cluster doesn't answer: {error!r}") from error


def _get(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=_TIMEOUT_S)
    except Exception as error:
        raise AppError(f"the cluster's directory of apps doesn't answer: {error!r}") from error
