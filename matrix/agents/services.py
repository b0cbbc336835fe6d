"""Tools that are apps: programs in a sandbox, and a row's own containers.

A container's life is the row's, not the peer's: its lease is a step, so that whoever goes on with the row goes on in
the same container. One that is gone is made anew, and what was done in it is done again, in the same order.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from matrix.client.containers import Container, ContainerClient, Ran
from matrix.data.rows import Example
from matrix.errors import DataError, RequestError
from matrix.pipelines.prompt import Template, compile_template
from matrix.spec.agents import AgentsSpec, ContainerTool

LEASE = "lease:"
"""Before the tool's name in the name of the step that leased a container."""


@dataclass(slots=True)
class Kept:
    """A row's container, as it goes with the row.

    Attributes:
        lease: What `ContainerClient.take_over` takes; None: it has none yet.
        deeds: What was done in it, to do it again in another one.
    """

    lease: dict[str, Any] | None = None
    deeds: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Steps(Protocol):
    """What a container needs of a role's tools."""

    async def away(self, name: str, asked: Any, function: Callable[[], Awaitable[Any]]) -> Any:
        """As `BoundTools` has it."""


class Containers:
    """The containers of a team's rows, in one peer.

    Args:
        agents: The team.
        clients: Clients of its apps of containers, by name.
        say: Told what is unusual.
    """

    def __init__(self, agents: AgentsSpec, clients: Mapping[str, ContainerClient], say: Callable[[str], None]) -> None:
        self.say = say
        self._clients = clients
        self._tools = {name: tool for name, tool in agents.tools.items() if isinstance(tool, ContainerTool)}
        self._templates = {name: container_templates(name, tool) for name, tool in self._tools.items()}

    def of(self, name: str, row: str, kept: dict[str, Kept], example: Example, steps: Steps) -> RowContainer:
        """The container that a tool means to a row.

        Args:
            name: The tool's.
            row: The row's, for messages.
            kept: The row's containers.
            example: The row's columns.
            steps: Where its calls are kept.
        """
        tool = self._tools[name]
        image, setup = self._templates[name]
        made_of = (image.render(example), setup.render(example) if setup else "")
        return RowContainer(
            name, row, tool, made_of, self._client(name), kept.setdefault(name, Kept()), steps, self.say
        )

    async def release(self, kept: Mapping[str, Kept]) -> None:
        """Give back what a row has."""
        for name, one in kept.items():
            if one.lease is not None:
                await self._client(name).take_over(one.lease).release()

    def leave(self, kept: Mapping[str, Kept]) -> None:
        """Let go of what a row has: it goes on elsewhere."""
        for name, one in kept.items():
            if one.lease is not None:
                client = self._client(name)
                client.forget(client.take_over(one.lease))

    def _client(self, name: str) -> ContainerClient:
        return self._clients[self._tools[name].app]


class RowContainer:
    """`Container` of a row, for the role that has it now."""

    def __init__(
        self,
        name: str,
        row: str,
        tool: ContainerTool,
        made_of: tuple[str, str],
        client: ContainerClient,
        kept: Kept,
        steps: Steps,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._row, self._tool = name, row, tool
        self._image, self._setup = made_of
        self._client, self._kept, self._steps, self._say = client, kept, steps, say

    async def execute(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Ran:
        """As the protocol has it."""
        tool = self._tool
        asked = {
            "command": command,
            "cwd": cwd or tool.cwd,
            "env": {**tool.env, **(env or {})},
            "timeout_s": timeout_s or tool.timeout_s,
        }
        return Ran(**await self._do("execute", asked))

    async def read_file(self, path: str) -> bytes:
        """As the protocol has it."""
        return base64.b64decode(await self._do("read_file", {"path": path}))

    async def write_file(self, path: str, content: str) -> None:
        """As the protocol has it."""
        await self._do("write_file", {"path": path, "content": content})

    async def _do(self, what: str, asked: dict[str, Any]) -> Any:
        kept, steps = self._kept, self._steps
        if kept.lease is None:
            kept.lease = await steps.away(f"{LEASE}{self._name}", [self._image, self._setup], self._lease)
        result = await steps.away(self._name, [what, asked], lambda: self._surely(what, asked))
        if what != "read_file":
            kept.deeds.append((what, asked))
        return result

    async def _surely(self, what: str, asked: dict[str, Any]) -> Any:
        """Do it; where the container is gone, or nobody knows what came of it, in one that is made anew."""
        try:
            return await self._now(what, asked)
        except RequestError as error:
            if error.kind.startswith("http_4"):
                raise
            self._say(f"row {self._row}: its container is made anew, with all that was done in it: {error}")
        await self._made_anew()
        return await self._now(what, asked)

    async def _made_anew(self) -> None:
        kept = self._kept
        if kept.lease is not None:
            await self._client.take_over(kept.lease).release()
        kept.lease = await self._lease()
        for what, asked in kept.deeds:
            await self._now(what, asked)

    async def _lease(self) -> dict[str, Any]:
        container = await self._client.acquire(self._image, timeout_s=self._tool.wait_s)
        try:
            if self._setup:
                await self._set_up(container)
        except BaseException:
            # Nobody else knows of it.
            await container.release()
            raise
        return container.lease

    async def _set_up(self, container: Container) -> None:
        tool = self._tool
        ran = await container.execute(self._setup, env=tool.env, timeout_s=tool.setup_timeout_s)
        if ran.exit_code != 0:
            raise DataError(f"agents.tools.{self._name}.setup fails: {report(ran, 1000)}")

    async def _now(self, what: str, asked: dict[str, Any]) -> Any:
        container = self._client.take_over(self._kept.lease or {})
        if what == "execute":
            return asdict(await container.execute(**asked))
        if what == "read_file":
            return base64.b64encode(await container.read_file(**asked)).decode()
        return await container.write_file(**asked)


def container_templates(name: str, tool: ContainerTool) -> tuple[Template, Template | None]:
    """Image and setup of a tool.

    Raises:
        ConfigError: One has a syntax error.
    """
    key = f"agents.tools.{name}"
    setup = compile_template(tool.setup, f"{key}.setup") if tool.setup else None
    return compile_template(tool.image, f"{key}.image"), setup


def report(ran: Ran, chars: int) -> str:
    """What a model gets to read of a command.

    Args:
        ran: What came of it.
        chars: Of its output; the middle of a longer one is left out.
    """
    code = f"it was ended after {ran.wall_s:.0f} s" if ran.timed_out else f"exit code {ran.exit_code}"
    output = shown(ran.output, chars)
    return f"{code}\n{output}" if output else f"{code}, no output"


def shown(text: str, chars: int) -> str:
    """A text without the middle, if it is longer."""
    text = text.rstrip("\n")
    if len(text) <= chars:
        return text
    half = chars // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {left_out} characters are left out here ...\n{text[-half:]}"
