"""The cluster's directory: which apps there are, which replica can be reached where, and how busy they are.

Ray Serve places replicas and keeps them alive; clients of matrix then talk to them without a proxy in between
(docs/architecture.md, D1), so they need to know the replicas' own addresses. A replica announces itself here. Other
processes find an app here, too, and the key of the cluster: whoever can read it has the cluster's token. Since the
load of all replicas comes together here, this is also where the number of replicas is decided (`autoscale.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

from matrix.apps.autoscale import Autoscaler
from matrix.spec import Replicas

_LOG = logging.getLogger(__name__)

_NAME = "matrix.directory"
_NAMESPACE = "matrix"
_SCALE_S = 1.0
_DROP_S = 5.0
NEWS_S = 2.0
"""After so many seconds every client of an app has asked for its replicas again."""
_WANTED_S = 15.0
"""For so long an app counts as wanted after somebody asked for a replica of it."""

DEPLOYMENT = "engine"
"""Name of the one Serve deployment of each app."""


@dataclass(frozen=True)
class AppRecord:
    """What those who use an app need to know of it.

    Attributes:
        name: Name of the Serve application.
        model_name: What requests call the model.
        kind: Of its engine.
        version: Fingerprint of what is deployed.
        replicas: How many there may be.
        args: What it serves, and how, in the engine's words.
        spec: Its `engine` and `model`, secrets hidden.
        kept: It stays when the run that deployed it ends.
        api_key: What its servers ask for: the cluster's key.
    """

    name: str
    model_name: str
    kind: str
    version: str
    replicas: Replicas
    args: dict[str, Any]
    spec: dict[str, Any]
    kept: bool
    api_key: str = field(repr=False, default="")


@dataclass(frozen=True)
class ReplicaState:
    """What a replica says of itself.

    Attributes:
        replica: Its id in Ray Serve.
        version: Fingerprint of what it runs.
        url: Base URL of its OpenAI API, up to and including `/v1`; None while it is not ready.
        grpc_url: The same for gRPC, `grpc://HOST:PORT`.
        detail: Its last word on what it is doing, or why it failed.
        failed: It is past help.
        running: Requests that its engine works on.
        waiting: Requests that its engine has queued.
    """

    replica: str
    version: str
    url: str | None
    grpc_url: str | None
    detail: str
    failed: bool = False
    running: float = 0.0
    waiting: float = 0.0


class Directory:
    """The actor behind the directory; one per cluster.

    Args:
        api_key: The cluster's key.
    """

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key
        self._states: dict[str, dict[str, ReplicaState]] = {}
        self._apps: dict[str, AppRecord] = {}
        self._patient: dict[str, bool] = {}
        self._scalers: dict[str, Autoscaler] = {}
        self._wanted: dict[str, float] = {}
        self._reached: dict[str, str] = {}
        self._at_door: dict[str, int] = {}
        self._door: dict[str, Any] | None = None
        self._scaling: asyncio.Task[None] | None = None

    async def api_key(self) -> str:
        """What all apps of the cluster ask for."""
        return self._api_key

    async def register(self, record: AppRecord) -> None:
        """Make an app known, or known as it is from now on."""
        is_known = record.name in self._apps
        self._apps[record.name] = replace(record, api_key=self._api_key)
        self._patient[record.name] = True
        # A new app starts with one replica at least, so that a deploy shows whether it works.
        there = sum(state.url is not None for state in self._states.get(record.name, {}).values())
        self._scalers[record.name] = Autoscaler(record.replicas, there if is_known else max(record.replicas.min, 1))
        self._scaling = self._scaling or asyncio.create_task(self._scale())

    async def apps(self) -> list[AppRecord]:
        """All apps, the one registered last at the end."""
        return list(self._apps.values())

    async def announce(self, app: str, state: ReplicaState) -> None:
        """Set what is known of one replica."""
        self._states.setdefault(app, {})[state.replica] = state
        if state.url:
            self._reached[app] = state.version

    async def report(self, app: str, replica: str, running: float, waiting: float) -> None:
        """Tell how busy a replica is."""
        state = self._states.get(app, {}).get(replica)
        if state is not None:
            self._states[app][replica] = replace(state, running=running, waiting=waiting)

    async def fail(self, app: str, replica: str, why: str) -> None:
        """Tell that a replica is past help: nobody is sent there any more."""
        state = self._states.get(app, {}).get(replica)
        if state is not None:
            self._states[app][replica] = replace(state, url=None, grpc_url=None, detail=why, failed=True)

    async def withdraw(self, app: str, replica: str) -> bool:
        """Forget a replica that is going; what one that never got ready had to say is kept until the app goes.

        Returns:
            Whether it should finish what it is working on.
        """
        state = self._states.get(app, {}).get(replica)
        if state is not None and not state.failed:
            del self._states[app][replica]
        return self._patient.get(app, False)

    async def replicas(self, app: str) -> list[ReplicaState]:
        """Everything known of an app's replicas."""
        return list(self._states.get(app, {}).values())

    async def reached(self, app: str) -> str | None:
        """Fingerprint of the last replica of an app that got ready."""
        return self._reached.get(app)

    async def want(self, app: str) -> list[ReplicaState]:
        """The same, asked by somebody with requests: an app that is scaled to zero gets a replica."""
        self._wanted[app] = time.monotonic()
        return await self.replicas(app)

    async def forget(self, app: str, *, patient: bool) -> None:
        """Forget an app that is removed.

        Args:
            app: Its name.
            patient: Its replicas may finish what they are working on.
        """
        self._apps.pop(app, None)
        self._scalers.pop(app, None)
        self._reached.pop(app, None)
        self._patient[app] = patient
        if not patient:
            self._states.pop(app, None)

    async def door(self) -> dict[str, Any] | None:
        """Addresses of the front door (`url`, `grpc_url`), if there is one."""
        return self._door

    async def open_door(self, addresses: dict[str, Any] | None) -> None:
        """Tell where the front door is."""
        self._door = addresses

    async def queue_at_door(self, waiting: dict[str, int]) -> None:
        """Tell how many requests the front door holds for each app, those that replicas work on included."""
        self._at_door = waiting

    async def _scale(self) -> None:
        dropped_at = 0.0
        while True:
            await asyncio.sleep(_SCALE_S)
            if time.monotonic() - dropped_at > _DROP_S:
                dropped_at = time.monotonic()
                await self._drop_dead()
            for name, scaler in list(self._scalers.items()):
                record = self._apps.get(name)
                if record is None or self._reached.get(name) != record.version:
                    # Nobody takes a replica away before it was seen that the app works.
                    continue
                states = [state for state in self._states.get(name, {}).values() if state.url]
                busy = sum(state.running + state.waiting for state in states)
                busy = max(busy, self._at_door.get(name, 0))
                if time.monotonic() - self._wanted.get(name, -_WANTED_S) < _WANTED_S:
                    busy = max(busy, 1)
                wanted = scaler.desired(busy, time.monotonic())
                if wanted is not None:
                    try:
                        await _set_replicas(name, wanted)
                    except Exception:  # noqa: BLE001 - Serve's controller may be away for a moment; it is asked again
                        _LOG.warning("App %s could not be scaled to %d", name, wanted, exc_info=True)

    async def _drop_dead(self) -> None:
        """Forget replicas that could not withdraw: they were killed, or their node is gone."""
        known = [(app, replica) for app, states in self._states.items() for replica in states]
        try:
            alive = await asyncio.to_thread(_living_actors) if known else set()
        except Exception:  # noqa: BLE001 - Ray's own head may be away for a moment; it is asked again
            _LOG.warning("Which replicas live could not be found out", exc_info=True)
            return
        for app, replica in known:
            state = self._states.get(app, {}).get(replica)
            # What a failed one had to say is kept until the app goes.
            if state is not None and not state.failed and _actor_name(app, replica) not in alive:
                del self._states[app][replica]


def _living_actors() -> set[str]:
    import ray

    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}


def _actor_name(app: str, replica: str) -> str:
    from ray.serve._private.common import DeploymentID, ReplicaID

    return str(ReplicaID(replica, DeploymentID(name=DEPLOYMENT, app_name=app)).to_full_id_str())


async def _set_replicas(app: str, number: int) -> None:
    import ray
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    await controller.update_deployment_replicas.remote(DeploymentID(name=DEPLOYMENT, app_name=app), number)


def directory() -> Any:
    """Handle of the cluster's directory actor, which is started if it isn't there."""
    import ray

    found = existing_directory()
    if found is not None:
        return found
    options = {"num_cpus": 0, "name": _NAME, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    actor = ray.remote(max_concurrency=1000, **options)(Directory)
    return actor.remote(os.environ.get("MATRIX_API_KEY") or secrets.token_urlsafe(32))


def existing_directory() -> Any:
    """The same, but None where no app was ever deployed: looking on changes nothing."""
    import ray

    try:
        return ray.get_actor(_NAME, namespace=_NAMESPACE)
    except ValueError:
        return None
