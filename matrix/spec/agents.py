"""A team of agents: the config group `agents`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from matrix.spec.base import Spec
from matrix.spec.workload import ScorerSpec

END = "end"
"""Stands for the end of a row's workflow wherever a role could be named."""


class RoleSpec(Spec):
    """One agent of a team."""

    use: str | None = None
    """Class or async function, as `module:name`; None: what has the role's name in `agents.file`."""
    app: str | None = None
    """The app that its `llm` asks: one of `apps`; None: the one that `engine` and `model` describe."""
    prompt: str | None = None
    """Jinja template over the row's columns; the role gets it rendered as `tools.prompt()`."""
    sampling: dict[str, Any] = {}
    """Fields of its requests, on top of the run's sampling."""
    tools: list[str] = []
    """Names in `agents.tools` that it may call."""
    options: dict[str, Any] = {}
    """Arguments of the class, by name."""
    timeout_s: float = Field(default=600, gt=0)
    """Seconds that one turn may take, those not counted in which its requests are with the client, which has limits of
    its own."""
    actor: bool = False
    """Run it in processes of its own instead of the peers'; implied by the four fields below."""
    replicas: int = Field(default=1, gt=0)
    """Such processes."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of each."""
    num_cpus: float | None = Field(default=None, ge=0)
    """CPUs of each; None: none set aside."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Logical resources of each, which pin it to nodes that have them."""
    batch: int = Field(default=64, gt=0)
    """Turns that such a process gets at a time at most."""

    @property
    def is_actor(self) -> bool:
        """Whether it runs in processes of its own."""
        return self.actor or bool(self.num_gpus or self.num_cpus or self.resources) or self.replicas > 1


