"""Which apps and nodes there are: what the door is told, about once a second."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from matrix.spec.base import Spec

RESERVED = frozenset({"v1", "health", "metrics", "control"})
"""First parts of paths that are the door's own: no app can have such a name."""


class AppRoute(Spec):
    """One app."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    model: str
    """Name of the model that its replicas serve."""
    models: list[str] = []
    """Further names that they answer to, such as LoRA adapters."""
    urls: list[str] = []
    """Base URLs of the replicas that are ready, each up to and including `/v1`."""
    grpc_urls: list[str] = []
    """`host:port` of the same replicas, where they take gRPC."""
    min_replicas: int = Field(default=1, ge=0)
    kind: str = ""
    """Kind of its engine."""
    failed: str | None = None
    """Why none of its replicas will get ready; None while one may."""


class NodeRoute(Spec):
    """One node of the Ray cluster."""

    name: str
    metrics_url: str
    """Where its Ray metrics are."""


class Routes(Spec):
    """All of them, as `PUT /control/routes` brings it."""

    apps: list[AppRoute] = []
    nodes: list[NodeRoute] = []
    version: int = 0
    """Given back in the answer."""


def root_of(url: str) -> str:
    """The address of a replica's server: `/health` and `/metrics` are there, the base URL is below."""
    return url.rstrip("/").removesuffix("/v1")


def replica_name(url: str) -> str:
    """What a replica is called outside: host and port."""
    return root_of(url).partition("://")[2]
