"""Rules on the sections that have little to do with each other: data set, cluster, workload, pipeline."""

from __future__ import annotations

from pathlib import Path

from matrix.check.problems import is_installed, not_installed
from matrix.data.sources import check_dataset
from matrix.errors import ConfigError, Problem
from matrix.pipelines.prompt import compile_prompt
from matrix.pipelines.references import References
from matrix.spec import (
    SERVICES,
    AgentsSpec,
    AppSpec,
    AttachCluster,
    ClusterSpec,
    CodeScorerSpec,
    DatasetSpec,
    EngineSpec,
    ExecuteSpec,
    ModelSpec,
    OpenAIEngine,
    PipelineSpec,
    RunSpec,
    SandboxEngine,
    WorkloadSpec,
)


def check_data(dataset: DatasetSpec) -> list[Problem]:
    """The file is there, or what reads the hub."""
    message = check_dataset(dataset)
    if message:
        return [Problem("dataset.path", dataset.path, message)]
    if dataset.path is None and not is_installed("datasets"):
        return [not_installed("dataset.hub", dataset.hub, "datasets", "matrix-llm[hub]", "dataset.path=FILE")]
    return []


def check_cluster(cluster: ClusterSpec) -> list[Problem]:
    """The token file is there."""
    if isinstance(cluster, AttachCluster) and cluster.token_path and not Path(cluster.token_path).is_file():
        return [Problem("cluster.token_path", cluster.token_path, "no such file", "the token file of the cluster")]
    return []


def check_workload(workload: WorkloadSpec, model: ModelSpec, engine: EngineSpec) -> list[Problem]:
    """A budget needs a price, drivers need requests to send, and Ray; gRPC needs somebody who takes it."""
    problems = []
    if workload.use_grpc and not engine.grpc:
        problems.append(Problem("workload.use_grpc", True, "the engine takes no gRPC", "engine.grpc=true"))
    if workload.budget_usd is not None and not model.price.is_known:
        hint = "model.price.input_per_million=... and model.price.output_per_million=... in US dollars"
        problems.append(Problem("workload.budget_usd", workload.budget_usd, "what the model costs isn't known", hint))
    if workload.concurrency.max < workload.drivers:
        message = f"is less than workload.drivers={workload.drivers}, and each needs one"
        problems.append(Problem("workload.concurrency.max", workload.concurrency.max, message, "fewer drivers"))
    if workload.max_in_flight is not None and workload.max_in_flight < workload.drivers:
        message = f"is less than workload.drivers={workload.drivers}, and each needs one"
        problems.append(Problem("workload.max_in_flight", workload.max_in_flight, message, "fewer drivers"))
    if workload.drivers > 1 and not is_installed("ray"):
        problems.append(
            not_installed("workload.drivers", workload.drivers, "Ray", "matrix-llm[vllm]", "workload.drivers=1")
        )
    return problems


def check_pipeline(pipeline: PipelineSpec | None) -> list[Problem]:
    """The templates compile."""
    if pipeline is None:
        return []
    problems: list[Problem] = []
    try:
        if isinstance(pipeline, ExecuteSpec):
            # Loads what an execution is.
            from matrix.pipelines.executions import ExecutionBuilder

            ExecutionBuilder(pipeline)
        else:
            compile_prompt(pipeline)
    except ConfigError as error:
        problems += error.problems
    try:
        References(pipeline.scorers, "pipeline.scorers")
    except ConfigError as error:
        problems += error.problems
    return problems


def check_executes(pipeline: PipelineSpec | None, engine: EngineSpec) -> list[Problem]:
    """Programs go to a sandbox, or to a server that may be one."""
    if not isinstance(pipeline, ExecuteSpec) or isinstance(engine, SandboxEngine | OpenAIEngine):
        return []
    return [
        Problem("engine.kind", engine.kind, "runs no programs", "engine=sandbox model=sandbox, or another pipeline")
    ]


def check_scorers(pipeline: PipelineSpec | None, agents: AgentsSpec | None, apps: dict[str, AppSpec]) -> list[Problem]:
    """Programs have a sandbox that runs them, and as much time and memory as it gives."""
    problems = []
    for section, work in (("pipeline", pipeline), ("agents", agents)):
        for number, scorer in enumerate(work.scorers if work else []):
            if not isinstance(scorer, CodeScorerSpec):
                continue
            key = f"{section}.scorers.{number}"
            engine = apps[scorer.app].engine if scorer.app in apps else None
            if not isinstance(engine, SandboxEngine):
                what = "no such app" if engine is None else f"engine={engine.kind} runs no programs"
                problems.append(Problem(f"{key}.app", scorer.app, what, f"apps.{scorer.app}.engine=sandbox makes one"))
                continue
            for own, most in (("timeout_s", "max_timeout_s"), ("memory_mb", "max_memory_mb")):
                given, limit = getattr(scorer, own), getattr(engine, most)
                if given is not None and given > limit:
                    message = f"is more than apps.{scorer.app}.engine.{most}={limit:g}"
                    problems.append(Problem(f"{key}.{own}", given, message, f"set both, or at most {limit:g}"))
    return problems


def check_asked(spec: RunSpec) -> list[Problem]:
    """The main app serves a model if that is what a run asks; a deploy asks nobody."""
    if spec.engine.kind not in SERVICES or isinstance(spec.pipeline, ExecuteSpec):
        return []
    asks = f"{'pipeline' if spec.pipeline else 'agents'}={spec.workload_name}"
    hint = f"engine=vllm or another one, and apps.NAME.engine={spec.engine.kind} beside it"
    return [Problem("engine.kind", spec.engine.kind, f"serves no model, and {asks} asks one", hint)]


def check_work(pipeline: PipelineSpec | None, agents: AgentsSpec | None) -> list[Problem]:
    """There is something to do with a row, and one thing only."""
    if pipeline is not None and agents is not None:
        message = f"stands beside agents={agents.name}, and only one of them can work through the rows"
        return [Problem("pipeline", pipeline.name, message, "pipeline=null, or leave agents out")]
    if pipeline is None and agents is None:
        return [Problem("pipeline", None, "nothing is to be done with the rows", "pipeline=NAME or agents=NAME")]
    return []
