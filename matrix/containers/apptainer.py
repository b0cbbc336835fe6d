"""`engine.backend=apptainer`: its instances; https://apptainer.org/docs/user/latest/running_services.html."""

from __future__ import annotations

import json
import os
from pathlib import Path

from matrix.containers.named import NamedContainers
from matrix.containers.process import must, run
from matrix.containers.runtime import Command

_VARIABLE = "APPTAINERENV_"
"""Variables of the host that begin with it are a container's, without it."""
_LIST = ["apptainer", "instance", "list", "--json"]


class Apptainer(NamedContainers):
    """Images are what `apptainer instance start` takes: a .sif file, a folder, `docker://NAME`."""

    program = "apptainer"
    package = "https://apptainer.org/docs/admin/latest/installation.html"
    own_fault = 255

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        """Ours, without what would reach the container, and with what should."""
        own = {name: value for name, value in os.environ.items() if not name.startswith((_VARIABLE, "SINGULARITYENV_"))}
        return own | {_VARIABLE + name: value for name, value in (self.engine.environment | env).items()}

    def start_line(self, container: str, image: str, root: Path) -> list[str]:  # noqa: ARG002 - a name is all it keeps
        """See `NamedContainers`."""
        engine = self.engine
        line = ["apptainer", "instance", "start", "--containall", "--cleanenv", "--no-home", "--fakeroot"]
        line += ["--writable-tmpfs", "--memory", f"{engine.memory_mb}M", "--pids-limit", str(engine.processes)]
        line += [] if engine.network else ["--net", "--network", "none"]
        for inside, source in engine.mounts.items():
            line += ["--bind", f"{source}:{inside}:ro"]
        return [*line, *engine.args, image, container]

    def execute_line(self, container: str, command: Command) -> list[str]:
        """See `NamedContainers`."""
        line = ["apptainer", "exec", "--cleanenv", "--pwd", command.cwd or "/", f"instance://{container}"]
        return [*line, *command.arguments]

    async def end_all(self, container: str) -> None:
        """See `NamedContainers`; the instance's first process is left out by a signal to all."""
        line = self.execute_line(container, Command(["sh", "-c", "kill -9 -1"], timeout_s=30, limit=4096))
        await run(line, limit=4096, timeout_s=30, environment=self.environment({}))

    async def stop(self, containers: list[str]) -> None:
        """See `NamedContainers`."""
        there = set(await self._names()) & set(containers)
        for container in there:
            await must(["apptainer", "instance", "stop", "--force", container], "an instance can't be stopped")

    async def runs(self, container: str) -> bool:
        """See `NamedContainers`."""
        return container in await self._names()

    async def all_of(self, root: Path) -> list[str]:  # noqa: ARG002 - as above
        """See `NamedContainers`."""
        return [name for name in await self._names() if name.startswith("matrix-")]

    async def _names(self) -> list[str]:
        told = await must(_LIST, "apptainer can't tell its instances")
        return [instance["instance"] for instance in json.loads(told)["instances"] or []]
