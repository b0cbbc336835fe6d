"""Rules on a team: who takes a turn after whom, and whether its code, its apps and its tools are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matrix.agents.load import Loader
from matrix.agents.route import check_route, compile_route
from matrix.agents.seats import sampling_fields
from matrix.agents.services import container_templates
from matrix.agents.toolbox import Toolbox
from matrix.check.problems import is_installed, not_installed
from matrix.errors import ConfigError, Problem, did_you_mean
from matrix.pipelines.prompt import compile_template
from matrix.pipelines.references import References
from matrix.spec import AgentsSpec, AppSpec, ContainerEngine, SamplingSpec, SandboxEngine, ServiceEngine
from matrix.spec.agents import ContainerTool, RoleSpec, SandboxTool
from matrix.spec.services import ANY


def check_agents(agents: AgentsSpec, sampling: SamplingSpec, apps: dict[str, AppSpec]) -> list[Problem]:
    """The team is whole: topology, code, options, prompts, apps, tools."""
    if agents.file is not None and not Path(agents.file).expanduser().is_file():
        return [Problem("agents.file", agents.file, "no such file", "a Python file with the team's roles")]
    if agents.graph is not None and not is_installed("langgraph"):
        return [not_installed("agents.graph", agents.graph, "langgraph", "matrix-llm[langgraph]", "agents.edges")]
    loader = Loader(agents.file, agents.modules)
    problems = check_route(agents)
    if not problems:
        problems += _raised(lambda: compile_route(agents, loader))
    for name, role in agents.named.items():
        problems += _check_role(name, role, agents, loader, sampling, apps)
    problems += _raised(lambda: References(agents.scorers, "agents.scorers"))
    problems += _raised(lambda: Toolbox(agents.tools, loader.find))
    for name, tool in agents.service_tools.items():
        problems += _check_service_tool(f"agents.tools.{name}", name, tool, apps)
    if any(role.is_actor for role in agents.named.values()) and not is_installed("ray"):
        key = next(name for name, role in agents.named.items() if role.is_actor)
        problems.append(not_installed(f"agents.roles.{key}.actor", True, "Ray", "matrix-llm[serving]", "actor=false"))
    # A file that fails does so for each of its roles.
    return list({str(problem): problem for problem in problems}.values())


def _check_role(
    name: str, role: RoleSpec, agents: AgentsSpec, loader: Loader, sampling: SamplingSpec, apps: dict[str, AppSpec]
) -> list[Problem]:
    key = f"agents.roles.{name}"
    # One in processes of its own may take minutes to make, and a GPU.
    problems = _raised(lambda: loader.check_role(name, role) if role.is_actor else loader.role(name, role))
    problems += _raised(lambda: sampling_fields(sampling, role.sampling, f"{key}.sampling"))
    if role.prompt is not None:
        problems += _raised(lambda: compile_template(role.prompt or "", f"{key}.prompt"))
    if role.app is not None and role.app not in apps:
        hint = f"apps.{role.app}.engine=... and apps.{role.app}.model=... make one"
        problems.append(
            Problem(f"{key}.app", role.app, "no such app", did_you_mean(role.app, list(apps)) if apps else hint)
        )
    elif role.app is not None and isinstance(engine := apps[role.app].engine, ServiceEngine):
        problems.append(Problem(f"{key}.app", role.app, f"serves no model, but is an app with engine={engine.kind}"))
    problems += [
        Problem(f"{key}.tools", tool, "no such tool", _near_tool(tool, agents))
        for tool in role.tools
        if tool not in agents.tools
    ]
    if role.is_actor and role.tools:
        hint = "let a role that runs in the peers call them"
        problems.append(Problem(f"{key}.tools", role.tools, "a role in processes of its own has no tools", hint))
    return problems


def _check_service_tool(
    key: str, name: str, tool: SandboxTool | ContainerTool, apps: dict[str, AppSpec]
) -> list[Problem]:
    """That the app is there, of the right kind, and has what the tool asks for."""
    if tool.app not in apps:
        hint = f"apps.{tool.app}.engine={tool.kind} makes it"
        return [Problem(f"{key}.app", tool.app, "no such app", hint)]
    engine = apps[tool.app].engine
    if engine.kind != tool.kind:
        hint = f"apps.{tool.app}.engine={tool.kind}, or another name in {key}.app"
        return [Problem(f"{key}.app", tool.app, f"is an app with engine={engine.kind}", hint)]
    if isinstance(tool, ContainerTool):
        problems = _raised(lambda: container_templates(name, tool))
        known = isinstance(engine, ContainerEngine) and (engine.any_image or {tool.image, ANY} & set(engine.images))
        if not known and "{" not in tool.image:
            hint = f"apps.{tool.app}.engine.images.{tool.image}=..., or apps.{tool.app}.engine.any_image=true"
            problems.append(Problem(f"{key}.image", tool.image, "the app has no such image", hint))
        return problems
    if isinstance(engine, SandboxEngine) and tool.language not in engine.languages:
        hint = did_you_mean(tool.language, list(engine.languages))
        return [Problem(f"{key}.language", tool.language, "the app has no such language", hint)]
    return []


def _near_tool(tool: str, agents: AgentsSpec) -> str:
    return did_you_mean(tool, list(agents.tools)) if agents.tools else f"agents.tools.{tool}=FUNCTION makes one"


def _raised(function: Callable[[], Any]) -> list[Problem]:
    try:
        function()
    except ConfigError as error:
        return list(error.problems)
    return []
