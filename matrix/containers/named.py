"""What podman and apptainer have in common: containers with names, that a command line starts, enters and stops."""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

from matrix.containers.place import Place, is_alive, left_behind, remove_tree, root_folder
from matrix.containers.process import Ended, must, run
from matrix.containers.runtime import Command, ContainerGoneError
from matrix.errors import AppError
from matrix.spec.services import ContainerEngine

_PREFIX = "matrix"
_MERGED = 'exec "$@" 2>&1'


class NamedContainers(ABC):
    """See `Runtime`. A container's name says which process's it is, so that those of dead ones are found.

    Args:
        engine: What containers get.
    """

    program: str
    """Its command line."""
    package: str
    """Where it comes from."""
    own_fault: int
    """Exit code of its command line where the container's command has not run."""

    def __init__(self, engine: ContainerEngine) -> None:
        self.engine = engine

    async def open(self) -> None:
        """See `Runtime`."""
        if shutil.which(self.program) is None:
            raise AppError(f"engine.backend={self.program}: this machine has no {self.program} ({self.package})")
        root = root_folder()
        await self.stop([one for one in await self.all_of(root) if not is_alive(root, _place_of(one))])
        for folder in left_behind(root):
            remove_tree(folder)
        self._root, self._place = root, Place(root)

    async def close(self) -> None:
        """See `Runtime`."""
        await self.stop([one for one in await self.all_of(self._root) if _place_of(one) == self._place.id])
        self._place.remove()

    async def start(self, name: str, image: str) -> None:
        """See `Runtime`."""
        line = self.start_line(self._name(name), image, self._root)
        await must(line, f"image {image} can't be started", self.environment({}))

    async def execute(self, name: str, command: Command) -> Ended:
        """See `Runtime`."""
        container = self._name(name)
        if not command.apart:
            # What comes through the program itself, as two streams, comes in any order.
            command = replace(command, arguments=["sh", "-c", _MERGED, "sh", *command.arguments])
        try:
            ended = await run(
                self.execute_line(container, command),
                limit=command.limit,
                timeout_s=command.timeout_s,
                stdin=command.stdin,
                apart=command.apart,
                environment=self.environment(command.env),
            )
        except asyncio.CancelledError:
            await asyncio.shield(self.end_all(container))
            raise
        if ended.exit_code is None:
            # Ending what has started the command ends nothing inside.
            await self.end_all(container)
        elif ended.exit_code == self.own_fault and not await self.runs(container):
            raise ContainerGoneError
        return ended

    async def remove(self, name: str) -> None:
        """See `Runtime`."""
        await self.stop([self._name(name)])

    def environment(self, env: dict[str, str]) -> dict[str, str] | None:  # noqa: ARG002 - not all need it
        """Of the command line, for a command with `env`; None: ours."""
        return None

    @abstractmethod
    def start_line(self, container: str, image: str, root: Path) -> list[str]:
        """The command that starts a container; `root` is to be found again by `all_of`."""

    @abstractmethod
    def execute_line(self, container: str, command: Command) -> list[str]:
        """The command that runs one in it."""

    @abstractmethod
    async def end_all(self, container: str) -> None:
        """End all that runs in a container, which keeps its files."""

    @abstractmethod
    async def stop(self, containers: list[str]) -> None:
        """End and remove containers; one that isn't there is no error."""

    @abstractmethod
    async def runs(self, container: str) -> bool:
        """Whether it is there and runs."""

    @abstractmethod
    async def all_of(self, root: Path) -> list[str]:
        """Names of all containers of replicas whose places are there."""

    def _name(self, name: str) -> str:
        return f"{_PREFIX}-{self._place.id}-{name}"


def _place_of(container: str) -> str:
    return container.split("-")[1]
