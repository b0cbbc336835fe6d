"""How far an app has come, in the words of the one who knows: Ray Serve while it is placed, then the engine itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from matrix.apps.directory import ReplicaState, directory
from matrix.spec import Replicas

Phase = Literal["pending", "scheduling", "loading", "healthy", "idle", "failed"]


@dataclass(frozen=True)
class AppStatus:
    """One app.

    Attributes:
        name: Its name.
        phase: `pending`: Serve has not begun with it; `scheduling`: it waits for resources; `loading`: processes run
            and don't answer yet; `healthy`: as many replicas as there should be answer; `idle`: it works, and has no
            replica since nobody asks for anything; `failed`.
        ready: Replicas that answer.
        wanted: How many there should be.
        detail: What it waits for, or why it failed.
        was_lost: It failed since a replica was gone before it could say anything: its process or its node was killed.
    """

    name: str
    phase: Phase
    ready: int
    wanted: int
    detail: str
    was_lost: bool = False

    def __str__(self) -> str:
        last = self.detail.splitlines()[-1].strip()[:100] if self.detail else ""
        return f"{self.name}: {self.phase}, {self.ready} of {self.wanted} replicas" + (f" ({last})" if last else "")


def look(name: str, version: str, replicas: Replicas) -> AppStatus:
    """See how an app is.

    Args:
        name: The app.
        version: Fingerprint of what should run; replicas of another one don't count.
        replicas: How many there should be.
    """
    import ray
    from ray import serve

    states: list[ReplicaState] = ray.get(directory().replicas.remote(name))
    states = [state for state in states if state.version == version]
    ready = sum(state.url is not None for state in states)
    wanted = max(replicas.min, 1)
    if ready >= wanted:
        return AppStatus(name, "healthy", ready, wanted, "")
    loading = [state.detail for state in states if state.url is None and not state.failed]
    failed = [state.detail for state in states if state.failed]
    # While an engine loads Serve has nothing to add, and asking it costs CPU that the engine wants.
    app = None if loading and not failed else serve.status().applications.get(name)
    placing = _placing(app)
    # One that is unhealthy with replicas that answer is about to get another one for those that don't.
    if app is not None and (app.status == "DEPLOY_FAILED" or (app.status == "UNHEALTHY" and not ready)):
        why = "; ".join(failed) or placing or app.message
        return AppStatus(name, "failed", ready, wanted, why, was_lost=not failed)
    if loading:
        return AppStatus(name, "loading", ready, wanted, loading[-1])
    if replicas.min == 0 and ray.get(directory().reached.remote(name)) == version:
        return AppStatus(name, "idle", ready, wanted, "")
    if app is None or app.status == "NOT_STARTED":
        return AppStatus(name, "pending", ready, wanted, "Ray Serve has not begun with it")
    return AppStatus(name, "scheduling", ready, wanted, placing or "waiting for a node with room")


def _placing(app: Any) -> str:
    messages = [deployment.message for deployment in getattr(app, "deployments", {}).values()]
    return "; ".join(message for message in messages if message)
