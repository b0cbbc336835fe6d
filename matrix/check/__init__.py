"""The one check of a config before anything starts: types, names, files, secrets, installed parts, GPU fit, placement.

docs/checks.md lists what is checked. Every rule is a function from the sections of the spec that it needs to problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from matrix.check.engines import check_app_names, check_engine
from matrix.check.fit import check_fit, check_room
from matrix.check.problems import type_problem, union_member
from matrix.check.resources import check_resources
from matrix.check.sections import (
    check_cluster,
    check_data,
    check_executes,
    check_pipeline,
    check_scorers,
    check_work,
    check_workload,
)
from matrix.errors import ClusterError, ConfigError, Problem, did_you_mean
from matrix.spec import (
    SERVICES,
    AgentsSpec,
    AppSpec,
    ClusterSpec,
    EngineSpec,
    ModelSpec,
    RunSpec,
    SamplingSpec,
    SlurmCluster,
)
from matrix.tracking.tracker import check_tracker

__all__ = ["check"]


def check(config: Mapping[str, Any], *, joins: bool = True) -> tuple[RunSpec | None, list[Problem]]:
    """Check a resolved config as a whole.

    A section with a wrong type doesn't hide the problems of the others: rules that need it are left out, the rest is
    checked.

    Args:
        config: The composed config as plain data.
        joins: A cluster of jobs that is there already is taken as it is, whatever the config says of its nodes.

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
        if not field.is_required() and config.get(name, field.default) == field.default:
            # Spares the schema of all apps, which takes longer to build than that of everything else.
            sections[name] = field.default
            continue
        given: Any = config.get(name)
        member = union_member(field.annotation, given)
        annotation: Any = member or Annotated[field.annotation, field]
        place = (name,) if member is None else (name, given["kind"])
        try:
            sections[name] = TypeAdapter(annotation).validate_python(given)
        except ValidationError as error:
            problems += [type_problem((*place, *detail["loc"]), detail, config) for detail in error.errors()]
    if isinstance(cluster := sections.get("cluster"), SlurmCluster):
        # Loads what talks to Slurm, and to clusters that are there.
        from matrix.check.slurm import check_slurm
        from matrix.cluster.join import grown, joined
        from matrix.cluster.resolve import resolved

        problems += check_slurm(cluster)
        try:
            # Of its nodes the rules need to know what Slurm says, or what they are.
            sections["cluster"] = (joined(cluster) if joins else None) or resolved(cluster if joins else grown(cluster))
        except ConfigError as error:
            problems += error.problems
            del sections["cluster"]
        except ClusterError as error:
            problems.append(Problem("cluster.kind", "slurm", str(error)))
            del sections["cluster"]
    spec = None if problems else RunSpec.model_construct(**sections)
    for needed, rule in _RULES:
        if all(name in sections for name in needed):
            problems += rule(*(sections[name] for name in needed))
    return spec, problems


def _engine(engine: EngineSpec, model: ModelSpec) -> list[Problem]:
    return check_engine("", engine, model)


def _fit(cluster: ClusterSpec, engine: EngineSpec, model: ModelSpec) -> list[Problem]:
    return check_fit("", cluster, engine, model) + _host("", cluster, engine)


def _apps(apps: dict[str, AppSpec]) -> list[Problem]:
    return [found for name, app in apps.items() for found in check_engine(f"apps.{name}.", app.engine, app.model)]


def _apps_fit(cluster: ClusterSpec, apps: dict[str, AppSpec]) -> list[Problem]:
    problems = []
    for name, app in apps.items():
        problems += check_fit(f"apps.{name}.", cluster, app.engine, app.model)
        problems += _host(f"apps.{name}.", cluster, app.engine)
    return problems


def _host(prefix: str, cluster: ClusterSpec, engine: EngineSpec) -> list[Problem]:
    if engine.kind not in SERVICES:
        return []
    from matrix.check.services import check_host

    return check_host(prefix, cluster, engine)


def _agents(agents: AgentsSpec | None, sampling: SamplingSpec, apps: dict[str, AppSpec]) -> list[Problem]:
    if agents is None:
        return []
    # Loads the runtime of teams.
    from matrix.check.agents import check_agents

    return check_agents(agents, sampling, apps)


_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[Problem]]], ...] = (
    (("dataset",), check_data),
    (("engine", "model"), _engine),
    (("apps",), _apps),
    (("engine", "model", "apps"), check_app_names),
    (("cluster",), check_cluster),
    (("cluster", "engine", "model"), _fit),
    (("cluster", "apps"), _apps_fit),
    (("cluster", "engine", "model", "apps", "plan"), check_room),
    (("cluster", "engine", "apps", "workload", "agents"), check_resources),
    (("workload", "model", "engine"), check_workload),
    (("pipeline", "agents"), check_work),
    (("pipeline",), check_pipeline),
    (("pipeline", "engine"), check_executes),
    (("pipeline", "agents", "apps"), check_scorers),
    (("agents", "sampling", "apps"), _agents),
    (("tracker",), check_tracker),
)
