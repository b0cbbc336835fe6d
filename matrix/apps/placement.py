"""What goes where: the resources of an app's replicas, and nodes that have them. Pure; nothing here knows Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from matrix.apps.nodes import Node, on_cpu
from matrix.apps.sizes import Memory, memory_of, parallel_of
from matrix.spec import AppSpec, EngineSpec, Gateway, ModelSpec, OpenAIEngine, SglangEngine, VllmEngine

Bundle = dict[str, float]
"""Resources that a replica needs on one node, by Ray's names."""

_MACHINE = ("GPU", "CPU")
_NAMED = 8
"""Nodes that a message names."""
_GRAIN = 1e-4
"""Ray counts in ten thousandths."""


@dataclass(frozen=True)
class Placement:
    """A replica that has its place; number 0 stands for an app that starts with none.

    Attributes:
        app: Name of the app.
        replica: Its number, from 1 on.
        spec: Engine and model.
        bundles: What it needs, on one node each.
        nodes: The nodes, one for each bundle.
        memory: What it holds; None for an engine without a model.
    """

    app: str
    replica: int
    spec: AppSpec
    bundles: list[Bundle]
    nodes: list[str]
    memory: Memory | None


@dataclass(frozen=True)
class Unplaced:
    """An app with a replica that found no place.

    Attributes:
        app: Name of the app.
        replica: Number of the first replica without a place.
        replicas: How many there should be.
        why: Which resource is missing on which nodes.
    """

    app: str
    replica: int
    replicas: int
    why: str

    def __str__(self) -> str:
        return f"{self.app}: replica {self.replica} of {self.replicas} {self.why}"


@dataclass(frozen=True)
class Plan:
    """Which replica goes to which nodes.

    Attributes:
        nodes: The nodes, with what the plan leaves of them.
        placements: The replicas that have a place, in the order in which they should be placed.
        unplaced: The apps that have not.
    """

    nodes: list[Node]
    placements: list[Placement]
    unplaced: list[Unplaced]

    @property
    def problems(self) -> list[str]:
        """What can't be placed and why, a line each."""
        return [str(unplaced) for unplaced in self.unplaced]

    def table(self) -> str:
        """The plan for people: a line for each replica, then one for each node, in columns."""
        if not self.placements and not self.unplaced:
            return "Nothing is placed: no app runs on the cluster."
        head = ("app", "replica", "engine", "model", "node", "resources", "weights GB", "KV GB (one request / room)")
        lines = _columns([head, *(_row(placement) for placement in self.placements)])
        lines += ["", *_columns([("node", "used"), *((node.name, _used(node)) for node in self.nodes)])]
        return "\n".join(lines)


def apps_of(engine: EngineSpec, model: ModelSpec, apps: Mapping[str, AppSpec]) -> dict[str, AppSpec]:
    """All apps of a run by name: the one that `engine` and `model` describe first, under the model's name.

    Servers that are somebody else's are talked to directly, so they are an app only under `apps`.
    """
    if isinstance(engine, OpenAIEngine | Gateway):
        return dict(apps)
    return {model.name: AppSpec.model_construct(engine=engine, model=model), **apps}


def bundles_of(engine: EngineSpec, model: ModelSpec, *, cpu: bool, gpus_per_node: float) -> list[Bundle]:
    """What one replica needs, a bundle for each node that it spans.

    Tensor and data parallel stay inside a node, pipeline stages are spread over as few nodes as hold them with the
    same number on each.

    Args:
        engine: The engine.
        model: Its model.
        cpu: The engine runs without GPUs.
        gpus_per_node: GPUs of the largest node.
    """
    if cpu or not isinstance(engine, VllmEngine | SglangEngine):
        return [{"CPU": engine.cpus, **engine.resources}]
    parallel = parallel_of(engine, model)
    nodes = parallel.nodes(gpus_per_node)
    gpus = parallel.gpus // nodes
    return [{"GPU": float(gpus), "CPU": engine.cpus * gpus, **engine.resources} for _ in range(nodes)]


def order(apps: Mapping[str, AppSpec], *, gpus_per_node: float) -> dict[str, AppSpec]:
    """The apps in the order in which they should be placed: large groups of GPUs first, small ones fill the rest.

    Of those of one size the ones that are pinned to some nodes come first.
    """

    def size(name: str) -> tuple[float, float, bool]:
        gpus = [bundle.get("GPU", 0) for bundle in _bundles(apps[name], gpus_per_node)]
        return max(gpus), sum(gpus), bool(apps[name].engine.resources)

    return {name: apps[name] for name in sorted(apps, key=size, reverse=True)}


def plan(nodes: Sequence[Node], apps: Mapping[str, AppSpec], *, gpu_memory_gb: float) -> Plan:
    """Place the least number of replicas of all apps, each where it leaves least.

    Args:
        nodes: The nodes, with what is free.
        apps: The apps by name.
        gpu_memory_gb: Memory of one GPU.
    """
    gpus_per_node = _gpus_per_node(nodes)
    left, placements, unplaced = {node.name: node for node in nodes}, list[Placement](), list[Unplaced]()
    for name, app in order(apps, gpus_per_node=gpus_per_node).items():
        replicas, bundles = app.engine.replicas, _bundles(app, gpus_per_node)
        memory = None
        if isinstance(app.engine, VllmEngine | SglangEngine):
            cpu = on_cpu(app.engine, gpus_per_node)
            memory = memory_of(app.engine, app.model, cpu=cpu, gpu_memory_gb=gpu_memory_gb)
        if replicas.min == 0:
            placements.append(Placement(name, 0, app, bundles, [], memory))
        places = _places(left, bundles)
        for number in range(1, replicas.min + 1):
            chosen = next(places, None)
            if chosen is None:
                why = missing(list(left.values()), bundles) or ""
                unplaced.append(Unplaced(name, number, replicas.min, why))
                break
            placements.append(Placement(name, number, app, bundles, chosen, memory))
    return Plan(list(left.values()), placements, unplaced)


