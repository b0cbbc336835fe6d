"""The cluster's directory: which apps there are, which replica can be reached where, and how far the others have come.

Ray Serve places replicas and keeps them alive; clients of matrix then talk to them without a proxy in between
(docs/architecture.md, D1), so they need to know the replicas' own addresses. A replica announces itself here. Other
processes find an app here, too, with the key that it asks for: whoever can read it has the cluster's token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_NAME = "matrix.directory"
_NAMESPACE = "matrix"


@dataclass(frozen=True)
class AppRecord:
    """What those who use an app need to know of it.

    Attributes:
        name: Name of the Serve application.
        model_name: What requests call the model.
        deployment: Name of its Serve deployment.
        api_key: What its servers ask for.
        args: What it serves, and how.
    """

    name: str
    model_name: str
    deployment: str
    api_key: str = field(repr=False)
    args: dict[str, Any]


@dataclass(frozen=True)
class ReplicaState:
    """What a replica says of itself.

    Attributes:
        replica: Its id in Ray Serve.
        url: Base URL of its OpenAI API, up to and including `/v1`; None while it is not ready.
        detail: Its last word on what it is doing, or why it failed.
    """

    replica: str
    url: str | None
    detail: str


class Directory:
    """The actor behind the directory; one per cluster."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, ReplicaState]] = {}
        self._apps: dict[str, AppRecord] = {}

    def register(self, record: AppRecord) -> None:
        """Make an app known."""
        self._apps[record.name] = record

    def apps(self) -> list[AppRecord]:
        """All apps, the one registered last at the end."""
        return list(self._apps.values())

    def announce(self, app: str, state: ReplicaState) -> None:
        """Set what is known of one replica."""
        self._states.setdefault(app, {})[state.replica] = state

    def withdraw(self, app: str, replica: str) -> None:
        """Forget a replica that is going; what one that never got ready had to say is kept until the app goes."""
        state = self._states.get(app, {}).get(replica)
        if state is not None and state.url is not None:
            del self._states[app][replica]

    def replicas(self, app: str) -> list[ReplicaState]:
        """Everything known of an app's replicas."""
        return list(self._states.get(app, {}).values())

    def forget(self, app: str) -> None:
        """Forget an app that was removed."""
        self._states.pop(app, None)
        self._apps.pop(app, None)


def directory() -> Any:
    """Handle of the cluster's directory actor, which is started if it isn't there."""
    import ray

    actor = ray.remote(num_cpus=0, name=_NAME, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True)(Directory)
    return actor.remote()


def existing_directory() -> Any:
    """The same, but None where no app was ever deployed: looking on changes nothing."""
    import ray

    try:
        return ray.get_actor(_NAME, namespace=_NAMESPACE)
    except ValueError:
        return None
