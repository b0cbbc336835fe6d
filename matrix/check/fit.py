"""Rules on room: an engine on the GPUs of its nodes, weights and KV cache in their memory, all apps on the cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping

from matrix.apps.nodes import gpus_per_node, nodes_of, on_cpu
from matrix.apps.placement import apps_of, plan
from matrix.apps.sizes import CONTEXT, DATA, PIPELINE, TENSOR, ModelEngine, context_of, memory_of, parallel_of
from matrix.check.resources import check_pins
from matrix.errors import Problem
from matrix.spec import (
    AppSpec,
    ClusterSpec,
    EngineSpec,
    LocalCluster,
    ModelSpec,
    SglangEngine,
    VllmEngine,
)

_MORE_NODES = {"slurm": ", or more cluster.workers", "attach": ", or more cluster.nodes"}


def check_fit(prefix: str, cluster: ClusterSpec, engine: EngineSpec, model: ModelSpec) -> list[Problem]:
    """One replica fits: its GPUs on the nodes, the weights and the KV cache of a whole request in their memory.

    Args:
        prefix: What stands before `engine` and `model` in keys: empty, or `apps.NAME.`.
        cluster: Where it is to run.
        engine: The engine.
        model: Its model.
    """
    if not isinstance(engine, VllmEngine | SglangEngine):
        return []
    return _Fit(prefix, cluster, engine, model).problems()


def check_room(
    cluster: ClusterSpec, engine: EngineSpec, model: ModelSpec, apps: Mapping[str, AppSpec], plan_only: bool
) -> list[Problem]:
    """The least number of replicas of all apps has room on the cluster; `plan=true` shows that itself."""
    everything = apps_of(engine, model, apps)
    prefixes = {name: f"apps.{name}." if apps.get(name) is app else "" for name, app in everything.items()}
    alone = [check_fit(prefixes[name], cluster, app.engine, app.model) for name, app in everything.items()]
    alone += [list(check_pins("", app.engine.resources, cluster)) for app in everything.values()]
    # What doesn't fit by itself was said already.
    if plan_only or any(alone):
        return []
    others = " beside the other apps" if len(everything) > 1 else ""
    problems = []
    for one in plan(nodes_of(cluster), everything, gpu_memory_gb=cluster.gpu_memory_gb).unplaced:
        replicas = everything[one.app].engine.replicas
        key = f"{prefixes[one.app]}engine.replicas" + (".min" if replicas.scales else "")
        message = f"no room for replica {one.replica} of {one.replicas}{others}: {one.why}"
        fewer = f"{key}={one.replica - 1}" if one.replica > 1 else "fewer or smaller apps"
        problems.append(Problem(key, replicas.min, message, fewer + _MORE_NODES.get(cluster.kind, "")))
    return problems


class _Fit:
    """The rules on one engine."""

    def __init__(self, prefix: str, cluster: ClusterSpec, engine: ModelEngine, model: ModelSpec) -> None:
        self._prefix = prefix
        self._cluster = cluster
        self._engine = engine
        self._model = model
        self._gpus = gpus_per_node(cluster)
        self._cpu = on_cpu(engine, self._gpus)
        self._parallel = parallel_of(engine, model)
        self._memory = memory_of(engine, model, cpu=self._cpu, gpu_memory_gb=cluster.gpu_memory_gb)

    def problems(self) -> list[Problem]:
        found = self._on_the_cpu() if self._cpu else [*self._on_nodes(), *self._weights()]
        return found or self._request()

    def _on_nodes(self) -> list[Problem]:
        """A stage stays inside a node, and there are as many nodes as stages need."""
        parallel, gpus, nodes = self._parallel, self._gpus, len(nodes_of(self._cluster))
        if parallel.tensor > gpus:
            hint = f"at most {gpus}; split over nodes with {self._prefix}model.pipeline_parallel"
            if not gpus:
                can_do_without = isinstance(self._engine, VllmEngine)
                hint = f"{self._prefix}engine.device=cpu" if can_do_without else "a cluster with GPUs (cluster=slurm)"
            message = f"a tensor parallel group stays inside a node, and a node has {gpus} GPUs (cluster.gpus_per_node)"
            return [Problem(self._key(TENSOR, "model.tensor_parallel"), parallel.tensor, message, hint)]
        if parallel.stage > gpus:
            needed = f"TP x DP = {parallel.tensor} x {parallel.data} GPUs"
            message = f"{needed} of one stage stay inside a node, and a node has {gpus} GPUs (cluster.gpus_per_node)"
            hint = f"at most {gpus // parallel.tensor}; {self._prefix}engine.replicas may be on other nodes"
            return [Problem(self._key(DATA, "engine.args.data_parallel_size"), parallel.data, message, hint)]
        wanted = parallel.nodes(gpus)
        if wanted > nodes:
            sizes = f"TP x PP x DP = {parallel.tensor} x {parallel.pipeline} x {parallel.data} GPUs"
            message = f"{sizes} take {wanted} nodes of {gpus} GPUs, the cluster has {nodes}"
            more = {"slurm": f"cluster.workers={wanted}", "attach": f"cluster.nodes={wanted}"}
            hint = more.get(self._cluster.kind, "a smaller model, or a cluster of more nodes (cluster=slurm)")
            return [Problem(self._key(PIPELINE, "model.pipeline_parallel"), parallel.pipeline, message, hint)]
        return []

    def _weights(self) -> list[Problem]:
        weights_gb, room_gb = self._memory.weights_gb, self._memory.room_gb
        if weights_gb is None or weights_gb <= room_gb:
            return []
        name = "vLLM" if isinstance(self._engine, VllmEngine) else "SGLang"
        message = f"{weights_gb:.0f} GB of weights don't fit in the {room_gb:.0f} GB that TP x PP GPUs leave to {name}"
        split = f"{self._prefix}model.tensor_parallel or {self._prefix}model.pipeline_parallel"
        hint = f"raise {split}, or take a quantised model"
        return [Problem(f"{self._prefix}model.name", self._model.name, message, hint)]

    def _on_the_cpu(self) -> list[Problem]:
        """Without GPUs an engine is one process, and its replicas share the memory of the machine."""
        prefix, model = self._prefix, self._model
        if self._parallel.gpus > 1:
            message = f"{model.name} is set up for GPUs, and this cluster has none"
            single = f"{prefix}model.tensor_parallel=1 {prefix}model.pipeline_parallel=1 on the CPU"
            hint = f"a cluster with GPUs (cluster=slurm), or {single}"
            return [Problem(f"{prefix}model.tensor_parallel", model.tensor_parallel, message, hint)]
        machine_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        replicas = max(1, self._engine.replicas.min)
        needed_gb = ((self._memory.weights_gb or 0) + self._memory.room_gb) * replicas
        if isinstance(self._cluster, LocalCluster) and needed_gb > machine_gb:
            message = f"needs {needed_gb:.0f} GB on the CPU, this machine has {machine_gb:.0f} GB"
            return [Problem(f"{prefix}model.name", model.name, message, "a smaller model, or a cluster with GPUs")]
        return []

    def _request(self) -> list[Problem]:
        """The KV cache holds a request as long as the context; without that vLLM doesn't even start."""
        needed_gb, room_gb = self._memory.request_gb, self._memory.kv_gb
        if needed_gb is None or room_gb is None or needed_gb <= room_gb:
            return []
        context = context_of(self._engine, self._model) or 0
        key, prefix = self._key(CONTEXT, "model.context_length"), self._prefix
        fits = int(context * room_gb / needed_gb)
        # Somewhat less than would just fit is a rounder number.
        fits -= fits % 1024 if fits > 1024 else 0
        if self._cpu:
            left, more = f"{prefix}engine.kv_cache_gb={room_gb:g}", f"{prefix}engine.kv_cache_gb={needed_gb * 1.05:.1f}"
        else:
            left = f"the {room_gb:.1f} GB that the weights leave of the GPUs"
            more = f"raise {prefix}model.tensor_parallel, or {prefix}engine.args.kv_cache_dtype=fp8"
        message = f"a request of that many tokens takes {needed_gb:.1f} GB of KV cache, more than {left}"
        return [Problem(key, int(context), message, f"{key}={fits}, or {more}" if fits else more)]

    def _key(self, names: tuple[str, ...], otherwise: str) -> str:
        """The key that sets a size, as it is typed: an argument of the engine wins over the model's field."""
        for place, args in (("engine.args", self._engine.args), ("model.args", self._model.args)):
            for typed in args:
                if typed.replace("-", "_") in names:
                    return f"{self._prefix}{place}.{typed}"
        return f"{self._prefix}{otherwise}"