def _places(left: dict[str, Node], bundles: Sequence[Bundle]) -> Iterator[list[str]]:
    """The nodes of one replica after another, each where it leaves least, until there is no more room.

    Its bundles are alike. So the fullest node with room stays the fullest as long as it has room, and the nodes are
    sorted once: there may be thousands of both.

    Args:
        left: The nodes by name; what is taken of them is taken away here.
        bundles: What a replica needs, each bundle on a node of its own.
    """
    bundle, number = bundles[0], len(bundles)
    room = sorted((node for node in left.values() if _has(node, bundle)), key=_free_of_gpus)
    while len(room) >= number:
        chosen = [_without(node, bundle) for node in room[:number]]
        left |= {node.name: node for node in chosen}
        yield [node.name for node in chosen]
        room[:number] = [node for node in chosen if _has(node, bundle)]


def missing(nodes: Sequence[Node], bundles: Sequence[Bundle]) -> str | None:
    """Which resource one replica lacks on which nodes; None if there is room for it.

    Args:
        nodes: The nodes, with what is free.
        bundles: What the replica needs, each bundle on a node of its own.
    """
    if len(_choose(nodes, bundles)) == len(bundles):
        return None
    need = bundles[0]
    scarce = [name for name in need if any(not _has(node, {name: need[name]}) for node in nodes)] or list(need)
    wanted = " and ".join(f"{need[name]:g} {name}" for name in scarce)
    needs = f"needs {wanted}" if len(bundles) == 1 else f"needs {len(bundles)} nodes with {wanted} each"
    if not nodes:
        return f"{needs}; there are no nodes"
    best = sorted(nodes, key=lambda node: -node.available.get(scarce[0], 0))
    said = [f"{node.name} has {_free(node, scarce)} free" for node in best[:_NAMED]]
    if len(best) > _NAMED:
        said.append(f"{len(best) - _NAMED} more have no more than that")
    return f"{needs}; {', '.join(said)}"


def _choose(nodes: Sequence[Node], bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """The bundles by the node that each should go to, each on another one; those without a node are left out."""
    chosen: dict[str, Bundle] = {}
    for bundle in bundles:
        fit = [node for node in nodes if node.name not in chosen and _has(node, bundle)]
        if fit:
            best = min(fit, key=_free_of_gpus)
            chosen[best.name] = bundle
    return chosen


def _free_of_gpus(node: Node) -> tuple[float, float]:
    return node.available.get("GPU", 0), node.available.get("CPU", 0)


def _has(node: Node, bundle: Bundle) -> bool:
    return all(node.available.get(name, node.others) + _GRAIN >= amount for name, amount in bundle.items())


def _without(node: Node, bundle: Bundle) -> Node:
    return replace(node, available={name: free - bundle.get(name, 0) for name, free in node.available.items()})


def _bundles(app: AppSpec, gpus_per_node: float) -> list[Bundle]:
    cpu = on_cpu(app.engine, gpus_per_node)
    return bundles_of(app.engine, app.model, cpu=cpu, gpus_per_node=gpus_per_node)


def _gpus_per_node(nodes: Iterable[Node]) -> float:
    return max((node.total.get("GPU", 0) for node in nodes), default=0)


def _free(node: Node, names: Sequence[str]) -> str:
    unit = len(names) > 1
    return " and ".join(
        f"{node.available.get(name, 0):g} of {node.total.get(name, 0):g}{f' {name}' if unit else ''}" for name in names
    )


def _used(node: Node) -> str:
    known = (name for name, has in node.total.items() if 0 < has < float("inf"))
    used = {name: taken for name in known if (taken := node.total[name] - node.available[name]) or name in _MACHINE}
    return ", ".join(f"{used[name]:g} of {node.total[name]:g} {name}" for name in sorted(used, reverse=True)) or "-"


def _row(placement: Placement) -> tuple[str, ...]:
    replicas = placement.spec.engine.replicas
    number = str(placement.replica) if placement.replica else "none yet"
    if replicas.scales:
        number += f" (up to {replicas.max})"
    first = placement.bundles[0]
    resources = ", ".join(f"{amount:g} {name}" for name, amount in first.items())
    memory = placement.memory
    return (
        placement.app,
        number,
        placement.spec.engine.kind,
        placement.spec.model.name,
        ", ".join(placement.nodes) or "-",
        resources if len(placement.bundles) == 1 else f"{len(placement.bundles)} x ({resources})",
        _gb(memory.weights_gb) if memory else "-",
        f"{_gb(memory.request_gb)} / {_gb(memory.kv_gb)}" if memory else "-",
    )


def _gb(amount: float | None) -> str:
    return "?" if amount is None else f"{amount:.2f}" if amount < 10 else f"{amount:.0f}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
