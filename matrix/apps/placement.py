"""temporary"""

from __future__ import annotations
from dataclasses import dataclass
from collections.abc import Callable, Mapping
from typing import Any


@dataclass(frozen=True)
class Node:
    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]


def bundles_of(engine: Any, model: Any, *, cpu: bool, gpus_per_node: int) -> list[dict[str, float]]:
    return [{"CPU": engine.cpus}]


def missing(nodes: list[Node], bundles: list[dict[str, float]]) -> str | None:
    for b in bundles:
        if not any(all(n.free.get(k, 0) >= v for k, v in b.items()) for n in nodes):
            return f"needs {b}; " + ", ".join(
                f"{n.name} has {n.free.get('CPU', 0):g} of {n.total.get('CPU', 0):g}" for n in nodes
            )
    return None


def never_fits(nodes: list[Node], bundles: list[dict[str, float]]) -> bool:
    return any(not any(all(n.total.get(k, 0) >= v for k, v in b.items()) for n in nodes) for b in bundles)


def order(apps: list[Any], key: Callable[[Any], Any]) -> list[Any]:
    return apps