class Edge(Spec):
    """Where a workflow goes after a role; a name alone is an edge without a condition."""

    to: str | list[str]
    """A role, or `end`; several roles have their turns at the same time."""
    join: str | None = None
    """Who is next when all of several are done; also a role or `end`."""
    when: str | None = None
    """Jinja expression over `task`, `scratch`, `metrics`, `last` (the entry before) and `turns`; None: always."""

    @property
    def targets(self) -> list[str]:
        """Names in `to`."""
        return [self.to] if isinstance(self.to, str) else self.to

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: object) -> object:
        return {"to": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _joins(self) -> Edge:
        if not self.targets:
            raise ValueError("goes to nobody: give to a role or end")
        if (len(self.targets) > 1) != (self.join is not None):
            raise ValueError("join (who is next when all are done) goes with several roles in to, and only with them")
        if END in self.targets and len(self.targets) > 1:
            raise ValueError("goes to end and elsewhere at the same time")
        return self


class FunctionTools(Spec):
    """A Python function as a tool."""

    kind: Literal["function"] = "function"
    use: str
    """The function, as `module:name`, or its name in `agents.file`; types and docstring become its JSON schema."""


class McpTools(Spec):
    """All tools of a server that speaks the Model Context Protocol."""

    kind: Literal["mcp"]
    command: list[str] = []
    """Starts a server that is talked to by its standard input and output."""
    url: str | None = None
    """Address of a server that is there (streamable HTTP)."""
    env: dict[str, str] = {}
    """Environment variables of the command; `$NAME` stands for one of ours."""
    headers_env: dict[str, str] = {}
    """Headers for the address, by the environment variable that holds each."""
    only: list[str] = []
    """Tools to take of it; empty: all."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds that a call may take."""

    @model_validator(mode="after")
    def _one_of_them(self) -> McpTools:
        if bool(self.command) == bool(self.url):
            raise ValueError("give one of command (a server to start) and url (one that is there)")
        return self


class SandboxTool(Spec):
    """Runs a program in a sandbox app."""

    kind: Literal["sandbox"]
    app: str = "code"
    """The app: one of `apps`, with `engine.kind=sandbox`."""
    language: str = "python"
    """What programs are written in: one of the app's `engine.languages`."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that a program may take; None: the app's own."""
    output_chars: int = Field(default=10_000, gt=0)
    """What a model gets to read of a program's output; the middle of a longer one is left out."""


class ContainerTool(Spec):
    """Runs commands in a container that the row has for itself, from its first command to its end."""

    kind: Literal["container"]
    app: str = "box"
    """The app: one of `apps`, with `engine.kind=container`."""
    image: str
    """Jinja template over the row's columns: what the container is made of."""
    setup: str | None = None
    """Jinja template over the row's columns: a shell command that comes before all others in a new container."""
    cwd: str | None = None
    """Folder in which commands run; None: the image's."""
    env: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    """Environment of the commands, on top of the app's."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that a command may take; None: the app's own."""
    setup_timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that `setup` may take; None: the app's own for a command."""
    wait_s: float = Field(default=3600, gt=0)
    """Seconds that a row waits for a container where all are taken."""
    output_chars: int = Field(default=10_000, gt=0)
    """What a model gets to read of a command's output; the middle of a longer one is left out."""


Tool = FunctionTools | McpTools | SandboxTool | ContainerTool


class Limits(Spec):
    """What a row may take; the one that is reached first ends it, and names its termination."""

    turns: int = Field(default=100, gt=0)
    """Turns: termination `max_turns`."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens of prompts and answers: `max_tokens`."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds since its begin: `max_seconds`, wherever it is."""
    cost_usd: float | None = Field(default=None, gt=0)
    """US dollars by `model.price`: `max_cost`."""


class AgentsSpec(Spec):
    """Roles, and how a row goes from one to the next: `order`, `edges` or `graph`."""

    name: str
    file: str | None = None
    """Python file with roles and tools of your own."""
    modules: list[str] = []
    """Packages, beside matrix, that roles and tools may come from."""
    roles: dict[str, RoleSpec] = {}
    """The agents, by name; those that a file has need not be named here."""
    order: list[str] = []
    """They take turns in this order, and again from the front until somebody ends it."""
    repeat: bool = True
    """After the last of `order` comes the first; false: the end."""
    start: str | None = None
    """With `edges`: who begins."""
    edges: dict[str, list[Edge]] = {}
    """By role, where it goes from there: the first edge whose condition holds, or the one that the role names."""
    graph: str | None = None
    """A LangGraph StateGraph whose nodes are roles, or a function that makes it: `module:name`, or a name in `file`."""
    ends: list[str] = []
    """With `order`: roles that may end a row."""
    tools: dict[str, Annotated[Tool, Field(discriminator="kind")]] = {}
    """Tools, by the name that roles have for them."""
    scorers: list[ScorerSpec] = []
    """How roles may have a text judged (`tools.score`)."""
    limits: Limits = Limits()

    @field_validator("edges", mode="before")
    @classmethod
    def _single(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: edges if isinstance(edges, list) else [edges] for name, edges in given.items()}

    @field_validator("tools", mode="before")
    @classmethod
    def _functions(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        whole = {name: {"use": tool} if isinstance(tool, str) else tool for name, tool in given.items()}
        return {name: {"kind": "function", **tool} if isinstance(tool, dict) else tool for name, tool in whole.items()}

    @model_validator(mode="after")
    def _one_way(self) -> AgentsSpec:
        ways = [name for name in ("order", "edges", "graph") if getattr(self, name)]
        if len(ways) != 1:
            got = f"got {' and '.join(ways)}" if ways else "got none"
            raise ValueError(f"takes one of order, edges and graph, {got}")
        if bool(self.edges) != (self.start is not None):
            raise ValueError("start (who begins) goes with edges, and only with them")
        if self.ends and not self.order:
            raise ValueError("ends goes with order; with edges, a role that may end a row has an edge to end")
        return self

    @property
    def service_tools(self) -> dict[str, SandboxTool | ContainerTool]:
        """Tools that are apps, by name."""
        return {name: tool for name, tool in self.tools.items() if isinstance(tool, SandboxTool | ContainerTool)}

    @property
    def named(self) -> dict[str, RoleSpec]:
        """All roles by name, those that only the route names included."""
        routed = [*self.order, *([self.start] if self.start else []), *self.edges]
        for edges in self.edges.values():
            routed += [name for edge in edges for name in [*edge.targets, *([edge.join] if edge.join else [])]]
        implied = {name: RoleSpec() for name in dict.fromkeys(routed) if name != END and name not in self.roles}
        return {**self.roles, **(implied if self.file else {})}
