"""The run spec: one experiment as frozen, typed data. Nothing here knows Hydra, Ray or a file system."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from matrix.spec.agents import AgentsSpec, RoleSpec
from matrix.spec.base import Spec
from matrix.spec.cluster import AttachCluster, ClusterSpec, LocalCluster, SlurmCluster
from matrix.spec.engine import (
    AnthropicEngine,
    AppEngine,
    AzureEngine,
    BedrockEngine,
    Gateway,
    GatewayEngine,
    GeminiEngine,
    LlamaApiEngine,
    OpenAIEngine,
    Replicas,
    SagemakerEngine,
    SglangEngine,
    SimulatedEngine,
    VllmEngine,
)
from matrix.spec.model import ModelSpec, Price, SamplingSpec
from matrix.spec.services import SERVICES, ContainerEngine, EngineSpec, SandboxEngine, ServiceEngine
from matrix.spec.tracker import NoTracker, TrackerSpec, WandbTracker
from matrix.spec.workload import (
    CodeScorerSpec,
    Concurrency,
    DatasetSpec,
    ExecuteSpec,
    GenerateSpec,
    Message,
    PipelineSpec,
    ScorerSpec,
    WorkloadSpec,
)

__all__ = [
    "SERVICES",
    "AgentsSpec",
    "AnthropicEngine",
    "AppEngine",
    "AppSpec",
    "AttachCluster",
    "AzureEngine",
    "BedrockEngine",
    "ClusterSpec",
    "CodeScorerSpec",
    "Concurrency",
    "ContainerEngine",
    "DatasetSpec",
    "EngineSpec",
    "ExecuteSpec",
    "Gateway",
    "GatewayEngine",
    "GeminiEngine",
    "GenerateSpec",
    "LlamaApiEngine",
    "LocalCluster",
    "Message",
    "ModelSpec",
    "NoTracker",
    "OpenAIEngine",
    "PipelineSpec",
    "Price",
    "Replicas",
    "RoleSpec",
    "RunOptions",
    "RunSpec",
    "SagemakerEngine",
    "SamplingSpec",
    "SandboxEngine",
    "ScorerSpec",
    "ServiceEngine",
    "SglangEngine",
    "SimulatedEngine",
    "SlurmCluster",
    "Spec",
    "TrackerSpec",
    "VllmEngine",
    "WandbTracker",
    "WorkloadSpec",
]


class RunOptions(Spec):
    """Where the run writes."""

    root: str = "outputs"
    """Folder of all run dirs."""
    dir: str | None = None
    """The run dir; one that exists is resumed. None: `<root>/<name>/<run id>`."""
    rows: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the file with all rows that the end of the run writes: `rows.jsonl` or `rows.parquet`."""
    detach: bool = False
    """With a cluster that isn't this machine: return at once, the run goes on there."""


class AppSpec(Spec):
    """One more app, beside the one that `engine` and `model` describe."""

    engine: EngineSpec
    model: ModelSpec
    """Of an engine that serves none a name, that of its kind if nothing else is given."""

    @model_validator(mode="before")
    @classmethod
    def _may_have_no_model(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("model") is not None:
            return given
        engine = given.get("engine")
        kind = engine.get("kind") if isinstance(engine, dict) else getattr(engine, "kind", None)
        return {**given, "model": {"name": kind}} if kind in SERVICES else given


class RunSpec(Spec):
    """One experiment."""

    name: str = Field(min_length=1)
    """Folder under `run.root` (with `-` for what a folder name can't hold), and the run's name in the tracker."""
    seed: int = Field(ge=0)
    """Trial number t samples with `seed + t`."""
    trials: int = Field(gt=0)
    """Times that every row is asked for."""
    cluster: ClusterSpec
    engine: EngineSpec
    model: ModelSpec
    sampling: SamplingSpec
    dataset: DatasetSpec
    pipeline: PipelineSpec | None = Field(default=None, discriminator="kind")
    """What is done with a row; None where `agents` does it."""
    agents: AgentsSpec | None = None
    """A team that works through the rows, in place of `pipeline`."""
    apps: dict[str, AppSpec] = {}
    """More apps, by name."""
    plan: bool = False
    """Say what would go where, and start nothing."""
    tracker: TrackerSpec
    workload: WorkloadSpec
    run: RunOptions

    @property
    def workload_name(self) -> str:
        """Name of the pipeline or of the team."""
        work = self.pipeline or self.agents
        return work.name if work else ""

    @property
    def scorers(self) -> list[ScorerSpec]:
        """How answers are judged."""
        work = self.pipeline or self.agents
        return work.scorers if work else []

    @property
    def main_app(self) -> str:
        """Name of the app that `engine` and `model` describe."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.model.name)

    def all_apps(self) -> dict[str, AppSpec]:
        """The main app and those of `apps`, by name; one of `apps` with the main one's name takes its place."""
        return {self.main_app: AppSpec(engine=self.engine, model=self.model), **self.apps}

    @property
    def asked_apps(self) -> list[str]:
        """Apps that the workload asks: the main one, and those of roles, tools and scorers."""
        roles = self.agents.named.values() if self.agents else ()
        tools = self.agents.service_tools.values() if self.agents else ()
        of_team = [*(role.app for role in roles if role.app), *(tool.app for tool in tools)]
        of_scorers = (scorer.app for scorer in self.scorers if isinstance(scorer, CodeScorerSpec))
        return list(dict.fromkeys([self.main_app, *of_team, *of_scorers]))

    @property
    def role_prices(self) -> dict[str, Price]:
        """What the models of a team's roles cost, by role, where that is known."""
        apps, roles = self.all_apps(), self.agents.named if self.agents else {}
        prices = {name: apps[role.app or self.main_app].model.price for name, role in roles.items()}
        return {name: price for name, price in prices.items() if price.is_known}

    @property
    def has_role_actors(self) -> bool:
        """Whether some role runs in processes of its own."""
        return self.agents is not None and any(role.is_actor for role in self.agents.named.values())
