"""What runs containers: one class for each `engine.backend`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from matrix.containers.process import Ended
from matrix.errors import AppError
from matrix.spec.services import ContainerEngine

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of commands, where the image doesn't say."""

_SHELL = 'if command -v bash >/dev/null 2>&1; then exec bash -lc "$1"; else exec sh -c "$1"; fi'
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:[:/@][A-Za-z0-9][A-Za-z0-9._-]*)*")
_DOCKER = "docker://"


@dataclass(frozen=True, slots=True)
class Command:
    """What is run in a container.

    Attributes:
        arguments: Program and arguments.
        timeout_s: Seconds that it may take.
        limit: Bytes of each output that are kept.
        cwd: Folder that it runs in; None: the image's own, or `/`.
        env: Its environment beside the engine's.
        stdin: What it reads.
        apart: Give stderr apart.
    """

    arguments: list[str]
    timeout_s: float
    limit: int
    cwd: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    apart: bool = False


class ContainerGoneError(Exception):
    """The container has ended by itself."""


class Runtime(Protocol):
    """Makes containers, which have names, and runs commands in them."""

    async def open(self) -> None:
        """Get ready; removes what dead processes of this user have left on this machine.

        Raises:
            AppError: The machine lacks something.
        """

    async def close(self) -> None:
        """Leave nothing behind; all containers are removed."""

    async def start(self, name: str, image: str) -> None:
        """Make a container of an image, given as in `engine.images`.

        Raises:
            AppError: It doesn't start.
        """

    async def execute(self, name: str, command: Command) -> Ended:
        """Run a command. When its time is over, or this is cancelled, nothing of it goes on.

        Raises:
            ContainerGoneError: There is no such container any more.
        """

    async def remove(self, name: str) -> None:
        """End a container and all that runs in it, and remove what it has written. One that isn't there is no error.

        Raises:
            AppError: It can't be removed.
        """


def runtime_of(engine: ContainerEngine) -> Runtime:
    """The one that an engine asks for."""
    from matrix.containers import apptainer, podman, rootfs

    kinds: dict[str, type[Runtime]] = {
        "rootfs": rootfs.Rootfs,
        "podman": podman.Podman,
        "apptainer": apptainer.Apptainer,
    }
    return kinds[engine.backend](engine)  # type: ignore[call-arg]


def in_a_shell(text: str) -> list[str]:
    """A command for a shell as program and arguments: a login shell, as that is what sets up an image's own tools."""
    return ["sh", "-c", _SHELL, "sh", text]


def check_reference(image: str, backend: str) -> str:
    """See that what a client gives names an image in a registry, and nothing on this machine.

    Returns:
        What the backend takes for it.

    Raises:
        AppError: It doesn't, or the backend has no registries.
    """
    if backend == "rootfs":
        raise AppError(f"image={image}: engine.backend=rootfs has the images of engine.images only")
    name = image.removeprefix(_DOCKER)
    if not _REFERENCE.fullmatch(name):
        raise AppError(f"image={image}: should be an image's name such as debian:12")
    return _DOCKER + name
