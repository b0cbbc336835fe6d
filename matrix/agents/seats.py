"""A role with all that it works with in one peer: its code, its app, its prompt, its tools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import ValidationError

from matrix.agents.load import Loader
from matrix.agents.pulse import RoleCount
from matrix.agents.role import Act, Role
from matrix.agents.state import State
from matrix.agents.toolbox import Toolbox
from matrix.client.http import ModelClient
from matrix.data.rows import Example
from matrix.errors import ConfigError, Problem, did_you_mean
from matrix.pipelines.prompt import compile_template, shortened
from matrix.spec import RunSpec, SamplingSpec
from matrix.spec.agents import RoleSpec

Release = Callable[[State, dict[str, Any]], Awaitable[None]]


class Seat:
    """A role at work.

    Attributes:
        name: The role's name.
        count: What it did.
        act: Takes a turn.
        client: Client of its app.
        model: What that app calls its model.
        price: What that app asks for.
        fields: Of its requests: sampling of the run and its own.
        clients: Clients of all apps that the team asks, by name.
        services: Its tools that are apps, by their names in `agents.tools`.
        tools: Its tools, by their names in `agents.tools`.
        tool_specs: The same as OpenAI defines them.
        toolbox: Where they are called.
        timeout_s: Seconds that a turn may take.
    """

    __slots__ = (
        "_template", "act", "client", "clients", "count", "fields", "model", "name", "price", "services", "timeout_s",
        "tool_specs", "toolbox", "tools",
    )  # fmt: skip

    def __init__(
        self,
        spec: RunSpec,
        name: str,
        role: RoleSpec,
        *,
        count: RoleCount,
        act: Act,
        clients: Mapping[str, ModelClient],
        toolbox: Toolbox,
    ) -> None:
        self.name, self.clients, self.toolbox = name, clients, toolbox
        self.count, self.act = count, act
        app_name = role.app or spec.main_app
        app, self.client = spec.all_apps()[app_name], clients[app_name]
        self.model, self.price = app.model.name, app.model.price
        self.fields = sampling_fields(spec.sampling, role.sampling, f"agents.roles.{name}.sampling")
        self.tools, self.tool_specs = role.tools, toolbox.specs(role.tools)
        services = spec.agents.service_tools if spec.agents else {}
        self.services = {tool: one for tool, one in services.items() if tool in role.tools}
        self.timeout_s = role.timeout_s
        self._template = compile_template(role.prompt, f"agents.roles.{name}.prompt") if role.prompt else None

    def prompt(self, example: Example, extra: Mapping[str, Any]) -> str:
        """The role's prompt, rendered.

        Raises:
            DataError: It asks for what neither the row nor `extra` has.
        """
        if self._template is None:
            return ""
        if extra:
            example = Example(example.id, example.index, {**example.columns, **extra})
        return self._template.render(example)


def make_role(loader: Loader, name: str, role: RoleSpec) -> tuple[Act, Release | None]:
    """The code of a role that runs in the peers: how it acts, and how it gives back what a row held.

    Raises:
        ConfigError: It can't be loaded.
    """
    made = loader.role(name, role)
    if isinstance(made, Role):
        return made.act, made.release if type(made).release is not Role.release else None
    act = getattr(made, "act", made)
    return act, getattr(made, "release", None)


def sampling_fields(sampling: SamplingSpec, own: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Fields of a role's requests; what is None isn't sent.

    Raises:
        ConfigError: A field of the role's own has a wrong value.
    """
    known = {name: own[name] for name in SamplingSpec.model_fields if name in own and name != "extra"}
    if unknown := [name for name in own if name not in SamplingSpec.model_fields]:
        raise ConfigError([Problem(f"{key}.{name}", own[name], "no such field", _meant(name, key)) for name in unknown])
    try:
        merged = SamplingSpec.model_validate({**sampling.model_dump(), **known})
    except ValidationError as error:
        raise ConfigError(
            [
                Problem(f"{key}.{detail['loc'][0]}", shortened(repr(detail["input"])), detail["msg"])
                for detail in error.errors()
            ]
        ) from error
    fields = merged.model_dump(exclude={"extra"}, exclude_none=True)
    if fields.pop("n", 1) != 1:
        raise ConfigError([Problem(f"{key}.n", merged.n, "a role asks for one answer at a time", "sampling.n=1")])
    return {**fields, **sampling.extra, **own.get("extra", {})}


def _meant(name: str, key: str) -> str:
    fields = list(SamplingSpec.model_fields)
    near = did_you_mean(name, fields)
    return near if near.startswith("did") else f"a field of the server's own goes into {key}.extra.{name}"
