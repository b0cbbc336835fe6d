"""The one check of a config before anything starts: types, names, files, secrets, installed parts, and GPU fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from matrix.data.sources import check_dataset
from matrix.errors import ConfigError, Problem, did_you_mean
from matrix.models.source import check_source
from matrix.pipelines.prompt import compile_prompt, compile_template
from matrix.spec import (
    ClusterSpec,
    DatasetSpec,
    EngineSpec,
    GenerateSpec,
    ModelSpec,
    RunSpec,
    SlurmCluster,
    VllmEngine,
    WorkloadSpec,
)
from matrix.spec.cluster import AttachCluster, LocalCluster
from matrix.spec.engine import OpenAIEngine
from matrix.tracking.tracker import check_tracker

_GPU_SHARE = 0.92
"""Share of a GPU's memory that vLLM takes unless `gpu_memory_utilization` says otherwise."""


def check(config: Mapping[str, Any]) -> tuple[RunSpec | None, list[Problem]]:
    """Check a resolved config as a whole.

    A section with a wrong type doesn't hide the problems of the others: rules that need it are left out, the rest is
    checked.

    Args:
        config: The composed config as plain data.

    Returns:
        The spec (None if a type or a name is wrong) and every problem found.
    """
    sections: dict[str, Any] = {}
    problems = [
        Problem(name, None, "no such key", did_you_mean(name, list(RunSpec.model_fields)))
        for name in config
        if name not in RunSpec.model_fields
    ]
    for name, field in RunSpec.model_fields.items():
        annotation: Any = Annotated[field.annotation, field]
        try:
            sections[name] = TypeAdapter(annotation).validate_python(config.get(name))
        except ValidationError as error:
            problems += [_problem((name, *detail["loc"]), detail, config) for detail in error.errors()]
    spec = None if problems else RunSpec.model_construct(**sections)
    for needed, rule in _RULES:
        if all(name in sections for name in needed):
            problems += rule(*(sections[name] for name in needed))
    return spec, problems


def gpus_of_this_machine() -> int:
    """Count the NVIDIA GPUs of this machine by their device files, honouring CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def gpus_per_node(cluster: ClusterSpec) -> int:
    """GPUs of one node of the cluster."""
    return gpus_of_this_machine() if cluster.gpus_per_node is None else cluster.gpus_per_node


def _dataset(dataset: DatasetSpec) -> list[Problem]:
    message = check_dataset(dataset)
    if message:
        return [Problem("dataset.path", dataset.path, message)]
    if dataset.path is None and find_spec("datasets") is None:
        return [_not_installed("dataset.hub", dataset.hub, "datasets", "matrix-llm[hub]", "dataset.path=FILE")]
    return []


def _engine(engine: EngineSpec, model: ModelSpec) -> list[Problem]:
    if isinstance(engine, OpenAIEngine):
        if engine.api_key_env and not os.environ.get(engine.api_key_env):
            hint = f"export {engine.api_key_env}=..., or engine.api_key_env=null if the server asks for none"
            return [Problem("engine.api_key_env", engine.api_key_env, "this environment variable is not set", hint)]
        return []
    problems = []
    if find_spec("ray") is None or find_spec("vllm") is None:
        problems.append(_not_installed("engine.kind", "vllm", "Ray or vLLM", "matrix-llm[vllm]", "engine=openai"))
    message = check_source(model.source)
    if message:
        problems.append(Problem("model.source", model.source, message))
    return problems


def _cluster(cluster: ClusterSpec) -> list[Problem]:
    if isinstance(cluster, AttachCluster) and cluster.token_path and not Path(cluster.token_path).is_file():
        return [Problem("cluster.token_path", cluster.token_path, "no such file", "the token file of the cluster")]
    return []


def _fit(cluster: ClusterSpec, engine: EngineSpec, model: ModelSpec) -> list[Problem]:
    """Tensor parallel inside a node, pipeline parallel across nodes, weights on the GPUs."""
    if not isinstance(engine, VllmEngine):
        return []
    weights_gb = model.parameters_b * model.bytes_per_parameter
    gpus, wanted = gpus_per_node(cluster), model.tensor_parallel * model.pipeline_parallel * engine.replicas.max
    if engine.device == "cpu" or (engine.device == "auto" and gpus == 0):
        return _fit_cpu(cluster, engine, model, weights_gb)
    nodes = 1 if isinstance(cluster, LocalCluster) else _nodes(cluster)
    problems = []
    if model.tensor_parallel > gpus:
        hint = f"at most {gpus}; split over nodes with model.pipeline_parallel" if gpus else "engine.device=cpu"
        message = f"a tensor parallel group stays inside a node, and a node has {gpus} GPUs (cluster.gpus_per_node)"
        problems.append(Problem("model.tensor_parallel", model.tensor_parallel, message, hint))
    elif wanted > gpus * nodes:
        needed = f"{engine.replicas.max} x {model.tensor_parallel} x {model.pipeline_parallel}"
        message = f"replicas x TP x PP = {needed} GPUs, the cluster has {nodes} x {gpus}"
        more = f"{'cluster.workers' if isinstance(cluster, SlurmCluster) else 'cluster.nodes'}={-(-wanted // gpus)}"
        hint = "fewer replicas or a smaller model" + ("" if isinstance(cluster, LocalCluster) else f", or {more}")
        problems.append(Problem("engine.replicas", engine.replicas.max, message, hint))
    share = float(_args(engine, model).get("gpu_memory_utilization") or _GPU_SHARE)
    room_gb = model.tensor_parallel * model.pipeline_parallel * cluster.gpu_memory_gb * share
    if weights_gb > room_gb:
        message = f"{weights_gb:.0f} GB of weights don't fit in the {room_gb:.0f} GB that TP x PP GPUs leave to vLLM"
        hint = "raise model.tensor_parallel or model.pipeline_parallel, or take a quantised model"
        problems.append(Problem("model.name", model.name, message, hint))
    return problems


def _fit_cpu(cluster: ClusterSpec, engine: VllmEngine, model: ModelSpec, weights_gb: float) -> list[Problem]:
    if model.tensor_parallel * model.pipeline_parallel > 1:
        message = f"{model.name} is set up for GPUs, and this cluster has none"
        hint = "a cluster with GPUs (cluster=slurm), or model.tensor_parallel=1 model.pipeline_parallel=1 on the CPU"
        return [Problem("model.tensor_parallel", model.tensor_parallel, message, hint)]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    needed_gb = (weights_gb + engine.kv_cache_gb) * engine.replicas.max
    if isinstance(cluster, LocalCluster) and needed_gb > memory_gb:
        message = f"needs {needed_gb:.0f} GB on the CPU, this machine has {memory_gb:.0f} GB"
        return [Problem("model.name", model.name, message, "a smaller model, or a cluster with GPUs")]
    return []


def _workload(workload: WorkloadSpec, model: ModelSpec) -> list[Problem]:
    problems = []
    if workload.budget_usd is not None and not model.price.is_known:
        hint = "model.price.input_per_million=... and model.price.output_per_million=... in US dollars"
        problems.append(Problem("workload.budget_usd", workload.budget_usd, "what the model costs isn't known", hint))
    if workload.concurrency.max < workload.drivers:
        message = f"is less than workload.drivers={workload.drivers}, and each needs one"
        problems.append(Problem("workload.concurrency.max", workload.concurrency.max, message, "fewer drivers"))
    if workload.drivers > 1 and find_spec("ray") is None:
        problems.append(
            _not_installed("workload.drivers", workload.drivers, "Ray", "matrix-llm[vllm]", "workload.drivers=1")
        )
    return problems


def _pipeline(pipeline: GenerateSpec) -> list[Problem]:
    problems: list[Problem] = []
    try:
        compile_prompt(pipeline)
    except ConfigError as error:
        problems += error.problems
    for number, scorer in enumerate(pipeline.scorers):
        try:
            compile_template(scorer.reference, f"pipeline.scorers.{number}.reference")
        except ConfigError as error:
            problems += error.problems
    return problems


_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[Problem]]], ...] = (
    (("dataset",), _dataset),
    (("engine", "model"), _engine),
    (("cluster",), _cluster),
    (("cluster", "engine", "model"), _fit),
    (("workload", "model"), _workload),
    (("pipeline",), _pipeline),
    (("tracker",), check_tracker),
)


def _nodes(cluster: SlurmCluster | AttachCluster) -> int:
    return cluster.workers if isinstance(cluster, SlurmCluster) else cluster.nodes


def _args(engine: VllmEngine, model: ModelSpec) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in (model.args | engine.args).items()}


def _not_installed(key: str, value: object, what: str, package: str, instead: str) -> Problem:
    return Problem(key, value, f"{what} is not installed", f"pip install '{package}', or {instead}")


def _problem(loc: tuple[int | str, ...], detail: ErrorDetails, config: Mapping[str, Any]) -> Problem:
    """Say pydantic's finding in terms of the config: the key as typed, the value, the nearest valid name."""
    path = _typed_path(loc, config)
    key = ".".join(path)
    match detail["type"]:
        case "extra_forbidden":
            return Problem(key, detail["input"], "no such key", did_you_mean(path[-1], _names_beside(loc)))
        case "missing":
            return Problem(key, None, "is missing", f"give it: {key}=VALUE")
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = str(detail.get("ctx", {}).get("expected_tags", "")).replace("'", "")
            return Problem(f"{key}.kind", config.get(path[0], {}).get("kind"), "no such kind", f"one of: {kinds}")
        case "value_error":
            return Problem(key, None, str(detail["ctx"]["error"]))
        case _:
            message = detail["msg"].replace("Input should be", "should be").replace("String should", "should")
            return Problem(key, detail["input"], message)


def _typed_path(loc: tuple[int | str, ...], config: Mapping[str, Any]) -> list[str]:
    """Drop the tags that pydantic puts into the path of a discriminated union."""
    path = [str(part) for part in loc]
    section = config.get(path[0]) if path else None
    if len(path) > 1 and isinstance(section, Mapping) and section.get("kind") == path[1] and path[1] not in section:
        del path[1]
    return path


def _names_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Valid names at the place of an unknown key."""
    model: Any = RunSpec
    for part in loc[:-1]:
        model = _step(model, part)
    return list(getattr(model, "model_fields", {}))


def _step(model: Any, part: int | str) -> Any:
    if isinstance(part, int):
        return get_args(model)[0]
    if hasattr(model, "model_fields") and part in model.model_fields:
        return model.model_fields[part].annotation
    members = [member for member in get_args(model) if hasattr(member, "model_fields")]
    tagged = [member for member in members if part in get_args(member.model_fields["kind"].annotation)]
    return tagged[0] if tagged else model
